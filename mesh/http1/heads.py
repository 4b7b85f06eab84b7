"""Heads: llhttp reads them, and what it lets pass or hides is checked on the raw bytes.

A head comes here whole, from its start line to its empty line. Each gets an llhttp of its own (0.3 µs), so that no
state of one message reaches the next; bodies are not llhttp's, see `body`. Clients on kept connections send the same
head again and again: those that are small are remembered, a bounded number of bytes in a process.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

import httptools

from mesh.http1.failure import BadMessage, Limits
from mesh.http1.fields import (
    HOP,
    NOT_CONTROLS,
    VISIBLE,
    connection,
    content_length,
    is_authority,
    upgrade,
)
from mesh.message import Headers

METHODS = frozenset(
    b"""
    GET HEAD POST PUT DELETE OPTIONS TRACE PATCH QUERY
    ACL BIND CHECKOUT COPY LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY PROPFIND PROPPATCH PURGE
    REBIND REPORT SEARCH SUBSCRIBE UNBIND UNLINK UNLOCK UNSUBSCRIBE
    """.split()
)
"""Those that llhttp knows, without CONNECT and what is not HTTP."""

_SPECIAL = HOP | {b"content-length", b"host", b"expect", b"http2-settings"}
_VERSION = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_ABSOLUTE = re.compile(rb"([Hh][Tt][Tt][Pp])://([^/?#]*)(.*)", re.DOTALL)

Template = TypeVar("Template")


class Memo(Generic[Template]):
    """The last heads read, by their bytes."""

    __slots__ = ("_new", "_old", "_room")
    LARGEST = 1024
    """Larger heads are not kept, bytes."""
    ROOM = 256 * 1024
    """Bytes of heads until the older half is forgotten. What was read of one takes some ten times as much."""

    def __init__(self) -> None:
        self._new: dict[bytes, Template] = {}
        self._old: dict[bytes, Template] = {}
        self._room = self.ROOM // 2

    def get(self, head: bytes) -> Template | None:
        """What was kept for it."""
        known = self._new.get(head)
        if known is None and (known := self._old.get(head)) is not None:
            self.keep(head, known)
        return known

    def keep(self, head: bytes, template: Template) -> None:
        """Keep what was read of a head."""
        size = len(head)
        if size > self.LARGEST:
            return
        self._room -= size
        if self._room < 0:
            self._old, self._new, self._room = self._new, {}, self.ROOM // 2 - size
        self._new[head] = template


@dataclass(frozen=True, slots=True)
class _Fields:
    headers: Headers
    length: int | None
    """None where nothing is said, -1 for chunked."""
    keep_alive: bool
    upgrade: bytes
    hosts: list[bytes]
    expects: list[bytes]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request's head says; `headers` is not to be changed."""

    method: bytes
    authority: bytes
    path: bytes
    headers: Headers
    length: int
    upgrade: bytes
    expects: bool
    keep_alive: bool
    http10: bool


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a response's head says, whatever it answers; `headers` is not to be changed."""

    status: int
    headers: Headers
    length: int | None
    upgrade: bytes
    keep_alive: bool


class RequestHeads:
    """Reads requests' heads."""

    __slots__ = ("_limits", "_memo")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._memo = Memo[RequestHead]()

    def read(self, head: bytes) -> RequestHead:
        """Read a whole head; raises `BadMessage`."""
        known = self._memo.get(head)
        if known is None:
            known = self._read(head)
            self._memo.keep(head, known)
        return known

    def _read(self, head: bytes) -> RequestHead:
        line, _, rest = head.partition(b"\r\n")
        method, target, old = request_line(line, self._limits)
        fields = _fields(head, rest, httptools.HttpRequestParser(_NOTHING), old, self._limits)
        authority, path = _target(method, target)
        if fields.hosts:
            if len(fields.hosts) > 1:
                raise BadMessage(400, "more than one Host")
            host = fields.hosts[0]
            if not is_authority(host):
                raise BadMessage(400, "Host is no host and port")
            if authority and authority.lower() != host.lower():
                raise BadMessage(400, "Host is not the target's")
            authority = host
        elif not old:
            raise BadMessage(400, "no Host")
        length = fields.length or 0
        expects = False
        if fields.expects and not old:
            if len(fields.expects) > 1 or fields.expects[0].lower() != b"100-continue":
                raise BadMessage(417, "an expectation that is not 100-continue")
            expects = length != 0
        return RequestHead(
            method,
            authority,
            path,
            fields.headers,
            length,
            fields.upgrade if length == 0 and not old else b"",
            expects,
            fields.keep_alive,
            old,
        )


class ResponseHeads:
    """Reads responses' heads."""

    __slots__ = ("_limits", "_memo")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._memo = Memo[ResponseHead]()

    def read(self, head: bytes) -> ResponseHead:
        """Read a whole head; raises `BadMessage`."""
        known = self._memo.get(head)
        if known is None:
            known = self._read(head)
            self._memo.keep(head, known)
        return known

    def _read(self, head: bytes) -> ResponseHead:
        line, _, rest = head.partition(b"\r\n")
        match = _STATUS.fullmatch(line)
        if match is None:
            raise BadMessage(502, "malformed status line")
        old = match[1] == b"0"
        status = int(match[2])
        fields = _fields(head, rest, httptools.HttpResponseParser(_NOTHING), old, self._limits)
        length = fields.length
        if old and status < 200:
            raise BadMessage(502, "HTTP/1.0 has no informational answers")
        if status < 200 or status == 204:
            if length:
                raise BadMessage(502, "a body where there is none")
            if length is not None:
                fields.headers[:] = [pair for pair in fields.headers if pair[0] != b"content-length"]
        if status == 101 and not fields.upgrade:
            raise BadMessage(502, "101 without the protocol")
        return ResponseHead(status, fields.headers, length, fields.upgrade if status == 101 else b"", fields.keep_alive)


def request_line(line: bytes, limits: Limits) -> tuple[bytes, bytes, bool]:
    """Method, target, and if it is HTTP/1.0; raises `BadMessage`."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise BadMessage(400, "malformed request line")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise BadMessage(505, "a version that is not HTTP/1.1 or 1.0")
        raise BadMessage(400, "malformed request line")
    if method not in METHODS:
        if _METHOD.fullmatch(method):
            raise BadMessage(501, "a method that is not known here")
        raise BadMessage(400, "malformed method")
    if len(target) > limits.target:
        raise BadMessage(414, "the target is too long")
    if target.translate(None, VISIBLE):
        raise BadMessage(400, "a character that may not stand in a target")
    return method, target, version == b"HTTP/1.0"


def _target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Authority (empty where it doesn't say) and path."""
    if target.startswith(b"/"):
        return b"", target
    if target == b"*":
        if method != b"OPTIONS":
            raise BadMessage(400, "* is for OPTIONS")
        return b"", target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise BadMessage(400, "a target that is no path")
    _, authority, path = match.groups()
    if not is_authority(authority):
        raise BadMessage(400, "the target's authority is no host and port")
    if not path and method == b"OPTIONS":
        return authority, b"*"
    return authority, path if path.startswith(b"/") else b"/" + path


class _Nothing:
    """llhttp's word is wanted, not its call-backs: they cost more than splitting lines known to be well-formed."""


_NOTHING = _Nothing()


def _fields(
    head: bytes,
    rest: bytes,
    parser: httptools.HttpRequestParser | httptools.HttpResponseParser,
    old: bool,
    limits: Limits,
) -> _Fields:
    lines = rest.split(b"\r\n")[:-2]
    if len(lines) > limits.headers:
        raise BadMessage(431, "too many headers")
    # As many CRs, LFs and other controls as pairs of CR and LF account for: none is alone.
    if len(head.translate(None, NOT_CONTROLS)) != 2 * len(lines) + 4:
        raise BadMessage(400, "control character in a head")
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadMessage(400, str(error)) from None
    headers: Headers = []
    special: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _SPECIAL:
            special.append((name, value.strip(b" \t")))
            if name == b"content-length":
                headers.append((name, b"%d" % content_length(value.strip(b" \t"))))
        else:
            headers.append((name, value.strip(b" \t")))
    return _special(headers, special, old)


def _special(headers: Headers, special: Headers, old: bool) -> _Fields:
    values: dict[bytes, list[bytes]] = {}
    for name, value in special:
        values.setdefault(name, []).append(value)
    length: int | None = None
    if lengths := values.get(b"content-length"):
        if len(lengths) > 1:
            raise BadMessage(400, "more than one Content-Length")
        length = content_length(lengths[0])
    if codings := values.get(b"transfer-encoding"):
        if length is not None or len(codings) > 1 or codings[0].lower() != b"chunked" or old:
            raise BadMessage(400, "a Transfer-Encoding other than chunked, or beside Content-Length")
        length = -1
    keep_alive = not old
    protocol = b""
    if options := values.get(b"connection"):
        said = connection(b",".join(options))
        keep_alive = not said.close and (said.keep_alive or not old)
        if said.upgrade:
            protocol = upgrade(values.get(b"upgrade", []))
        if said.named:
            headers = [pair for pair in headers if pair[0] not in said.named]
    if any(value.lower() == b"trailers" for value in values.get(b"te", ())):
        headers.append((b"te", b"trailers"))
    return _Fields(headers, length, keep_alive, protocol, values.get(b"host", []), values.get(b"expect", []))


@functools.cache
def request_heads(limits: Limits) -> RequestHeads:
    """The process's one reader for these limits, so that connections share what is remembered."""
    return RequestHeads(limits)


@functools.cache
def response_heads(limits: Limits) -> ResponseHeads:
    """The process's one reader for these limits."""
    return ResponseHeads(limits)
