"""Messages onto the wire: written anew from what was understood, never copied.

What belongs to a hop is written here and nowhere else, so headers of that kind among a message's own are left out.
Raises `ValueError` for names and values that would be something else on the wire; those come from HTTP/2 and from
header edits, never from our parsers.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from itertools import chain

from mesh.http1.fields import HOP, NOT_CONTROLS, TOKEN, VISIBLE, forbidden_trailer, is_authority
from mesh.http1.heads import METHODS
from mesh.message import Headers, Request, Response

_WRITTEN = HOP | {b"host", b"expect", b"http2-settings"}
_STATUS = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_FORMATS = [b"%b: %b\r\n" * count for count in range(33)]


def _headers(headers: Sequence[tuple[bytes, bytes]], names: dict[bytes, bytes], length: bytes = b"") -> bytes:
    """Their lines, Content-Length's if it says `length` (none for empty); checks names and values."""
    said = names.pop(b"content-length", None)
    if not _WRITTEN.isdisjoint(names) or (said is not None and (said != length or len(headers) > len(names) + 1)):
        headers = [pair for pair in headers if pair[0] not in _WRITTEN and pair[0] != b"content-length"]
        said = None
    if b"" in names or b"".join(names).translate(None, TOKEN):
        raise ValueError("a header's name is no lower-case token")
    count = len(headers)
    lines = (_FORMATS[count] if count < 33 else b"%b: %b\r\n" * count) % tuple(chain.from_iterable(headers))
    if len(lines.translate(None, NOT_CONTROLS)) != 2 * count:
        raise ValueError("a header's value holds a control character")
    return lines + b"content-length: %b\r\n" % length if length and said is None else lines


def _upgrade(protocol: bytes, options: bytes) -> bytes:
    if protocol.translate(None, TOKEN + b"/"):
        raise ValueError("the protocol of an upgrade is no token")
    return b"connection: upgrade%b\r\nupgrade: %b\r\n" % (options, protocol)


def write_request(request: Request) -> bytes:
    """A request's head, as HTTP/1.1; `authority` must be there (an HTTP/1.0 client may not have said it)."""
    headers = request.headers
    names = dict(headers)
    length, said, last = request.length, b"", b""
    if length < 0:
        last = b"transfer-encoding: chunked\r\n"
    elif length or b"content-length" in names:
        said = b"%d" % length
    if request.expects:
        last += b"expect: 100-continue\r\n"
    trailers = names.get(b"te") == b"trailers"
    if request.upgrade:
        last += _upgrade(request.upgrade, b", te" if trailers else b"")
    elif trailers:
        last += b"connection: te\r\n"
    if trailers:
        last += b"te: trailers\r\n"
    method, path, authority = request.method, request.path, request.authority
    if method not in METHODS or path.translate(None, VISIBLE):
        raise ValueError("a method or path that cannot be written")
    if not path.startswith(b"/") and (path != b"*" or method != b"OPTIONS"):
        raise ValueError("a path that does not begin with /")
    if not is_authority(authority):
        raise ValueError("no authority, or one that is no host and port")
    lines = _headers(headers, names, said)
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (method, path, authority, lines, last)


def write_response(response: Response, *, keep_alive: bool, http10: bool = False, head: bool = False) -> bytes:
    """A response's head. `head`: it answers HEAD, so that a Content-Length is the one that GET would have had."""
    status, headers, length = response.status, response.headers, response.length
    if status < 200 and http10:
        return b""
    names = dict(headers)
    said = last = b""
    if status < 200:
        if response.upgrade:
            last = _upgrade(response.upgrade, b"")
    else:
        if head or status == 304:
            said = names.get(b"content-length", b"")
            if not said.isdigit():
                said = b""
        elif status != 204:
            if length >= 0:
                said = b"%d" % length
            elif http10:
                keep_alive = False
            else:
                last = b"transfer-encoding: chunked\r\n"
        if not keep_alive:
            last += b"connection: close\r\n"
        elif http10:
            last += b"connection: keep-alive\r\n"
    line = _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status
    return line + _headers(headers, names, said) + last + b"\r\n"


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body; none for no data, as an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: Headers) -> bytes:
    """The end of a chunked body. HTTP/2 has trailers that HTTP/1 must not have: they are left out."""
    trailers = [pair for pair in trailers if not forbidden_trailer(pair[0])] if trailers else trailers
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + _headers(trailers, dict(trailers)) + b"\r\n"
