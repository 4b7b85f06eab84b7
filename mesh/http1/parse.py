"""Requests and responses out of a connection's bytes, fed as they arrive, in whatever pieces.

Both call their sink while `feed` runs, in the order of the bytes. Once `BadMessage` was raised the parser is of no more
use: what it told its sink before holds, the message that it was in is not complete and never will be.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Protocol

from mesh.http1.body import Chunks
from mesh.http1.failure import BadMessage, Limits
from mesh.http1.fields import NOT_CONTROLS
from mesh.http1.heads import request_heads, request_line, response_heads
from mesh.message import Headers, Request, Response

_LIMITS = Limits()


class RequestSink(Protocol):
    """Who is told of requests."""

    def on_request(self, request: Request, keep_alive: bool) -> None:
        """A head was read. `keep_alive`: the client will send more after this one; if not, nothing after it is read."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body, never empty."""

    def on_end(self, trailers: Headers) -> None:
        """The request is complete; called for each, with a body or without."""

    def on_rest(self, data: bytes) -> None:
        """After `switch`: bytes that are not HTTP/1 any more."""


class ResponseSink(Protocol):
    """Who is told of responses."""

    def on_informational(self, response: Response) -> None:
        """One of 1xx but 101; the response proper follows."""

    def on_response(self, response: Response, keep_alive: bool) -> None:
        """A head was read. `keep_alive`: the connection can be used again. With 101, call `switch`, now or later."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body, never empty."""

    def on_end(self, trailers: Headers) -> None:
        """The response is complete; called for each but 101, with a body or without."""

    def on_rest(self, data: bytes) -> None:
        """After `switch`: bytes that are not HTTP/1 any more."""


class _State(enum.Enum):
    HEAD = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_EOF = 3
    HELD = 4
    REST = 5
    IGNORED = 6
    FAILED = 7


class _Parser:
    """What both have in common: where heads end, and bodies."""

    __slots__ = ("_checked", "_chunks", "_from", "_left", "_limits", "_partial", "_state")
    _sink: RequestSink | ResponseSink

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = _State.HEAD
        self._partial = b""
        """Of a head, or what is held."""
        self._from = 0
        """Where in `_partial` what is held begins."""
        self._checked = 0
        self._left = 0
        self._chunks: Chunks | None = None

    @property
    def in_head(self) -> bool:
        """Whether a head has begun to arrive, and not all of it is here."""
        return self._state is _State.HEAD and bool(self._partial)

    def feed(self, data: bytes | bytearray | memoryview, at: int = 0) -> None:
        """Read on, from `data[at:]`; raises `BadMessage`."""
        if type(data) is not bytes:
            data = bytes(data)
        try:
            self._feed(data, at)
        except BadMessage:
            self._state = _State.FAILED
            self._partial = b""
            raise

    def _feed(self, data: bytes, at: int) -> None:
        size = len(data)
        while at < size:
            state = self._state
            if state is _State.HEAD:
                if self._partial:
                    data = self._partial + data[at:]
                    at, size = 0, len(data)
                    self._partial = b""
                found = data.find(b"\r\n\r\n", at + max(0, self._checked - 3))
                if found < 0 or found + 4 - at > self._limits.head:
                    self._partial = data[at:]
                    self._incomplete()
                    return
                self._checked = 0
                start, at = at, found + 4
                self._head(data[start:at])
            elif state is _State.LENGTH:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    self._sink.on_body(piece)
                else:
                    self._finish(piece, [])
            elif state is _State.CHUNKED:
                assert self._chunks is not None
                at = self._chunks.feed(data, at)
                trailers = self._chunks.trailers
                if trailers is not None:
                    self._chunks = None
                    self._finish(b"", trailers)
            elif state is _State.UNTIL_EOF:
                self._sink.on_body(data[at:])
                return
            elif state is _State.REST:
                self._sink.on_rest(data[at:])
                return
            elif state is _State.HELD:
                self._hold(data, at)
                return
            elif state is _State.IGNORED:
                return
            else:
                raise BadMessage(400, "this connection has failed")

    def _hold(self, data: bytes, at: int) -> None:
        """Keep what is not to be read yet."""
        self._partial += data[at:]
        if len(self._partial) > self._limits.held:
            raise BadMessage(400, "too much sent before the upgrade was answered")

    def _finish(self, piece: bytes, trailers: Headers) -> None:
        """The message ends with this piece of its body."""

    def _head(self, head: bytes) -> None:
        """A whole head."""

    def switch(self) -> None:
        """The last request's upgrade is answered with 101: what follows in this direction goes to `on_rest`."""
        self._release(_State.REST)

    def _release(self, state: _State) -> None:
        if self._state is not _State.HELD:
            return
        held, at = self._partial, self._from
        self._partial, self._from = b"", 0
        self._state = state
        if held:
            self.feed(held, at)

    def _incomplete(self) -> None:
        """Refuse at once what cannot become a head: a peer that waits for an answer may never send more."""
        partial = self._partial
        if len(partial) > self._limits.head:
            raise BadMessage(431, "the head is too large")
        new = partial[self._checked : len(partial) - partial.endswith(b"\r")]
        if len(new.translate(None, NOT_CONTROLS)) != 2 * new.count(b"\r\n"):
            raise BadMessage(400, "control character in a head")
        self._checked += len(new)


class RequestParser(_Parser):
    """Reads what one client sends."""

    __slots__ = ("_again", "_heads", "_next", "_sink")

    def __init__(self, sink: RequestSink, limits: Limits = _LIMITS, *, stepwise: bool = False) -> None:
        """`stepwise`: behind each request it waits for `proceed`. What is fed meanwhile is held, as bytes and without a
        limit: the owner stops reading while there is any (`waiting`).
        """
        super().__init__(limits)
        self._next = _State.HELD if stepwise else _State.HEAD
        self._sink: RequestSink = sink
        self._heads = request_heads(limits)
        self._again = _State.HEAD
        """What follows the request that is being read."""

    @property
    def held(self) -> bool:
        """If a request, one for an upgrade or any if `stepwise`, awaits `switch` or `proceed`."""
        return self._state is _State.HELD

    @property
    def waiting(self) -> bool:
        """If bytes are held behind it."""
        return self._state is _State.HELD and bool(self._partial)

    def proceed(self) -> None:
        """The last request was answered, not by an upgrade: HTTP/1 goes on. Raises `BadMessage`, as `feed` does."""
        if self._partial:
            self._release(_State.HEAD)
        elif self._state is _State.HELD:
            self._state = _State.HEAD

    def _hold(self, data: bytes, at: int) -> None:
        if self._next is _State.HEAD:
            super()._hold(data, at)
        elif self._partial:
            self._partial, self._from = self._partial[self._from :] + data[at:], 0
        else:
            self._partial, self._from = data, at  # not copied: there may be many requests in it

    def _incomplete(self) -> None:
        partial = self._partial.removeprefix(b"\r\n")
        line_end = partial.find(b"\r\n")
        if line_end >= 0:
            request_line(partial[:line_end], self._limits)
        elif len(partial) > self._limits.target + 64:
            raise BadMessage(414, "the target is too long")
        super()._incomplete()

    def _head(self, head: bytes) -> None:
        head = head.removeprefix(b"\r\n")  # RFC 9112 section 2.2
        method, authority, path, headers, length, upgrade, expects, keep_alive, http10 = self._heads.read(head)
        request = Request(method, authority, path, headers.copy(), length, upgrade, expects, b"http", http10)
        again = self._next if keep_alive else _State.IGNORED
        if not length:
            self._state = _State.HELD if upgrade else again
            self._sink.on_request(request, keep_alive)
            self._sink.on_end([])
            return
        self._again = again
        if length > 0:
            self._state, self._left = _State.LENGTH, length
        else:
            self._state, self._chunks = _State.CHUNKED, Chunks(self._sink.on_body, self._limits)
        self._sink.on_request(request, keep_alive)

    def _finish(self, piece: bytes, trailers: Headers) -> None:
        self._state = self._again
        if piece:
            self._sink.on_body(piece)
        self._sink.on_end(trailers)


class ResponseParser(_Parser):
    """Reads what one server sends."""

    __slots__ = ("_expected", "_heads", "_informed", "_keep_alive", "_sink")

    def __init__(self, sink: ResponseSink, limits: Limits = _LIMITS) -> None:
        super().__init__(limits)
        self._sink: ResponseSink = sink
        self._heads = response_heads(limits)
        self._expected: deque[tuple[bytes, bytes]] = deque()
        self._informed = 0
        self._keep_alive = True

    def expect(self, method: bytes, upgrade: bytes = b"") -> None:
        """A request was sent, with this `Request.upgrade`: its answer may take that up, and no other."""
        self._expected.append((method, upgrade))

    def eof(self) -> None:
        """The server has closed. Raises `BadMessage` where an answer is missing or not complete."""
        if self._state is _State.UNTIL_EOF:
            self._state = _State.IGNORED
            self._sink.on_end([])
        elif self._state is _State.REST:
            return
        elif self._state not in (_State.HEAD, _State.IGNORED) or self._partial or self._expected:
            self._state = _State.FAILED
            raise BadMessage(502, "the server closed before its answer was complete")

    def _incomplete(self) -> None:
        if not self._expected:
            raise BadMessage(502, "an answer that nobody asked for")
        if not b"HTTP/1.".startswith(self._partial[:7]):
            raise BadMessage(502, "malformed status line")
        super()._incomplete()

    def _head(self, head: bytes) -> None:
        if not self._expected:
            raise BadMessage(502, "an answer that nobody asked for")
        status, headers, length, protocol, keep_alive = self._heads.read(head)
        response = Response(status, headers.copy(), 0, protocol)
        if status < 200 and status != 101:
            self._informed += 1
            if self._informed > self._limits.informational:
                raise BadMessage(502, "too many informational answers")
            self._sink.on_informational(response)
            return
        self._informed = 0
        method, upgrade = self._expected.popleft()
        if status == 101:
            if not upgrade or protocol != upgrade:
                raise BadMessage(502, "an upgrade that nobody asked for")
            self._state = _State.HELD
            self._sink.on_response(response, False)
            return
        if method == b"HEAD" or status == 204 or status == 304 or length == 0:
            self._state = _State.HEAD if keep_alive else _State.IGNORED
            self._sink.on_response(response, keep_alive)
            self._sink.on_end([])
            return
        if length is None:
            keep_alive = False
            response.length = -1
            self._state = _State.UNTIL_EOF
        elif length < 0:
            response.length = -1
            self._state, self._chunks = _State.CHUNKED, Chunks(self._sink.on_body, self._limits)
        else:
            response.length = length
            self._state, self._left = _State.LENGTH, length
        self._keep_alive = keep_alive
        self._sink.on_response(response, keep_alive)

    def _finish(self, piece: bytes, trailers: Headers) -> None:
        self._state = _State.HEAD if self._keep_alive else _State.IGNORED
        if piece:
            self._sink.on_body(piece)
        self._sink.on_end(trailers)
