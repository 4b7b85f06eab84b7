"""An HTTP/2 connection over a transport, and messages on its streams: what a client's and a backend's have in common.

Frames of all streams gather during a turn of the engine and leave in one piece. Data waits at its stream where a
window or the transport is full; whoever produces it is told to stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.h2.connection import LOCAL_ENDED, Budget, Connection, ConnectionFailed, Stream
from mesh.h2.frames import ErrorCode
from mesh.h2.messages import read_trailers, write_trailers
from mesh.http1 import BadMessage
from mesh.message import Headers
from noded.data.engine import Engine
from noded.data.http.transport import Transport

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange

HIGH, LOW = 65_536, 16_384
"""Bytes that wait at one stream: above, its producer is stopped, and goes on below."""
_PIECE = 65_536
"""Most that is handed on at once of what has waited."""
_MANY = 2000
"""Pieces that a connection gathers before it writes them, for the turn goes on."""
_STALL_TICKS = 60
"""Ticks of 5 s that a stream's data may wait for the peer to take any of it."""
_READY_TICKS = 12
"""Ticks that the peer has for its SETTINGS, or for the rest of a frame."""


class Http2:
    """Reads a transport; the owner of the HTTP/2 connection over it."""

    __slots__ = (
        "_half",
        "_rest",
        "_roomy",
        "_sent",
        "_stuck",
        "closed",
        "connection",
        "engine",
        "heard",
        "transport",
        "waiting",
    )

    def __init__(self, engine: Engine, budget: Budget, *, client: bool, max_streams: int) -> None:
        self.engine = engine
        self.transport: Transport
        """Set by whoever joins the two, in the turn in which this is made."""
        self.connection = Connection(self, client=client, budget=budget, max_streams=max_streams)
        self.waiting: dict[MessageStream, None] = {}
        """Those with data that cannot be sent yet, in the order of their turns."""
        self._roomy = False
        """The connection's window was used up and is not any more: those that wait go on at the end of the turn. A peer
        that gives it a byte at a time, a thousand times in one read, has them looked at once.
        """
        self.closed = False
        self.heard = True
        """Since the last tick."""
        self._half = 0
        """Ticks since which a frame, or the first one, is incomplete."""
        self._sent = self._stuck = 0
        """Bytes at the last tick; ticks since which that is so, and the transport full."""
        self._rest = b""
        engine.mark(self)

    # -- as the transport's reader ------------------------------------------------------------------------------------

    def on_bytes(self, data: bytes) -> None:
        """See `transport.Reader`."""
        if self.closed:
            return
        self.heard = True
        connection = self.connection
        if len(connection.out) > _MANY:  # of the same turn: the connection would take it for answers that nobody reads
            self._write()
        if self._rest:
            data = self._rest + data
        try:
            used = connection.receive(data, memoryview(data), len(data))
        except ConnectionFailed as error:
            self._rest = b""
            self._write()  # the GOAWAY
            self.broken(error)
            return
        if used:
            self._half = 0
        self._rest = data[used:] if used < len(data) else b""
        if connection.out or connection.closing:
            self.engine.mark(self)

    def on_lost(self, reason: str) -> None:
        """See `transport.Reader`."""
        self.lost(reason)

    def on_room(self) -> None:
        """See `transport.Reader`."""
        self._resume()

    # -- as the connection's owner ------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """See `mesh.h2.connection.Owner`."""

    def on_request(self) -> Stream:
        """See `mesh.h2.connection.Owner`."""
        raise NotImplementedError

    def on_goaway(self, code: int) -> None:
        """See `mesh.h2.connection.Owner`."""
        self.engine.mark(self)

    def on_window(self) -> None:
        """See `mesh.h2.connection.Owner`."""
        self._roomy = True
        self.engine.mark(self)

    def _resume(self) -> None:
        self._roomy = False
        waiting = self.waiting
        for stream in list(waiting):
            if self.connection.send_window <= 0 or self.transport.full:
                break
            if stream in waiting:  # and not ended by one before it
                del waiting[stream]
                stream.pump()

    # -- writing ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand to the transport what has gathered."""
        if not self.closed:
            if self._roomy:
                self._resume()
            self._write()
            if self.connection.closing and not self.connection.streams:
                self.over()

    def _write(self) -> None:
        out = self.connection.out
        if out:
            data = b"".join(out)
            out.clear()
            self.transport.write(data)

    # -- its end ------------------------------------------------------------------------------------------------------

    def broken(self, error: ConnectionFailed) -> None:
        """The peer broke the protocol, and was told."""
        raise NotImplementedError

    def lost(self, reason: str) -> None:
        """The transport is gone, or of no more use."""
        raise NotImplementedError

    def over(self) -> None:
        """No stream is left and none will come: close in order."""
        raise NotImplementedError

    def stalled(self, most: int) -> str:
        """Forgive nuisances, end streams whose data the peer does not take; what it fails to do itself, if anything.

        `most` is how many ticks it may read nothing while we have more to send than we should. Call every 5 s.
        """
        connection = self.connection
        connection.tick()
        if self._rest or not connection.ready:
            self._half += 1
        for stream in list(self.waiting):
            stream.stalled += 1
            if stream.stalled > _STALL_TICKS:
                stream.give_up()
        if self._half > _READY_TICKS:
            return "does not go on with its frame" if connection.ready else "sent no SETTINGS"
        sent, self._sent = self._sent, self.transport.sent
        self._stuck = self._stuck + 1 if self.transport.full and self._sent == sent else 0
        return "does not read" if self._stuck > most else ""

    def abort(self, reason: str) -> None:
        """As `engine.Handler` has it."""
        self.lost(reason)


class MessageStream(Stream):
    """One request and its response. `exchange` hears of it until it is None."""

    __slots__ = (
        "_full",
        "_held",
        "_kept",
        "_left",
        "_out",
        "_tail",
        "_to_come",
        "_trailers",
        "exchange",
        "stalled",
        "wire",
    )

    def __init__(self, wire: Http2) -> None:
        super().__init__()
        self.wire = wire
        self.connection = wire.connection
        self.exchange: Exchange | None = None
        self._out: bytearray | None = None
        """What cannot be sent yet."""
        self._left = -1
        """Of the body that is sent: what is to come, if that is known."""
        self._tail: Headers | None = None
        """All was written; these are the trailers behind it."""
        self._full = self._held = False
        self._kept: bytearray | None = None
        """What arrived while held."""
        self._to_come = -1
        """Of the body that is received: what is to come, if that is known."""
        self._trailers: Headers | None = None
        """What arrived behind a body that is not handed on yet."""
        self.stalled = 0

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether one should stop writing for now."""
        return self._full

    @property
    def held(self) -> int:
        """Bytes that wait here, either way."""
        return len(self._out or b"") + len(self._kept or b"")

    def data(self, data: bytes) -> None:
        """Send some of the body."""
        if self.ended & LOCAL_ENDED:
            return
        wire, connection, size = self.wire, self.connection, len(data)
        last = False
        if self._left > 0:
            self._left -= size
            last = self._left <= 0
        if (
            self._out is None
            and size <= self.send_window
            and size <= connection.send_window
            and size
            and not wire.transport.full
        ):
            connection.send_data(self, data, last)
            wire.engine.mark(wire)
            return
        if size:
            if self._out is None:
                self._out = bytearray()
            self._out += data
            if len(self._out) > HIGH:
                self._full = True
        if last:
            self._tail = []
        self.pump()

    def finish(self, trailers: Headers) -> None:
        """All of it was written."""
        if self.ended & LOCAL_ENDED:
            self.all_sent()
            return
        self._tail = trailers
        if self._out is None:
            self._finish()

    def pump(self) -> None:
        """Send what waits, as far as windows and the transport allow."""
        out, connection, wire = self._out, self.connection, self.wire
        if out is None or connection.streams.get(self.stream_id) is not self:
            return
        while out:
            room = min(self.send_window, connection.send_window)
            if room <= 0 or wire.transport.full:
                wire.waiting[self] = None
                break
            data = bytes(out[: min(room, _PIECE)])
            del out[: len(data)]
            self.stalled = 0
            connection.send_data(self, data, not out and self._tail == [])
        else:
            self._out = None
            wire.waiting.pop(self, None)
            if self._tail is not None:
                self._finish()
        wire.engine.mark(wire)
        if self._full and len(out) < LOW:
            self._full = False
            self.on_room()

    on_window = pump

    def _finish(self) -> None:
        trailers, wire = self._tail, self.wire
        if not self.ended & LOCAL_ENDED and self.connection.streams.get(self.stream_id) is self:
            block = write_trailers(trailers) if trailers else b""
            if block:
                self.connection.send_headers(self, block, True)
            else:
                self.connection.end(self)
            wire.engine.mark(wire)
        self.all_sent()

    def on_room(self) -> None:
        """It was full, and is not any more."""
        raise NotImplementedError

    def all_sent(self) -> None:
        """The last byte was handed to the connection."""

    def give_up(self) -> None:
        """The peer does not take what is sent."""
        raise NotImplementedError

    def drop(self, code: ErrorCode) -> None:
        """End it now, if it hasn't; nothing more is heard of it."""
        self.exchange = None
        self._out = self._kept = None
        wire = self.wire
        wire.waiting.pop(self, None)
        self.connection.reset(self, code)
        wire.engine.mark(wire)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop handing on what arrives."""
        self._held = True

    def release(self) -> None:
        """Go on."""
        if not self._held:
            return
        self._held = False
        if self._kept is not None:
            kept, self._kept = bytes(self._kept), None
            self.on_body(kept)
            if self.connection.streams.get(self.stream_id) is self:
                self.connection.delivered(self, len(kept))
                self.wire.engine.mark(self.wire)
        if self._trailers is not None and not self._held and self._kept is None:
            trailers, self._trailers = self._trailers, None
            self.on_complete(trailers)

    def on_data(self, data: memoryview) -> int:
        """See `Stream`."""
        size = len(data)
        if self._to_come >= 0:
            self._to_come -= size
            if self._to_come < 0:
                self.malformed(BadMessage(400, "a body longer than its content-length"))
                return size
        if self._held or self._kept is not None:
            if self._kept is None:
                self._kept = bytearray()
            self._kept += data
            return 0
        self.on_body(bytes(data))
        return size

    def on_end(self) -> None:
        """See `Stream`."""
        self.ends([])

    def ends(self, trailers: Headers) -> None:
        """The peer has sent all of its message."""
        if self._to_come > 0:
            self.malformed(BadMessage(400, "a body shorter than its content-length"))
        elif self._held or self._kept is not None:
            self._trailers = trailers
        else:
            self.on_complete(trailers)

    def on_tail(self, fields: Headers, end: bool) -> None:
        """A header block behind the first."""
        try:
            if not end:
                raise BadMessage(400, "headers within a body")
            trailers = read_trailers(fields)
        except BadMessage as error:
            self.malformed(error)
        else:
            self.ends(trailers)

    def on_body(self, data: bytes) -> None:
        """Some of the body."""
        raise NotImplementedError

    def on_complete(self, trailers: Headers) -> None:
        """All of it."""
        raise NotImplementedError

    def malformed(self, error: BadMessage) -> None:
        """The peer's message is none."""
        raise NotImplementedError
