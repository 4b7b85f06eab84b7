"""A CONNECT stream of a tunnel as a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.h2.connection import Stream
from mesh.h2.frames import ErrorCode
from noded.data.engine import Engine
from noded.data.http.transport import LOW, Gathering, Reader

if TYPE_CHECKING:
    from noded.data.tunnel import Tunnel

_WRITE = 65_536


class StreamTransport(Gathering, Stream):
    """A CONNECT stream of a tunnel, from the 200 on."""

    __slots__ = (
        "_closing",
        "_engine",
        "_eof",
        "_full",
        "_held",
        "_kept",
        "_out",
        "_shut",
        "_unsent",
        "closed",
        "established",
        "reader",
        "received",
        "sent",
        "tunnel",
    )

    def __init__(self, engine: Engine, reader: Reader) -> None:
        super().__init__()
        self._engine, self.reader = engine, reader
        self.tunnel: Tunnel
        """Set when the stream is opened or taken over."""
        self._out: list[bytes] = []
        self._kept = bytearray()
        """Arrived, but not handed on while held: at most a stream window."""
        self._unsent = self.received = self.sent = 0
        self._held = self._eof = self._full = self._shut = self._closing = self.closed = self.established = False

    @property
    def retiring(self) -> bool:
        """As `Transport` has it."""
        return self.established and self.tunnel.connection.closing

    def adopt(self, stream: Stream, tunnel: Tunnel, first: bytes) -> None:
        """Take a live stream over from its owner, with the bytes that it has kept."""
        self.take_over(stream)
        self.tunnel, self.established = tunnel, True
        self._kept += first
        self.received = len(first)
        self._held = True
        self.release()

    @property
    def held(self) -> int:
        """As `Transport` has it."""
        return self._unsent + len(self._kept)

    # -- writing ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand to the tunnel what has gathered, as far as its windows allow."""
        if self.closed or not self.established:
            return
        if self._out:
            self._push()
        if not self._out and not self.closed:
            if self._closing:
                self._finish()
            elif self._shut and not self.ended & 1:
                self.connection.end(self)
                self._engine.mark(self.tunnel)

    def _push(self) -> None:
        out, connection, tunnel = self._out, self.connection, self.tunnel
        data = out[0] if len(out) == 1 else b"".join(out)
        size, at = len(data), 0
        while at < size and not tunnel.blocked:
            room = min(self.send_window, connection.send_window, _WRITE)
            if room <= 0:
                break
            connection.send_data(self, data if size <= room else data[at : at + room])
            at += min(room, size - at)
        out.clear()
        if at:
            self.sent += at
            self._unsent -= at
            self._engine.mark(tunnel)
        if at < size:
            out.append(data[at:])
            tunnel.waiting.add(self)
        if self._full and self._unsent < LOW:
            self._full = False
            self.reader.on_room()

    def resume(self) -> None:
        """There may be room in the tunnel again."""
        if self._out and not self.closed:
            self._engine.mark(self)

    on_window = resume

    # -- reading ------------------------------------------------------------------------------------------------------

    def on_data(self, data: memoryview) -> int:
        """As `Stream` has it."""
        if self.closed or self._closing:
            return len(data)
        self.received += len(data)
        if self._held or self._kept:
            self._kept += data
            return 0
        self.reader.on_bytes(bytes(data))
        return len(data)

    def hold(self) -> None:
        """As `Transport` has it."""
        self._held = True

    def release(self) -> None:
        """As `Transport` has it."""
        if not self._held:
            return
        self._held = False
        if self._kept:
            kept, self._kept = bytes(self._kept), bytearray()
            self.reader.on_bytes(kept)
            if not self.closed and self.connection.streams.get(self.stream_id) is self:
                self.connection.delivered(self, len(kept))
                self._engine.mark(self.tunnel)
        if self._eof and not (self._held or self._kept or self._closing or self.closed):
            self._eof = False
            self.reader.on_eof()

    def on_headers(self, fields: list[tuple[bytes, bytes]], end: bool) -> None:
        """Trailers: they end the stream, and mean nothing here."""
        if end:
            self.on_end()

    def on_end(self) -> None:
        """As `Stream` has it."""
        if self.closed:
            return
        if self._held or self._kept:
            self._eof = True
        elif not self._closing:
            self.reader.on_eof()

    def on_reset(self, code: int) -> None:
        """As `Stream` has it."""
        self.lost(f"the peer reset the stream ({code})")

    def lost(self, reason: str) -> None:
        """It is gone, or never came to be."""
        if self.closed:
            return
        self._drop()
        if not self._closing:
            self.reader.on_lost(reason)

    # -- its end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """As `Transport` has it."""
        if not self._closing and not self.closed:
            self._closing = True
            self._kept.clear()
            if self.established:
                self._engine.mark(self)
            else:
                self._drop()

    def reset(self) -> None:
        """As `Transport` has it."""
        if not self.closed:
            if self.established:
                self.connection.reset(self, ErrorCode.CONNECT_ERROR)
                self._engine.mark(self.tunnel)
            self._drop()

    def _finish(self) -> None:
        connection = self.connection
        if not self.ended & 1:
            connection.end(self)
        if connection.streams.get(self.stream_id) is self:  # the peer has not ended: it need not any more
            connection.reset(self, ErrorCode.NO_ERROR)
        self._engine.mark(self.tunnel)
        self._drop()

    def _drop(self) -> None:
        self.closed = True
        self._out.clear()
        self._kept.clear()
        if self.established:
            self.tunnel.waiting.discard(self)

    def abort(self, reason: str) -> None:
        """As `engine.Handler` has it."""
        if not self.closed:
            self.reset()
            self.reader.on_lost(reason)
