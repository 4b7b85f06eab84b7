"""The bytes of one HTTP connection: a socket, or a stream of a tunnel, behind one interface.

What is written gathers until the end of the engine's turn and leaves in one piece. A transport that holds more unsent
than `HIGH` is `full`; its reader is told with `on_room` when less than `LOW` is left. All methods run in the engine's
task.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from mesh.h2.connection import Stream
from mesh.h2.frames import ErrorCode
from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Engine
from noded.data.sockets import FIRST_READ, orderly

if TYPE_CHECKING:
    from noded.data.tunnel import Tunnel

HIGH, LOW = 131_072, 32_768
_WRITE = 65_536


class Reader(Protocol):
    """Who reads a transport."""

    transport: Transport
    """Writes go there; one that could not be opened may put another in its place."""

    def on_bytes(self, data: bytes) -> None:
        """Bytes arrived. May come once more after `hold`."""

    def on_eof(self) -> None:
        """The peer has sent all it will."""

    def on_lost(self, reason: str) -> None:
        """The connection broke, or never came to be; it is closed. Not called after `close` or `reset`."""

    def on_room(self) -> None:
        """It was full and is not any more."""


class Transport(Protocol):
    """What a connection is to those who read and write it."""

    reader: Reader
    received: int
    sent: int
    closed: bool
    established: bool
    """Whether there was a connection."""

    @property
    def retiring(self) -> bool:
        """Whether what carries it is to end when its connections have: it should not be used again."""

    @property
    def full(self) -> bool:
        """Whether one should stop writing for now."""

    def write(self, data: bytes) -> None:
        """Send this. Ignored once closed."""

    def hold(self) -> None:
        """Stop reading."""

    def release(self) -> None:
        """Read on."""

    def end(self) -> None:
        """Nothing more will be written: half-close after what was."""

    def close(self) -> None:
        """Close in order, after what was written. Nothing more is read."""

    def reset(self) -> None:
        """Drop it now, so that the peer sees a reset."""


class SocketTransport:
    """A TCP connection. Owns the socket."""

    __slots__ = (
        "_closing",
        "_engine",
        "_eof",
        "_fd",
        "_full",
        "_held",
        "_muted",
        "_out",
        "_pending",
        "_recv",
        "_send",
        "_shut",
        "_sock",
        "_unsent",
        "closed",
        "established",
        "reader",
        "received",
        "sent",
    )

    def __init__(self, engine: Engine, reader: Reader, sock: socket.socket | None = None) -> None:
        self._engine, self.reader = engine, reader
        self._out: list[bytes] = []
        self._pending = bytearray()
        self._unsent = self.received = self.sent = 0
        self._held = self._eof = self._muted = self._full = self._shut = self._closing = self.closed = False
        self.established = False
        self._sock: socket.socket | None = None
        if sock is not None:
            self.connected(sock, "")

    def connected(self, sock: socket.socket | None, why: str) -> None:
        """As `dial.Done` has it: what was written meanwhile goes out now."""
        if sock is None:
            if not self.closed:
                self.closed = True
                self.reader.on_lost(why)
        elif self.closed:
            sock.close()
        else:
            self.established = True
            self._sock, self._fd = sock, sock.fileno()
            self._recv, self._send = sock.recv, sock.send
            self._engine.add(self._fd, self.on_socket, 0 if self._held else EPOLLIN)
            if self._out or self._shut or self._closing:
                self._engine.mark(self)

    retiring = False

    @property
    def full(self) -> bool:
        """As `Transport` has it."""
        return self._full

    def write(self, data: bytes) -> None:
        """As `Transport` has it."""
        if self.closed or self._closing:
            return
        out = self._out
        if not out:
            self._engine.mark(self)
        out.append(data)
        self._unsent += len(data)
        if self._unsent > HIGH:
            self._full = True

    def flush(self) -> None:
        """Send what has gathered, as far as the kernel takes it."""
        if self.closed or self._sock is None:
            return
        out = self._out
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if self._pending:
                self._pending += data
            else:
                self._push(data)
        self._drained()

    def _push(self, data: bytes | bytearray) -> None:
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broke(error)
            return
        self.sent += sent
        self._unsent -= sent
        if sent < len(data):
            was = bool(self._pending)
            if data is self._pending:
                del self._pending[:sent]
            else:
                self._pending += memoryview(data)[sent:]
            if not was:
                self._watch()
        elif data is self._pending:
            self._pending = bytearray()
            self._watch()
        if self._full and self._unsent < LOW:
            self._full = False
            self.reader.on_room()

    def _drained(self) -> None:
        """Do what was to be done when all is sent, if it is."""
        if self._pending or self._out or self.closed:
            return
        if self._closing:
            self._finish()
        elif self._shut and self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._broke(error)

    def on_socket(self, mask: int) -> None:
        """The socket has bytes, room, or trouble."""
        if self.closed:
            return
        if mask & EPOLLOUT and self._pending:
            self._push(self._pending)
            self._drained()
            if self.closed:
                return
        if not mask & ~EPOLLOUT:
            return
        if self._held or self._eof:
            if mask & EPOLLERR:
                self._broke(None)
            elif mask & EPOLLHUP and self._eof:  # both sides have ended
                self._finish()
            elif mask & EPOLLHUP and not self._muted:
                self._muted = True  # it would be reported for ever
                self._engine.remove(self._fd)
            return
        try:
            data = self._recv(FIRST_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._broke(error)
            return
        if data:
            self.received += len(data)
            self.reader.on_bytes(data)
        else:
            self._eof = True
            self._watch()
            if not self._closing:
                self.reader.on_eof()

    def _watch(self) -> None:
        if self._sock is None or self.closed:
            return
        events = (0 if self._held or self._eof else EPOLLIN) | (EPOLLOUT if self._pending else 0)
        if not self._muted:
            self._engine.modify(self._fd, events)
        elif events & EPOLLIN:
            self._muted = False
            self._engine.add(self._fd, self.on_socket, events)

    def hold(self) -> None:
        """As `Transport` has it."""
        if not self._held:
            self._held = True
            self._watch()

    def release(self) -> None:
        """As `Transport` has it."""
        if self._held:
            self._held = False
            self._watch()

    def end(self) -> None:
        """As `Transport` has it."""
        if not self._shut and not self.closed:
            self._shut = True
            self._engine.mark(self)

    def close(self) -> None:
        """As `Transport` has it."""
        if not self._closing and not self.closed:
            self._closing = True
            if self._sock is None:
                self.closed = True
            else:
                self.hold()
                self._engine.mark(self)

    def reset(self) -> None:
        """As `Transport` has it."""
        if not self.closed:
            self._drop()

    def _finish(self) -> None:
        if self._sock is not None:
            orderly(self._sock)
        self._drop()

    def _broke(self, error: OSError | None) -> None:
        if self.closed:
            return
        closing = self._closing
        self._drop()
        if not closing:
            self.reader.on_lost(f"the connection broke: {error.strerror}" if error else "connection reset by peer")

    def _drop(self) -> None:
        self.closed = True
        self._out.clear()
        if self._sock is not None:
            self._engine.forget(self._fd)
            self._sock.close()

    def abort(self, reason: str) -> None:
        """As `engine.Handler` has it."""
        if not self.closed:
            self._drop()
            self.reader.on_lost(reason)


class StreamTransport(Stream):
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

    @property
    def full(self) -> bool:
        """As `Transport` has it."""
        return self._full

    def adopt(self, stream: Stream, tunnel: Tunnel, first: bytes) -> None:
        """Take a live stream over from its owner, with the bytes that it has kept."""
        self.take_over(stream)
        self.tunnel, self.established = tunnel, True
        self._kept += first
        self.received = len(first)
        self._held = True
        self.release()

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """As `Transport` has it."""
        if self.closed or self._closing:
            return
        out = self._out
        if not out:
            self._engine.mark(self)
        out.append(data)
        self._unsent += len(data)
        if self._unsent > HIGH:
            self._full = True

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

    def end(self) -> None:
        """As `Transport` has it."""
        if not self._shut and not self.closed:
            self._shut = True
            self._engine.mark(self)

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
