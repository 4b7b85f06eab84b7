"""An HTTP request's and response's head, whatever the version they came in.

Bytes throughout, as they are on the wire: header names in lower case, values without surrounding blanks. Neither holds
what belongs to one hop: pseudo-headers, Host, Connection and what it names, Keep-Alive, Transfer-Encoding, TE (but
`trailers`), Upgrade. Content-Length stays: it is the message's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Headers = list[tuple[bytes, bytes]]

CREDENTIALS = frozenset((b"authorization", b"cookie", b"proxy-authorization", b"set-cookie", b"x-api-key"))
"""Headers whose values are nobody's to show."""


@dataclass(slots=True)
class Request:
    """A request's head. Edited in place on its way through the proxy."""

    method: bytes
    authority: bytes
    """`host[:port]`, as the client wrote it."""
    path: bytes
    """Path and query, starting with `/`, or `*` (OPTIONS)."""
    headers: Headers = field(default_factory=list)
    length: int = 0
    """Of the body, bytes; -1 where it is not known beforehand."""
    upgrade: bytes = b""
    """The protocol asked for (`websocket`), in lower case; for HTTP/2 the `:protocol` of an extended CONNECT."""
    expects: bool = False
    """`Expect: 100-continue`: the client waits for it before it sends its body."""
    scheme: bytes = b"http"
    http10: bool = False
    """It came in HTTP/1.0: an answer of unknown length ends with the connection."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


@dataclass(slots=True)
class Response:
    """A response's head."""

    status: int
    headers: Headers = field(default_factory=list)
    length: int = 0
    """Of the body as it will be on the wire, bytes; -1 where it is not known (chunked, or until the connection's
    end)."""
    upgrade: bytes = b""
    """With status 101: the protocol taken up."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        for key, value in self.headers:
            if key == name:
                return value
        return None
