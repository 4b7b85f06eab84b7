"""Requests and responses as HTTP/2 has them (RFC 9113 section 8): header lists to messages and back.

What comes in is held to the rules of HTTP/1.1 messages too (`mesh.http1`), so that it can be forwarded in either
version and means the same. A malformed message raises `BadMessage`; with status 400 it is one for which the RFC wants
a reset of its stream.
"""

from __future__ import annotations

from typing import cast

from mesh.h2.headers import Decoded, Fields, encode_field
from mesh.http1.failure import BadMessage, Limits
from mesh.http1.fields import HOP, NOT_CONTROLS, TOKEN, VISIBLE, content_length, is_authority
from mesh.http1.heads import METHODS
from mesh.message import Headers, Request, Response

_LIMITS = Limits()
_FORBIDDEN = (HOP | {b"http2-settings"}) - {b"te"}
"""Fields of a connection: HTTP/2 has none (RFC 9113 section 8.2.2)."""
_FRAMING = _FORBIDDEN | {b"te", b"host", b"content-length", b"trailer"}
"""These must not be trailers in any version."""
_SPECIAL = _FORBIDDEN | {b"te", b"host", b"content-length", b"cookie", b"expect"}
_SCHEMES = (b"http", b"https")

_MOST_ENCODED, _LARGEST_ENCODED = 2048, 256


_Request = tuple[bytes, bytes, bytes, Headers, int, bool, bytes]
_Response = tuple[int, Headers, int]


def read_request(fields: Fields, end: bool) -> Request:
    """The request that these fields are, in the order in which they came; `end` if no body follows."""
    if fields.__class__ is Decoded:
        known = cast("tuple[bool, _Request] | None", fields.message)
        if known is None or known[0] is not end:
            known = fields.message = end, _read_request(fields, end)
        method, authority, path, headers, length, expects, scheme = known[1]
    else:
        method, authority, path, headers, length, expects, scheme = _read_request(fields, end)
    return Request(method, authority, path, headers.copy(), length, b"", expects, scheme)


def _read_request(fields: Fields, end: bool) -> _Request:
    pseudo: dict[bytes, bytes] = {}
    at = 0
    for name, value in fields:
        if name[:1] != b":":
            break
        if name in pseudo:
            raise BadMessage(400, "a pseudo-header twice")
        pseudo[name] = value
        at += 1
    method = pseudo.pop(b":method", b"")
    if method == b"CONNECT":
        raise BadMessage(501, "CONNECT is not for this connection")
    scheme, path, authority = pseudo.pop(b":scheme", b""), pseudo.pop(b":path", b""), pseudo.pop(b":authority", b"")
    if pseudo:
        raise BadMessage(400, "a pseudo-header that is none of a request's")
    if method not in METHODS:
        if not method or method.lower().translate(None, TOKEN):
            raise BadMessage(400, "no method, or malformed")
        raise BadMessage(501, "a method that is not known here")
    if scheme not in _SCHEMES:
        raise BadMessage(400, "no scheme, or not http")
    if path[:1] != b"/" and (path != b"*" or method != b"OPTIONS"):
        raise BadMessage(400, "no path, or a target that is none")
    if len(path) > _LIMITS.target:
        raise BadMessage(414, "the target is too long")
    if path.translate(None, VISIBLE):
        raise BadMessage(400, "a character that may not stand in a target")
    headers, special = _fields(fields, at)
    length = -1
    expects = False
    if special is not None:
        host = special.get(b"host")
        if host is not None:
            if authority and host.lower() != authority.lower():
                raise BadMessage(400, "Host is not the authority")
            authority = authority or host
        if (said := special.get(b"content-length")) is not None:
            length = content_length(said)
            headers.append((b"content-length", b"%d" % length))
        if (expectation := special.get(b"expect")) is not None:
            if expectation.lower() != b"100-continue":
                raise BadMessage(417, "an expectation that is not 100-continue")
            expects = not end
    if not is_authority(authority):
        raise BadMessage(400, "no authority, or one that is no host and port")
    if end:
        if length > 0:
            raise BadMessage(400, "a body shorter than its content-length")
        length = 0
    return method, authority, path, headers, length, expects, scheme


def read_response(fields: Fields, end: bool, head: bool) -> Response:
    """The response that these fields are; `head` if it answers HEAD. An informational one has a status below 200."""
    if fields.__class__ is Decoded:
        known = cast("tuple[bool, bool, _Response] | None", fields.message)
        if known is None or known[0] is not end or known[1] is not head:
            known = fields.message = end, head, _read_response(fields, end, head)
        status, headers, length = known[2]
    else:
        status, headers, length = _read_response(fields, end, head)
    return Response(status, headers.copy(), length)


def _read_response(fields: Fields, end: bool, head: bool) -> _Response:
    name, value = fields[0] if fields else (b"", b"")
    if name != b":status" or len(value) != 3 or not value.isdigit():
        raise BadMessage(502, "no status, or malformed")
    status = int(value)
    if not 100 <= status < 600 or status == 101:
        raise BadMessage(502, "a status that is none")
    headers, special = _fields(fields, 1)
    if status < 200:
        if end:
            raise BadMessage(502, "an informational answer that is the last")
        return status, headers, 0
    length = -1
    bodiless = head or status in (204, 304)
    if special is not None:
        if (said := special.get(b"content-length")) is not None:
            length = content_length(said)
            if status != 204:
                headers.append((b"content-length", b"%d" % length))
        headers += [(name, special[name]) for name in (b"host", b"expect") if name in special]
    if end or bodiless:
        if length > 0 and not bodiless:
            raise BadMessage(502, "a body shorter than its content-length")
        length = 0
    return status, headers, length


def read_trailers(fields: Fields) -> Headers:
    """Trailers: any fields but those that frame a message. What an application may put there is its own matter."""
    if len(fields) > _LIMITS.headers:
        raise BadMessage(431, "too many trailers")
    for name, value in fields:
        if name in _FRAMING:
            raise BadMessage(400, "this header must not be a trailer")
        if (name, value) not in _ENCODED:
            _check(name, value)
    return list(fields)


def _fields(fields: Fields, at: int) -> tuple[Headers, dict[bytes, bytes] | None]:
    """The headers from `at` on, and those among them that mean something to us."""
    if len(fields) - at > _LIMITS.headers:
        raise BadMessage(431, "too many headers")
    headers: Headers = []
    special: dict[bytes, bytes] | None = None
    for field in fields[at:] if at else fields:
        if field in _ENCODED:  # so it was found in order
            name = field[0]
        else:
            name, value = field
            _check(name, value)
        if name not in _SPECIAL:
            headers.append(field)
            continue
        value = field[1]
        if special is None:
            special = {}
        if name == b"cookie":
            # crumbs are for the sake of compression (section 8.2.3)
            special[name] = special[name] + b"; " + value if name in special else value
        elif name == b"te":
            if value.lower() != b"trailers":
                raise BadMessage(400, "TE other than trailers")
            special[name] = b"trailers"
        elif name in _FORBIDDEN:
            raise BadMessage(400, "a header of a connection")
        elif name in special:
            raise BadMessage(400, "a header twice that may be there once")
        else:
            special[name] = value
    if special is not None:
        headers += [(name, special[name]) for name in (b"cookie", b"te") if name in special]
    return headers, special


def _check(name: bytes, value: bytes) -> None:
    if not name or name.translate(None, TOKEN):
        raise BadMessage(400, "a header's name is no lower-case token")
    if value.translate(None, NOT_CONTROLS) or value != value.strip(b" \t"):
        raise BadMessage(400, "a header's value holds a control character, or a blank at an end")


class _Encoded(dict[tuple[bytes, bytes], bytes]):
    """Encoded fields, well-formed ones only; empty for those that HTTP/2 has no place for."""

    def __missing__(self, field: tuple[bytes, bytes]) -> bytes:
        name, value = field
        if not name or name.translate(None, TOKEN) or value.translate(None, NOT_CONTROLS):
            raise ValueError("a header's name is no lower-case token, or its value holds a control character")
        left_out = name in _FORBIDDEN or name in (b"host", b"expect") or (name == b"te" and value != b"trailers")
        encoded = b"" if left_out else encode_field(name, value.strip(b" \t"))
        if len(encoded) <= _LARGEST_ENCODED and value == value.strip(b" \t"):
            if len(self) >= _MOST_ENCODED:
                self.clear()
            self[field] = encoded
        return encoded


_ENCODED = _Encoded()
_encoded = _ENCODED.__getitem__

_EXPECT = encode_field(b"expect", b"100-continue")
_STARTS: dict[tuple[bytes, bytes, bytes], bytes] = {}
_STATUS = {status: encode_field(b":status", b"%d" % status) for status in range(100, 600)}


def _start(method: bytes, scheme: bytes, authority: bytes) -> bytes:
    found = _STARTS.get((method, scheme, authority))
    if found is None:
        if len(_STARTS) >= _MOST_ENCODED:
            _STARTS.clear()
        found = encode_field(b":method", method) + encode_field(b":scheme", scheme)
        found += encode_field(b":authority", authority)
        _STARTS[method, scheme, authority] = found
    return found


def write_request(request: Request) -> bytes:
    """A request's head as a header block. An upgrade is left out: HTTP/2 has none.

    Raises `ValueError` for a name or value that is none; those come from header edits only.
    """
    path = request.path
    block = b"".join((
        _start(request.method, request.scheme, request.authority),
        b"\x04%c%b" % (len(path), path) if len(path) < 127 else encode_field(b":path", path),
        *map(_encoded, request.headers),
    ))  # fmt: skip
    return block + _EXPECT if request.expects else block


def write_response(response: Response) -> bytes:
    """A response's head as a header block; raises `ValueError` as `write_request` does."""
    return _STATUS[response.status] + b"".join(map(_encoded, response.headers))


def write_trailers(trailers: Headers) -> bytes:
    """Trailers as a header block; raises `ValueError` as `write_request` does."""
    return b"".join([_encoded(field) for field in trailers if field[0] not in _FRAMING])
