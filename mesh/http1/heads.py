"""Heads: llhttp reads them, and what it lets pass or hides is checked on the raw bytes.

A head comes here whole, from its start line to its empty line. Each gets an llhttp of its own (0.3 µs), so that no
state of one message reaches the next; bodies are not llhttp's, see `body`. Clients on kept connections send the same
head again and again: those that are small are remembered, a bounded number of bytes in a process.
"""

from __future__ import annotations

import functools
import re
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
_ABSOLUTE = re.compile(rb"([Hh][Tt][Tt][Pp])://([^/?#]*)(.*)", re.DOTALL)

Template = TypeVar("Template")


class Memo(Generic[Template]):
    """The last heads read more than once, by their bytes."""

    __slots__ = ("_new", "_old", "_once", "_room")
    LARGEST = 1024
    """Larger heads are not kept, bytes."""
    ROOM = 256 * 1024
    """Bytes of heads until the older half is forgotten. What was read of one takes some ten times as much."""
    ONCE = 4096

    def __init__(self) -> None:
        self._new: dict[bytes, Template] = {}
        self._old: dict[bytes, Template] = {}
        self._once: set[int] = set()
        """Hashes of heads seen once. Most of those that are not kept never come again (they hold a time or an id), and
        keeping them all would cost as much as reading does."""
        self._room = self.ROOM // 2

    @property
    def size(self) -> int:
        """Bytes of the heads that are kept."""
        return sum(map(len, self._new)) + sum(map(len, self._old))

    def get(self, head: bytes) -> Template | None:
        """What was kept for it."""
        known = self._new.get(head)
        if known is None and (known := self._old.get(head)) is not None:
            self._keep(head, known)
        return known

    def seen(self, head: bytes, template: Template) -> None:
        """A head was read; the second time it is kept."""
        mark = hash(head)
        if mark not in self._once:
            if len(self._once) >= self.ONCE:
                self._once.clear()
            self._once.add(mark)
        elif len(head) <= self.LARGEST:
            self._keep(head, template)

    def _keep(self, head: bytes, template: Template) -> None:
        size = len(head)
        self._room -= size
        if self._room < 0:
            self._old, self._new, self._room = self._new, {}, self.ROOM // 2 - size
        self._new[head] = template


RequestHead = tuple[bytes, bytes, bytes, Headers, int, bytes, bool, bool, bool]
"""Method, authority, path, headers (not to be changed), length, upgrade, if it expects 100-continue, if the connection
is kept, if it is HTTP/1.0. Plain tuples: an object's making takes as long as llhttp for the whole head."""
ResponseHead = tuple[int, Headers, int | None, bytes, bool]
"""Status, headers (not to be changed), length (-1: chunked, None: not said), upgrade, if the connection is kept. Holds
for whatever was asked, so an answer to HEAD has its length too."""
_Fields = tuple[Headers, int | None, bool, bytes, list[bytes], list[bytes]]
"""Headers, length (as above), if the connection is kept, upgrade, values of Host and of Expect."""


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
            self._memo.seen(head, known)
        return known

    def _read(self, head: bytes) -> RequestHead:
        line, _, rest = head.partition(b"\r\n")
        method, target, old = request_line(line, self._limits)
        parser = httptools.HttpRequestParser(_NOTHING)
        headers, length, keep_alive, protocol, hosts, expectations = _fields(head, rest, parser, old, self._limits)
        authority, path = (b"", target) if target.startswith(b"/") else _target(method, target)
        if len(hosts) == 1:
            host = hosts[0]
            if not is_authority(host):
                raise BadMessage(400, "Host is no host and port")
            if authority and authority.lower() != host.lower():
                raise BadMessage(400, "Host is not the target's")
            authority = host
        elif hosts:
            raise BadMessage(400, "more than one Host")
        elif not old:
            raise BadMessage(400, "no Host")
        expects = False
        if expectations and not old:
            if len(expectations) > 1 or expectations[0].lower() != b"100-continue":
                raise BadMessage(417, "an expectation that is not 100-continue")
            expects = bool(length)
        if length or old:
            protocol = b""
        return method, authority, path, headers, length or 0, protocol, expects, keep_alive, old


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
            self._memo.seen(head, known)
        return known

    def _read(self, head: bytes) -> ResponseHead:
        line, _, rest = head.partition(b"\r\n")
        status, old = _status_line(line)
        parser = httptools.HttpResponseParser(_NOTHING)
        headers, length, keep_alive, protocol, _, _ = _fields(head, rest, parser, old, self._limits)
        if status < 200 or status == 204:
            if old and status < 200:
                raise BadMessage(502, "HTTP/1.0 has no informational answers")
            if length:
                raise BadMessage(502, "a body where there is none")
            if length is not None:
                headers = [pair for pair in headers if pair[0] != b"content-length"]
        if status != 101:
            protocol = b""
        elif not protocol:
            raise BadMessage(502, "101 without the protocol")
        return status, headers, length, protocol, keep_alive


def _status_line(line: bytes) -> tuple[int, bool]:
    """The status, and if it is HTTP/1.0."""
    if line[:9] == b"HTTP/1.1 ":
        old = False
    elif line[:9] == b"HTTP/1.0 ":
        old = True
    else:
        raise BadMessage(502, "malformed status line")
    digits = line[9:12]
    if len(digits) != 3 or not digits.isdigit() or line[12:13] not in (b" ", b""):
        raise BadMessage(502, "malformed status line")
    status = int(digits)
    if not 100 <= status < 600:
        raise BadMessage(502, "a status that is none")
    return status, old


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
    """Authority (empty where it doesn't say) and path, of one that does not begin with one."""
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
    return _meanings(lines, old)


def _meanings(lines: list[bytes], old: bool) -> _Fields:
    """What the lines of a well-formed head say."""
    headers: Headers = []
    add = headers.append
    hosts: list[bytes] = []
    length: int | None = None
    keep_alive = not old
    hop: list[tuple[bytes, bytes]] | None = None
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip()
        if name not in _SPECIAL:
            add((name, value))
        elif name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            if length is not None:
                raise BadMessage(400, "more than one Content-Length")
            length = content_length(value)
            add((name, b"%d" % length))
        elif hop is None:
            hop = [(name, value)]
        else:
            hop.append((name, value))
    if hop is None:
        return headers, length, keep_alive, b"", hosts, []
    return _with_hop(headers, hop, length, hosts, old)


def _with_hop(headers: Headers, hop: Headers, length: int | None, hosts: list[bytes], old: bool) -> _Fields:
    values: dict[bytes, list[bytes]] = {}
    for name, value in hop:
        values.setdefault(name, []).append(value)
    if codings := values.get(b"transfer-encoding"):
        if length is not None or len(codings) > 1 or codings[0].lower() != b"chunked" or old:
            raise BadMessage(400, "a Transfer-Encoding other than chunked, or beside Content-Length")
        length = -1
    keep_alive = not old
    protocol = b""
    if options := values.get(b"connection"):
        close, keep, upgrades, named = connection(options[0] if len(options) == 1 else b",".join(options))
        keep_alive = not close and (keep or not old)
        if upgrades:
            protocol = upgrade(values.get(b"upgrade", []))
        if named:
            headers = [pair for pair in headers if pair[0] not in named]
    if (codings := values.get(b"te")) and b"trailers" in b",".join(codings).lower().replace(b" ", b"").split(b","):
        headers.append((b"te", b"trailers"))
    return headers, length, keep_alive, protocol, hosts, values.get(b"expect", [])


@functools.cache
def request_heads(limits: Limits) -> RequestHeads:
    """The process's one reader for these limits, so that connections share what is remembered."""
    return RequestHeads(limits)


@functools.cache
def response_heads(limits: Limits) -> ResponseHeads:
    """The process's one reader for these limits."""
    return ResponseHeads(limits)
