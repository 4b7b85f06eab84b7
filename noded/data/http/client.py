"""A connection to a backend that speaks HTTP/1.1, carrying one request at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mesh.http1 import BadMessage, ResponseParser, chunk, last_chunk, write_request
from mesh.message import Headers, Request, Response
from noded.data.http.transport import Transport, flags_of

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange


class Call(Protocol):
    """A request on its way to a backend, whatever the version of HTTP. Its exchange hears of it."""

    carried: int
    """How many requests its connection has carried, this one included."""

    @property
    def established(self) -> bool:
        """Whether there was a connection that may have taken some of the request to the backend."""

    @property
    def full(self) -> bool:
        """Whether to stop sending for now; `Exchange.on_call_room` follows."""

    @property
    def held(self) -> int:
        """Bytes that wait in it."""

    def head(self, request: Request) -> None:
        """Send the request's head."""

    def data(self, data: bytes) -> None:
        """Send some of its body."""

    def end(self, trailers: Headers) -> None:
        """That was all of it."""

    def cancel(self) -> None:
        """Nobody wants the answer: the exchange hears no more of it."""

    def hold(self) -> None:
        """Stop reading the response."""

    def release(self) -> None:
        """Read on."""


class Keeper(Protocol):
    """Who a backend's connection belongs to."""

    def idle(self, connection: Http1Client) -> None:
        """It can carry another request."""

    def gone(self, connection: Http1Client) -> None:
        """It cannot, ever."""


class Http1Client:
    """Reads a transport; is the call of the exchange under way."""

    __slots__ = (
        "_chunked",
        "_exchange",
        "_keep_alive",
        "_keeper",
        "_parser",
        "_raw",
        "_sent_all",
        "_sent_before",
        "_trailers",
        "carried",
        "closed",
        "reason",
        "stale",
        "ticks",
        "transport",
    )

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.transport: Transport
        """Set by whoever joins the two."""
        self._parser = ResponseParser(self)
        self._exchange: Exchange | None = None
        self._sent_all = self._keep_alive = self._chunked = self._raw = self.closed = False
        self._trailers: Headers | None = None
        """Of the response that is complete."""
        self.reason = ""
        """Why it is closed, if it broke."""
        self.carried = 0
        """Requests so far."""
        self.stale = False
        """It is of no more use once its exchange is over. For the keeper."""
        self.ticks = self._sent_before = 0

    # -- as the exchange's call ---------------------------------------------------------------------------------------

    def start(self, exchange: Exchange) -> None:
        """Be the call of this exchange."""
        self._exchange = exchange
        self._sent_all = False
        self.carried += 1
        self.ticks = 0
        if self.carried > 1:
            self._sent_before = self.transport.sent

    @property
    def established(self) -> bool:
        """See `Call`."""
        return self.transport.sent > self._sent_before

    @property
    def full(self) -> bool:
        """See `Call`."""
        return self.transport.full

    @property
    def held(self) -> int:
        """See `Call`."""
        return self.transport.held

    def head(self, request: Request) -> None:
        """See `Call`."""
        self._parser.expect(request.method, request.upgrade)
        self._chunked = request.length < 0
        self._raw = False
        self.transport.write(write_request(request))

    def data(self, data: bytes) -> None:
        """See `Call`."""
        self.transport.write(chunk(data) if self._chunked and not self._raw else data)

    def end(self, trailers: Headers) -> None:
        """See `Call`."""
        if self._raw:
            self.transport.end()
            return
        if self._chunked:
            self.transport.write(last_chunk(trailers))
        self._sent_all = True

    def cancel(self) -> None:
        """See `Call`."""
        if self._exchange is not None and not self.closed:
            self._exchange = None
            self.closed = True
            self.transport.reset()
            self._keeper.gone(self)

    def hold(self) -> None:
        """See `Call`."""
        self.transport.hold()

    def release(self) -> None:
        """See `Call`."""
        self.transport.release()

    # -- as the transport's reader ------------------------------------------------------------------------------------

    def on_bytes(self, data: bytes) -> None:
        """See `transport.Reader`."""
        if self._exchange is None or self.transport.sent == self._sent_before:
            self._drop("the backend sent bytes that nobody asked for")
            return
        try:
            self._parser.feed(data)
        except BadMessage as error:
            if self._trailers is None:
                self._drop(f"bad response: {error.reason}", "UPE")
                return
            self._keep_alive = False  # a whole response, and bytes that nobody asked for
        if self._trailers is not None:
            self._complete()

    def on_eof(self) -> None:
        """See `transport.Reader`."""
        if self._exchange is None:
            self._drop("")
            return
        try:
            self._parser.eof()
        except BadMessage as error:
            self._drop(error.reason)
            return
        self._keep_alive = False
        if self._trailers is not None:
            self._complete()
        elif self._raw:
            self._trailers = []
            self._complete()
        else:
            self._drop("the backend closed the connection before it answered")

    def on_lost(self, reason: str) -> None:
        """See `transport.Reader`."""
        self._drop(reason)

    def on_room(self) -> None:
        """See `transport.Reader`."""
        if self._exchange is not None:
            self._exchange.on_call_room()

    def _drop(self, reason: str, flags: str = "") -> None:
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self.transport.reset()
        self._keeper.gone(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_failed(reason, flags or flags_of(self.transport, reason), self)

    # -- as the parser's sink -----------------------------------------------------------------------------------------

    def on_informational(self, response: Response) -> None:
        """See `mesh.http1.ResponseSink`."""
        assert self._exchange is not None
        self._exchange.on_informational(response)

    def on_response(self, response: Response, keep_alive: bool) -> None:
        """See `mesh.http1.ResponseSink`."""
        self._keep_alive = keep_alive
        if response.status == 101:
            self._raw = True
            self._parser.switch()
        if self._exchange is not None:
            self._exchange.on_response(response)

    def on_body(self, data: bytes) -> None:
        """See `mesh.http1.ResponseSink`."""
        if self._exchange is not None:
            self._exchange.on_response_data(data)

    on_rest = on_body

    def on_end(self, trailers: Headers) -> None:
        """See `mesh.http1.ResponseSink`. Acted on when the parser is done: what follows must not be the next answer."""
        self._trailers = trailers

    def _complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        trailers, self._trailers = self._trailers, None
        if not self.closed:
            if self._keep_alive and self._sent_all:
                self.transport.release()  # held, if the client was slow to take the last of it
                if not self.closed:
                    self._keeper.idle(self)
            else:
                self.close()
        if exchange is not None:
            exchange.on_response_end(trailers or [])

    def close(self) -> None:
        """Close in order."""
        if not self.closed:
            self.closed = True
            self.transport.close()
            self._keeper.gone(self)
