"""What single header fields may say (RFC 9110, RFC 9112)."""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple

from mesh.http1.failure import BadMessage
from mesh.message import Headers

NOT_CONTROLS = bytes((9, *range(32, 127), *range(128, 256)))
"""What may stand in a head between its line ends."""
TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
"""A header's name, in lower case."""
VISIBLE = bytes(byte for byte in range(33, 127) if byte != ord("#"))
"""A request's target."""

HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"))
"""Fields of one hop, besides what Connection names. `http2-settings` goes with its upgrade, which we never take."""
_SETTINGS = b"http2-settings"

_FRAMING = frozenset((b"content-length", b"host", b"trailer", _SETTINGS)) | HOP
_PROTECTED = frozenset(
    b"""
    content-encoding content-range content-type
    age cache-control date expect expires location max-forwards pragma range retry-after vary
    if-match if-modified-since if-none-match if-range if-unmodified-since
    authorization cookie proxy-authenticate proxy-authorization set-cookie www-authenticate
    baggage b3 forwarded origin referer traceparent tracestate via x-client-cert x-http-method-override x-original-url
    x-real-ip x-request-id x-rewrite-url
    """.split()
)
_PREFIXES = (b"x-forwarded-", b"x-envoy-", b"x-b3-", b"sec-", b"access-control-")
_LARGEST = 2**63 - 1

_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")
_PROTOCOL = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+(?:/[!#$%&'*+.^_`|~0-9a-z-]+)?")


def forbidden_trailer(name: bytes) -> bool:
    """If a field (name in lower case) must not come behind the body (RFC 9110 section 6.5.1)."""
    return name in _FRAMING or name in _PROTECTED or name.startswith(_PREFIXES)


class Connection(NamedTuple):
    """What a Connection header says."""

    close: bool = False
    keep_alive: bool = False
    upgrade: bool = False
    named: frozenset[bytes] = frozenset()
    """Fields that go no further, besides `HOP`."""


def connection(value: bytes) -> Connection:
    """What a message's Connection headers, joined with `,`, say; raises `BadMessage`.

    One that names what is meant for the last recipient would have us strip it, so that our verdict and the server's
    were of different requests.
    """
    return _connection(value) if len(value) <= 256 else _connection.__wrapped__(value)


@functools.lru_cache(1024)
def _connection(value: bytes) -> Connection:
    options = {option.strip(b" \t") for option in value.lower().split(b",")} - {b""}
    named = options - HOP - {b"close"}
    for name in named:
        if name.translate(None, TOKEN):
            raise BadMessage(400, "Connection names what is no header")
        if (name != _SETTINGS and forbidden_trailer(name)) or name.startswith((b"grpc-", b"content-")):
            raise BadMessage(400, "Connection names a header that is not this hop's")
    if b"transfer-encoding" in options:
        raise BadMessage(400, "Connection names a header that is not this hop's")
    return Connection(b"close" in options, b"keep-alive" in options, b"upgrade" in options, frozenset(named))


@functools.lru_cache(1024)
def _known_authority(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    address, port = match.groups()
    if address is not None:
        try:
            ipaddress.IPv6Address(address.decode())
        except ValueError:
            return False
    return port is None or 0 < int(port) <= 65535


def is_authority(value: bytes) -> bool:
    """If it is `host[:port]`: a name, an IPv4 address, or an IPv6 address in brackets."""
    return len(value) <= 261 and _known_authority(value)


def content_length(value: bytes) -> int:
    """The value of the one Content-Length; raises `BadMessage`."""
    if not value.isdigit() or len(value) > 64 or (length := int(value)) > _LARGEST:
        raise BadMessage(400, "Content-Length is no length")
    return length


def upgrade(values: list[bytes]) -> bytes:
    """The protocol of the Upgrade headers, in lower case; empty where it is one that we do not carry.

    That is more than one to choose from, and HTTP itself: `h2c` behind a proxy goes round all that the proxy decides.
    """
    if len(values) != 1 or len(values[0]) > 64:
        return b""
    protocol = values[0].lower()
    if not _PROTOCOL.fullmatch(protocol) or protocol.partition(b"/")[0] in (b"h2c", b"h2", b"http", b"tls"):
        return b""
    return protocol


def trailers(section: bytes, most: int) -> Headers:
    """The fields of a trailer section, each line of which ends with CRLF; raises `BadMessage`."""
    if len(section.translate(None, NOT_CONTROLS)) != 2 * section.count(b"\r\n"):
        raise BadMessage(400, "control character in a trailer")
    found: Headers = []
    for line in section.split(b"\r\n")[:-1]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or name.translate(None, TOKEN):
            raise BadMessage(400, "malformed trailer")
        if forbidden_trailer(name):
            raise BadMessage(400, "this header must not be a trailer")
        if len(found) == most:
            raise BadMessage(431, "too many trailers")
        found.append((name, value.strip(b" \t")))
    return found
