"""A connection to a backend that speaks HTTP/2, carrying many requests at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from mesh.h2.connection import LOCAL_ENDED, MAX_STREAMS, Budget, ConnectionFailed
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields
from mesh.h2.messages import read_response, write_request
from mesh.http1 import BadMessage, Limits
from mesh.message import Headers, Request
from noded.data.engine import Engine
from noded.data.http.streams import Http2, MessageStream
from noded.data.http.transport import flags_of

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange

_IDLE_TICKS = 12
"""Ticks of 5 s without a stream, after which the connection is closed."""
_PING_TICKS, _DEAD_TICKS = 62, 74
"""Ticks of silence on a connection with streams: after which the backend is asked for a sign of life, and given up.
gRPC's servers take more than one PING in 5 minutes for abuse."""


_STUCK_TICKS = 12
"""Ticks that a backend may leave all that we send unread, while that is too much to add to."""
_MOST_INFORMED = Limits().informational


class Keeper(Protocol):
    """Who a backend's connection belongs to."""

    streams: int
    """How many requests at a time the backend takes on a connection, as far as is known."""

    def gone2(self, connection: Http2Client) -> None:
        """It is closed."""


class Http2Client(Http2):
    """Reads a transport; its streams are the calls of exchanges."""

    __slots__ = ("_idle", "_keeper", "_silent", "carried", "reason")

    def __init__(self, engine: Engine, budget: Budget, keeper: Keeper) -> None:
        super().__init__(engine, budget, client=True, max_streams=MAX_STREAMS)
        self._keeper = keeper
        self.carried = 0
        """Requests so far."""
        self.reason = ""
        """Why it is closed, if it broke."""
        self._idle = self._silent = 0
        self.connection.peer_max_streams = keeper.streams

    def on_ready(self) -> None:
        """See `mesh.h2.connection.Owner`. Some backends take one stream too many for the end of all."""
        self._keeper.streams = self.connection.peer_max_streams
        if not self.connection.peer_max_streams:  # of no use to another request, and each would leave one behind
            self.close()

    @property
    def room(self) -> bool:
        """Whether another request can be sent on it now."""
        connection = self.connection
        return not connection.closing and len(connection.streams) < min(connection.peer_max_streams, MAX_STREAMS)

    def call(self, exchange: Exchange) -> ClientStream:
        """A call for this exchange. The caller has checked `room`, and `Call.head` follows at once."""
        self.carried += 1
        return ClientStream(self, exchange)

    # -- its end ------------------------------------------------------------------------------------------------------

    def broken(self, error: ConnectionFailed) -> None:
        """See `Http2`."""
        self._drop(f"bad response: {error}", "UPE")
        self.transport.close()

    def on_eof(self) -> None:
        """See `transport.Reader`."""
        self.lost("the backend closed the connection")

    def lost(self, reason: str) -> None:
        """See `Http2`."""
        if not self.closed:
            self._drop(reason, "")
            self.transport.reset()

    def _drop(self, reason: str, flags: str) -> None:
        self.closed = True
        self.reason = reason
        self._keeper.gone2(self)
        flags = flags or flags_of(self.transport, reason)
        self.waiting.clear()
        for stream in [cast(ClientStream, stream) for stream in self.connection.streams.values()]:
            stream.failed(reason, flags)
        self.connection.fail(ErrorCode.CANCEL)

    def over(self) -> None:
        """See `Http2`."""
        if not self.closed:
            self.closed = True
            self.transport.close()
            self._keeper.gone2(self)

    def close(self) -> None:
        """Take no more requests; close when those under way are answered."""
        self.connection.goaway()
        self.engine.mark(self)

    def tick(self) -> None:
        """Call every 5 s: notices a dead backend, and when the connection is of no more use."""
        if self.closed:
            return
        connection = self.connection
        if failing := self.stalled(_STUCK_TICKS):
            self.lost(f"the backend {failing}")
            return
        self._idle = 0 if connection.streams else self._idle + 1
        self._silent = 0 if self.heard else self._silent + 1
        self.heard = False
        if self._idle > _IDLE_TICKS or (self._idle and not connection.peer_max_streams):
            self.close()
        elif self._silent > _DEAD_TICKS and connection.streams:
            self.lost("the backend does not answer")
        elif self._silent > _PING_TICKS and connection.streams and not connection.ping_outstanding:
            connection.ping()
        if connection.out:
            self.engine.mark(self)


class ClientStream(MessageStream):
    """A request on its way to a backend."""

    __slots__ = ("_answered", "_head_only", "_informed", "_refused", "carried")

    wire: Http2Client

    def __init__(self, wire: Http2Client, exchange: Exchange) -> None:
        super().__init__(wire)
        self.exchange = exchange
        self.carried = wire.carried
        self._answered = self._head_only = self._refused = False
        self._informed = 0
        """Informational answers so far."""

    # -- as the exchange's call ---------------------------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """See `Call`. What the backend refused unseen counts as if there was none."""
        return self.wire.transport.established and not self._refused

    def head(self, request: Request) -> None:
        """See `Call`."""
        wire = self.wire
        self._head_only = request.method == b"HEAD"
        self._left = length = request.length
        wire.connection.open(self, write_request(request), not length)
        wire.engine.mark(wire)

    def end(self, trailers: Headers) -> None:
        """See `Call`."""
        self.finish(trailers)

    def cancel(self) -> None:
        """See `Call`."""
        self.drop(ErrorCode.CANCEL)

    def on_room(self) -> None:
        """See `MessageStream`."""
        if self.exchange is not None:
            self.exchange.on_call_room()

    # -- what the backend sends ---------------------------------------------------------------------------------------

    def on_headers(self, fields: Fields, end: bool) -> None:
        """See `Stream`."""
        exchange = self.exchange
        if exchange is None:
            return
        if self._answered:
            self.on_tail(fields, end)
            return
        try:
            response = read_response(fields, end, self._head_only)
        except BadMessage as error:
            self.malformed(error)
            return
        if response.status < 200:
            self._informed += 1
            if self._informed > _MOST_INFORMED:
                self.malformed(BadMessage(502, "too many informational answers"))
            else:
                exchange.on_informational(response)
            return
        self._answered = True
        self._to_come = response.length
        exchange.on_response(response)
        if end:
            self.on_complete([])

    def on_body(self, data: bytes) -> None:
        """See `MessageStream`."""
        if self.exchange is None:
            return
        if self._answered:
            self.exchange.on_response_data(data)
        else:
            self.malformed(BadMessage(502, "a body before the status"))

    def on_complete(self, trailers: Headers) -> None:
        """See `MessageStream`."""
        exchange = self.exchange
        if exchange is None:
            return
        if not self._answered:
            self.malformed(BadMessage(502, "the end before a status"))
            return
        self.exchange = None
        if not self.ended & LOCAL_ENDED:  # answered before all of the request was there: it needs no more of it
            self.drop(ErrorCode.NO_ERROR)
        exchange.on_response_end(trailers)

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        self._refused = code == ErrorCode.REFUSED_STREAM
        self.wire.waiting.pop(self, None)
        self.failed(f"the backend reset the stream ({code})", "UR")

    def malformed(self, error: BadMessage) -> None:
        """See `MessageStream`."""
        exchange = self.exchange
        self.drop(ErrorCode.PROTOCOL_ERROR)
        if exchange is not None:
            exchange.on_failed(f"bad response: {error.reason}", "UPE", self)

    def give_up(self) -> None:
        """See `MessageStream`."""
        exchange = self.exchange
        self.drop(ErrorCode.CANCEL)
        if exchange is not None:
            exchange.on_failed("the backend takes no more of the request", "UT", self)

    def failed(self, reason: str, flags: str) -> None:
        """It ended before its answer was complete."""
        exchange, self.exchange = self.exchange, None
        self._out = self._kept = None
        if exchange is not None:
            exchange.on_failed(reason, flags, self)
