"""A client's HTTP/2 connection: each stream is a request, and the responder of its exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mesh.h2.connection import Budget, ConnectionFailed
from mesh.h2.frames import MAX_WINDOW, ErrorCode, goaway
from mesh.h2.headers import Fields
from mesh.h2.messages import read_request, write_response
from mesh.http1 import BadMessage
from mesh.message import Headers, Response
from noded.data.engine import Engine
from noded.data.http.server import Begin
from noded.data.http.streams import Http2, MessageStream

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange

_MOST_STREAMS = 1000
"""Requests at a time. gRPC has one connection for all calls of a channel, some of which last for hours."""
_IDLE_TICKS = 720
"""Ticks of 5 s without a stream, after which the connection is closed."""
_STUCK_TICKS = 60
"""Ticks that a client may leave all that we send unread, while that is too much to add to."""
_PING_TICKS, _DEAD_TICKS = 12, 24
"""Ticks of silence on a connection with streams: after which the client is asked for a sign of life, and given up."""


class Http2Server(Http2):
    """Reads a transport; makes an exchange of each stream."""

    __slots__ = ("_begin", "_draining", "_held", "_on_end", "_refuse", "_silent")

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        begin: Begin,
        refuse: Callable[[BadMessage], None],
        on_end: Callable[[str, str], None],
    ) -> None:
        """`refuse` is told of a message that is none, `on_end(flags, reason)` that the connection is over."""
        super().__init__(engine, budget, client=False, max_streams=_MOST_STREAMS)
        self._begin, self._refuse, self._on_end = begin, refuse, on_end
        self._held = self._draining = False
        self._silent = 0

    def on_request(self) -> ServerStream:
        """See `mesh.h2.connection.Owner`."""
        return ServerStream(self)

    def exchange(self, stream: ServerStream, fields: Fields, end: bool) -> Exchange | None:
        """Make the exchange for what a stream begins with."""
        try:
            request = read_request(fields, end)
        except BadMessage as error:
            self.refused(error)
            if error.status == 400:
                stream.drop(ErrorCode.PROTOCOL_ERROR)
            else:
                self.connection.send_headers(stream, write_response(Response(error.status)), True)
                stream.drop(ErrorCode.NO_ERROR)
            return None
        stream.expect(request.length)
        return self._begin(stream, request)

    def refused(self, error: BadMessage) -> None:
        """A message was none."""
        self.connection.nuisance()
        self._refuse(error)

    def flush(self) -> None:
        """Hand to the transport what has gathered; read no more requests while it takes no answers."""
        super().flush()
        if not self._held and not self.closed and self.transport.full:
            self._held = True
            self.transport.hold()

    def on_room(self) -> None:
        """See `transport.Reader`."""
        super().on_room()
        if self._held:
            self._held = False
            self.transport.release()

    # -- its end ------------------------------------------------------------------------------------------------------

    def _streams(self) -> list[ServerStream]:
        return [cast(ServerStream, stream) for stream in self.connection.streams.values()]

    def broken(self, error: ConnectionFailed) -> None:
        """See `Http2`."""
        self._refuse(BadMessage(400, str(error)))
        self._ended(str(error), "DPE")
        self.transport.close()
        self._on_end("DPE", str(error))

    def on_eof(self) -> None:
        """See `transport.Reader`. Without the client's window updates nothing more can be said."""
        self.lost("the client closed the connection")

    def lost(self, reason: str) -> None:
        """See `Http2`."""
        if self.closed:
            return
        busy = self._ended(reason, "DC")
        self.transport.close()
        self._on_end("DC" if busy else "-", reason if busy else "")

    def _give_up(self, reason: str) -> None:
        self.lost(reason)
        self.transport.reset()  # what it has not read it never will

    def _ended(self, reason: str, flags: str) -> bool:
        """Tell the exchanges; whether there were any."""
        self.closed = True
        streams = self._streams()
        for stream in streams:
            exchange, stream.exchange = stream.exchange, None
            if exchange is not None:
                exchange.on_gone(reason, flags)
        self.connection.fail(ErrorCode.CANCEL)
        self.waiting.clear()
        return bool(streams)

    def over(self) -> None:
        """See `Http2`."""
        if not self.closed:
            self.closed = True
            self.transport.close()
            self._on_end("-", "")

    def stop(self, reason: str, flags: str) -> None:
        """Reset the connection now. `on_end` is not called."""
        if not self.closed:
            self._ended(reason, flags)
            self.transport.reset()

    def recheck(self) -> None:
        """Policies changed."""
        for stream in self._streams():
            if stream.exchange is not None:
                stream.exchange.recheck()

    def drain(self) -> None:
        """Close when the answers under way were given; what the client sends meanwhile is still served."""
        if self.closed or self._draining:
            return
        self._draining = True
        if self.connection.streams:
            self.connection.out.append(goaway(MAX_WINDOW, ErrorCode.NO_ERROR))
        else:
            self.connection.goaway()
        self.engine.mark(self)

    @property
    def held(self) -> int:
        """Bytes that wait for it, and of its requests."""
        held = self.transport.held
        for stream in self._streams():
            held += stream.held
            if stream.exchange is not None:
                held += stream.exchange.held
        return held

    def tick(self) -> None:
        """Call every 5 s: ends a connection that keeps us waiting."""
        if self.closed:
            return
        connection = self.connection
        if failing := self.stalled(_STUCK_TICKS):
            self._give_up(f"the client {failing}")
            return
        if self._draining:
            connection.goaway()
        self._silent = 0 if self.heard else self._silent + 1
        self.heard = False
        if not connection.streams:
            if self._silent > _IDLE_TICKS:
                connection.goaway()
        elif self._silent > _DEAD_TICKS and not self._held:
            self._give_up("the client does not answer")
            return
        elif self._silent > _PING_TICKS and not connection.ping_outstanding:
            connection.ping()
        if connection.out:
            self.engine.mark(self)


class ServerStream(MessageStream):
    """A request of a client's; the responder of its exchange."""

    __slots__ = ("_begun",)

    wire: Http2Server

    def __init__(self, wire: Http2Server) -> None:
        super().__init__(wire)
        self._begun = False

    def expect(self, length: int) -> None:
        """How long the request's body is; -1 if it does not say."""
        self._to_come = length

    def on_headers(self, fields: Fields, end: bool) -> None:
        """See `Stream`."""
        if self._begun:
            self.on_tail(fields, end)
            return
        self._begun = True
        exchange = self.exchange = self.wire.exchange(self, fields, end)
        if exchange is not None:
            exchange.begin()
            if end:
                exchange.on_end([])

    def on_body(self, data: bytes) -> None:
        """See `MessageStream`."""
        if self.exchange is not None:
            self.exchange.on_body(data)

    def on_complete(self, trailers: Headers) -> None:
        """See `MessageStream`."""
        if self.exchange is not None:
            self.exchange.on_end(trailers)

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        self._over(f"the client reset the stream ({code})", "DR", ErrorCode.CANCEL)

    def malformed(self, error: BadMessage) -> None:
        """See `MessageStream`."""
        self.wire.refused(error)
        self._over(f"bad request: {error.reason}", "DPE", ErrorCode.PROTOCOL_ERROR)

    def give_up(self) -> None:
        """See `MessageStream`."""
        self._over("the client takes no more of the answer", "SI", ErrorCode.CANCEL)

    def _over(self, reason: str, flags: str, code: ErrorCode) -> None:
        exchange = self.exchange
        self.drop(code)
        if exchange is not None:
            exchange.on_gone(reason, flags)

    # -- as the exchange's responder ----------------------------------------------------------------------------------

    def informational(self, response: Response) -> None:
        """See `Responder`."""
        if self.connection.streams.get(self.stream_id) is self:
            self.connection.send_headers(self, write_response(response))
            self.wire.engine.mark(self.wire)

    def head(self, response: Response) -> None:
        """See `Responder`."""
        connection, wire = self.connection, self.wire
        if connection.streams.get(self.stream_id) is not self:
            return
        self._left = response.length
        connection.send_headers(self, write_response(response), not response.length)
        wire.engine.mark(wire)

    def end(self, trailers: Headers) -> None:
        """See `Responder`."""
        self.exchange = None
        self.finish(trailers)

    def all_sent(self) -> None:
        """See `MessageStream`."""
        if self.connection.streams.get(self.stream_id) is self:
            self.drop(ErrorCode.NO_ERROR)  # answered before all of the request was there: we need no more of it

    def abort(self) -> None:
        """See `Responder`."""
        self.drop(ErrorCode.INTERNAL_ERROR)

    def on_room(self) -> None:
        """See `MessageStream`."""
        if self.exchange is not None:
            self.exchange.on_room()
