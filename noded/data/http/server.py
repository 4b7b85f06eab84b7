"""A client's HTTP/1.1 connection: requests out of it, one at a time, and their responses into it.

A client may send requests before it has its answers (pipelining). They wait in the parser as the bytes that they are,
at most one read of them, while the transport is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mesh.http1 import BadMessage, RequestParser, chunk, last_chunk, write_response
from mesh.message import Headers, Request, Response
from noded.data.http.transport import Transport

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange

_HEAD_TICKS, _BODY_TICKS, _IDLE_TICKS = 12, 60, 720
"""Ticks of 5 s without a byte: while a request's head is incomplete, while an exchange is under way, between two."""
_DRAIN_TICKS = 2
"""Those between two requests once the peer was told, by the tunnel's GOAWAY, that the connection is to end."""
_LINGER_TICKS = 3
"""Those in which a client may still send what nobody reads, after the last answer."""


class Responder(Protocol):
    """Where an exchange's answer goes, whatever the version of HTTP."""

    @property
    def full(self) -> bool:
        """Whether to stop for now; `Exchange.on_room` follows."""

    def informational(self, response: Response) -> None:
        """A 1xx."""

    def head(self, response: Response) -> None:
        """The answer's head; with status 101, what follows is raw both ways."""

    def data(self, data: bytes) -> None:
        """Some of its body."""

    def end(self, trailers: Headers) -> None:
        """All of it was sent: the exchange is over."""

    def abort(self) -> None:
        """It cannot be completed: let the client see that."""

    def hold(self) -> None:
        """Stop reading the request's body."""

    def release(self) -> None:
        """Read on."""


Begin = Callable[["Responder", Request], "Exchange"]
"""Makes the exchange for a request; `Exchange.begin` then starts it."""


class Http1Server:
    """Reads a transport; is the responder of the exchange under way."""

    __slots__ = (
        "_begin",
        "_busy",
        "_chunked",
        "_close",
        "_closed",
        "_exchange",
        "_head",
        "_held",
        "_http10",
        "_idle",
        "_keep_alive",
        "_lingering",
        "_on_end",
        "_parser",
        "_peer_ended",
        "_raw",
        "_receiving",
        "_refuse",
        "authority",
        "ticks",
        "transport",
    )

    def __init__(self, begin: Begin, refuse: Callable[[BadMessage], None], on_end: Callable[[str, str], None]) -> None:
        """`refuse` is told of a message that is none, `on_end(flags, reason)` that the connection is over."""
        self._begin, self._refuse, self._on_end = begin, refuse, on_end
        self.transport: Transport
        """Set by whoever joins the two."""
        self.authority = b""
        """Of requests that name none: where the client connected to."""
        self._parser = RequestParser(self, stepwise=True)
        self._exchange: Exchange | None = None
        self._receiving = self._keep_alive = self._chunked = self._http10 = False
        self._close = self._lingering = self._raw = self._closed = self._busy = False
        self._peer_ended = self._head = self._held = False
        self._idle = True
        self.ticks = 0

    # -- as the transport's reader ------------------------------------------------------------------------------------

    def on_bytes(self, data: bytes) -> None:
        """See `transport.Reader`."""
        if self._lingering:
            return
        if not self._parser.in_head:  # that one has a time limit from its first byte on
            self.ticks = 0
        self._busy = True
        try:
            self._parser.feed(data)
        except BadMessage as error:
            self._on_bad(error)
        self._busy = False
        if self._exchange is None:
            self._settle()
        elif self._parser.waiting:
            self.transport.hold()

    def _on_bad(self, error: BadMessage) -> None:
        if (exchange := self._exchange) is not None:
            self._close = True
            exchange.reply(error.status, "DPE", f"bad request: {error.reason}", text=error.reason)
        elif not self._receiving:
            self._bad(error)
        # else it was answered before all of it was there, and that was the last answer

    def on_eof(self) -> None:
        """See `transport.Reader`. A client that has sent its requests may shut its side and wait for the answers."""
        self._peer_ended = True
        if self._lingering:
            self._over("-", "")
        elif self._raw and self._exchange is not None:
            self._exchange.on_end([])
        elif self._exchange is None or self._receiving:
            self.on_lost("the client closed the connection")
            self.transport.close()

    def on_lost(self, reason: str) -> None:
        """See `transport.Reader`."""
        if self._closed:
            return
        self._closed = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_gone(reason, "DC")
            self._on_end("DC", reason)
        else:
            self._on_end("-", "")

    def on_room(self) -> None:
        """See `transport.Reader`."""
        if self._exchange is not None:
            self._exchange.on_room()

    # -- as the parser's sink -----------------------------------------------------------------------------------------

    def on_request(self, request: Request, keep_alive: bool) -> None:
        """See `mesh.http1.RequestSink`."""
        self._keep_alive, self._http10 = keep_alive, request.http10
        self._head = request.method == b"HEAD"
        if not request.authority:  # HTTP/1.0 may leave it out
            request.authority = self.authority
        self._receiving, self._idle, self._held = True, False, False
        exchange = self._exchange = self._begin(self, request)
        exchange.begin()

    def on_body(self, data: bytes) -> None:
        """See `mesh.http1.RequestSink`."""
        if self._exchange is not None:
            self._exchange.on_body(data)

    def on_end(self, trailers: Headers) -> None:
        """See `mesh.http1.RequestSink`."""
        self._receiving = False
        if self._exchange is not None:
            self._exchange.on_end(trailers)

    on_rest = on_body

    def _bad(self, error: BadMessage) -> None:
        self._refuse(error)
        body = error.reason.encode("ascii", "replace") + b"\n"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        response = Response(error.status, headers, len(body))
        self.transport.write(write_response(response, keep_alive=False) + body)
        self._linger()

    # -- as the exchange's responder ----------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """See `Responder`."""
        return self.transport.full

    def informational(self, response: Response) -> None:
        """See `Responder`."""
        if not self._http10:
            self.transport.write(write_response(response, keep_alive=True))

    def head(self, response: Response) -> None:
        """See `Responder`."""
        if response.status == 101:
            self._switch(response)
            return
        self._chunked = response.length < 0 and not self._http10
        if response.length < 0 and self._http10:
            self._close = True
        if not self._keep_alive or (self._peer_ended and not self._parser.waiting):
            self._close = True
        self.transport.write(write_response(response, keep_alive=not self._close, http10=self._http10, head=self._head))

    def _switch(self, response: Response) -> None:
        self._raw = True
        self.transport.write(write_response(response, keep_alive=True))
        self._parser.switch()
        if self._exchange is not None:
            if self._peer_ended:
                self._exchange.on_end([])
            self.transport.release()

    def data(self, data: bytes) -> None:
        """See `Responder`."""
        self.transport.write(chunk(data) if self._chunked else data)

    def end(self, trailers: Headers) -> None:
        """See `Responder`."""
        if self._chunked:
            self.transport.write(last_chunk(trailers))
            self._chunked = False
        self._exchange = None
        if self._raw:
            self._over("-", "")
        elif not self._busy:
            self._settle()

    def abort(self) -> None:
        """See `Responder`."""
        self._exchange = None
        if not self._closed:
            self._closed = True
            self.transport.reset()
            self._on_end("-", "")

    def hold(self) -> None:
        """See `Responder`."""
        self._held = True
        self.transport.hold()

    def release(self) -> None:
        """See `Responder`."""
        self._held = False
        if not self._parser.waiting:
            self.transport.release()

    # -- between requests ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """No exchange is under way: go on with what came in the meantime, or end."""
        parser = self._parser
        while not (self._idle or self._closed or self._lingering):
            if self._receiving or self._close or (self._peer_ended and not parser.waiting):
                self._linger()  # also if it was answered before all of the request was there
                return
            self._idle = self._busy = True
            try:
                parser.proceed()
            except BadMessage as error:
                self._on_bad(error)
            self._busy = False
            if self._exchange is not None:
                if parser.waiting:
                    self.transport.hold()
                elif not self._held:
                    self.transport.release()
                return
        if self._closed or self._lingering:
            return
        if self._peer_ended:
            self._over("-", "")
        else:
            self.transport.release()

    def _linger(self) -> None:
        """The last answer was given: end, but read on a little, lest a reset overtakes the answer."""
        self._lingering = True
        self._receiving = False
        self.ticks = 0
        if self._peer_ended:
            self._over("-", "")
            return
        self.transport.end()
        self.transport.release()

    @property
    def held(self) -> int:
        """Bytes that wait for it, and of its request."""
        return self.transport.held + (self._exchange.held if self._exchange is not None else 0)

    def tick(self) -> None:
        """Call every 5 s: ends a connection that keeps us waiting."""
        self.ticks += 1
        if self._lingering:
            if self.ticks > _LINGER_TICKS:
                self._over("-", "")
        elif self._exchange is not None:
            if self._receiving and self.ticks > _BODY_TICKS and not self._raw:
                self._exchange.on_gone("the client sends no more of its request", "SI")
        elif self.ticks > (_HEAD_TICKS if self._parser.in_head else _DRAIN_TICKS if self._close else _IDLE_TICKS):
            self._over("-", "idle")

    def _over(self, flags: str, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self.transport.close()
            self._on_end(flags, reason)

    def stop(self, reason: str, flags: str) -> None:
        """Reset the connection now. `on_end` is not called."""
        if self._closed:
            return
        self._closed = True
        exchange, self._exchange = self._exchange, None
        self.transport.reset()
        if exchange is not None:
            exchange.on_gone(reason, flags)

    def recheck(self) -> None:
        """Policies changed."""
        if self._exchange is not None:
            self._exchange.recheck()

    def drain(self) -> None:
        """Close after the answer under way, or now.

        A peer that knows anyhow may have sent a request in the meantime, which it could not tell from one that is lost.
        """
        self._close = True
        if not (self._exchange is not None or self._lingering or self._parser.in_head or self.transport.retiring):
            self._over("-", "")
