"""Moving the bytes of an established connection: between a socket and a tunnel's stream, or between two sockets.

A blocked sink stops its source's reading, so what is held for a connection never exceeds one stream window (from a
tunnel) or one read (from a socket). All methods run in the engine's task.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from mesh.h2.connection import Stream
from mesh.h2.frames import ErrorCode
from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Engine
from noded.data.sockets import orderly
from noded.data.tracker import Flow

if TYPE_CHECKING:
    from noded.data.tunnel import Tunnel

_SMALL, _LARGE = 32_768, 262_144
_FLUSH_AT = 65_536


class StreamRelay(Stream):
    """One stream of a tunnel joined to one socket. Owns the socket from `join` on; finishes the flow."""

    __slots__ = (
        "_chunk",
        "_eof",
        "_fd",
        "_half_closed",
        "_muted",
        "_paused",
        "_pending",
        "_recv",
        "_send",
        "closed",
        "engine",
        "flow",
        "from_socket",
        "sock",
        "to_socket",
        "tunnel",
    )

    def __init__(self, engine: Engine, flow: Flow) -> None:
        super().__init__()
        self.engine, self.flow = engine, flow
        self.tunnel: Tunnel
        """Set when the stream is opened or accepted."""
        self.sock: socket.socket | None = None
        self.closed = False
        self.from_socket = self.to_socket = 0
        self._chunk = _SMALL
        self._pending: bytearray | None = None
        self._eof = self._half_closed = self._paused = self._muted = False

    def join(self, sock: socket.socket) -> None:
        """Start moving bytes both ways."""
        self.sock = sock
        self._fd = sock.fileno()
        self._recv, self._send = sock.recv, sock.send
        self.engine.add(self._fd, self.on_socket)

    def counts(self) -> tuple[int, int]:
        """As `Carrier` has it, seen from the client."""
        if self.flow.direction == "outbound":
            return self.from_socket, self.to_socket
        return self.to_socket, self.from_socket

    # -- socket to stream ---------------------------------------------------------------------------------------------

    def on_socket(self, mask: int) -> None:
        """The socket has bytes, room, or trouble."""
        if self.closed:
            return
        if mask & EPOLLOUT and self._pending:
            self._drain()
        if not mask & ~EPOLLOUT or self.closed:
            return
        if self._eof or self._paused:
            self._not_reading(mask)
            return
        connection = self.connection
        limit = self._chunk
        if self.send_window < limit:
            limit = self.send_window
        if connection.send_window < limit:
            limit = connection.send_window
        tunnel = self.tunnel
        if limit <= 0 or tunnel.blocked:
            self._pause()
            return
        try:
            data = self._recv(limit)
        except BlockingIOError:
            return
        except OSError as error:
            self.socket_failed(error)
            return
        size = len(data)
        if not size:
            self._socket_ended()
            return
        self.from_socket += size
        connection.send_data(self, data)
        if size >= _FLUSH_AT:
            tunnel.flush()
        else:
            self.engine.mark(tunnel)
            if size == _SMALL:
                self._chunk = _LARGE

    def _not_reading(self, mask: int) -> None:
        if mask & EPOLLERR or (mask & EPOLLHUP and self._eof):
            self.socket_failed(None)
        elif mask & EPOLLHUP:
            # both directions were shut while we may not read on yet: it would be reported for ever
            self._muted = True
            self.engine.remove(self._fd)

    def _pause(self) -> None:
        self._paused = True
        self.engine.modify(self._fd, EPOLLOUT if self._pending else 0)
        self.tunnel.waiting.add(self)

    def resume(self) -> None:
        """There may be room in the tunnel again."""
        if not self._paused or self.closed:
            return
        self._paused = False
        if self._muted:
            self._muted = False
            self.engine.add(self._fd, self.on_socket, self._events())
        else:
            self.engine.modify(self._fd, self._events())

    on_window = resume

    def _events(self) -> int:
        return (0 if self._eof or self._paused else EPOLLIN) | (EPOLLOUT if self._pending else 0)

    def _socket_ended(self) -> None:
        self._eof = True
        self.connection.end(self)
        self.engine.mark(self.tunnel)
        if self._half_closed and not self._pending:
            self._finish()
        else:
            self.engine.modify(self._fd, self._events())

    def socket_failed(self, error: OSError | None) -> None:
        """The socket was reset."""
        who = "the client" if self.flow.direction == "outbound" else "the workload"
        flags = "DC" if self.flow.direction == "outbound" else "UC"
        self.abort(f"{who} reset the connection" if error is None else f"{who}: {error.strerror}", flags)

    # -- stream to socket ---------------------------------------------------------------------------------------------

    def on_data(self, data: memoryview) -> int:
        """Bytes from the tunnel: write what fits now, keep the rest (at most a stream window)."""
        if self.closed:
            return len(data)
        if self._pending:
            self._pending += data
            return 0
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.socket_failed(error)
            return 0
        self.to_socket += sent
        if sent < len(data):
            self._pending = bytearray(data[sent:])
            if not self._muted:
                self.engine.modify(self._fd, self._events())
        return sent

    def _drain(self) -> None:
        pending = self._pending
        assert pending is not None
        try:
            sent = self._send(pending)
        except BlockingIOError:
            return
        except OSError as error:
            self.socket_failed(error)
            return
        self.to_socket += sent
        del pending[:sent]
        self.connection.delivered(self, sent)
        self.engine.mark(self.tunnel)
        if not pending:
            self._pending = None
            self.engine.modify(self._fd, self._events())
            if self._half_closed:
                self._shut()

    def on_end(self) -> None:
        """The other side of the tunnel has sent all it will."""
        if self.closed:
            return
        self._half_closed = True
        if not self._pending:
            self._shut()

    def _shut(self) -> None:
        """Pass on the end of data, now that all before it is in the socket."""
        if self._eof:
            self._finish()
            return
        assert self.sock is not None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.socket_failed(error)

    def _finish(self) -> None:
        """Both directions have ended, and nothing is pending."""
        self.closed = True
        assert self.sock is not None
        orderly(self.sock)
        self._close_socket()
        self.flow.finish()

    def _close_socket(self) -> None:
        if self.sock is not None:
            self.tunnel.waiting.discard(self)
            self.engine.forget(self._fd)
            self.sock.close()

    def on_reset(self, code: int) -> None:
        """The stream is gone: so is the connection."""
        if self.closed:
            return
        self.closed = True
        self._close_socket()
        self.flow.finish("UR" if self.flow.direction == "outbound" else "DR", f"the peer reset the stream ({code})")

    def abort(self, reason: str, flags: str = "-") -> None:
        """Reset both sides now."""
        if self.closed:
            return
        self.closed = True
        self.connection.reset(self, ErrorCode.CONNECT_ERROR)
        self.engine.mark(self.tunnel)
        self._close_socket()
        self.flow.finish(flags, reason)


class SocketRelay:
    """Two sockets joined: the client's, and the one dialled for it. Owns both; finishes the flow."""

    def __init__(self, engine: Engine, flow: Flow, client: socket.socket, server: socket.socket) -> None:
        self._flow = flow
        self._forward = _Half(self, engine, client, server)
        self._backward = _Half(self, engine, server, client)
        self._forward.other, self._backward.other = self._backward, self._forward
        self._closed = False
        engine.add(self._forward.source_fd, self._forward.on_source)
        engine.add(self._backward.source_fd, self._backward.on_source)

    def counts(self) -> tuple[int, int]:
        """As `Carrier` has it."""
        return self._forward.moved, self._backward.moved

    def ended(self) -> None:
        """One direction has ended in order."""
        if self._forward.done and self._backward.done and not self._closed:
            orderly(self._forward.source)
            orderly(self._backward.source)
            self._close()
            self._flow.finish()

    def abort(self, reason: str, flags: str = "-") -> None:
        """Reset both sides now."""
        if not self._closed:
            self._close()
            self._flow.finish(flags, reason)

    def failed(self, half: _Half, error: OSError | None) -> None:
        """The socket that `half` reads from was reset."""
        who, flags = ("the client", "DC") if half is self._forward else ("the server", "UC")
        self.abort(f"{who} reset the connection" if error is None else f"{who}: {error.strerror}", flags)

    def _close(self) -> None:
        self._closed = True
        self._forward.close()
        self._backward.close()


class _Half:
    """One direction. Owns its source; its sink is the other half's source."""

    __slots__ = (
        "_chunk",
        "_engine",
        "_eof",
        "_muted",
        "_pending",
        "_recv",
        "_relay",
        "_send",
        "_sink",
        "done",
        "moved",
        "other",
        "source",
        "source_fd",
    )

    def __init__(self, relay: SocketRelay, engine: Engine, source: socket.socket, sink: socket.socket) -> None:
        self._relay, self._engine = relay, engine
        self.source, self._sink = source, sink
        self.source_fd = source.fileno()
        self._recv, self._send = source.recv, sink.send
        self.other: _Half
        self.moved = 0
        self.done = self._eof = self._muted = False
        self._chunk = _SMALL
        self._pending = b""

    def on_source(self, mask: int) -> None:
        """The source is readable, or has room for the other half's bytes, or is in trouble."""
        if self.source_fd < 0:
            return
        if mask & EPOLLOUT and self.other._pending:
            self.other._drain()
            if self.source_fd < 0:
                return
        if not mask & ~EPOLLOUT:
            return
        if self._pending or self._eof:
            if mask & EPOLLERR or (mask & EPOLLHUP and self._eof):
                self._relay.failed(self, None)
            elif mask & EPOLLHUP:
                self._muted = True  # as in StreamRelay
                self._engine.remove(self.source_fd)
            return
        try:
            data = self._recv(self._chunk)
        except BlockingIOError:
            return
        except OSError as error:
            self._relay.failed(self, error)
            return
        if not data:
            self._end()
            return
        size = len(data)
        if size == _SMALL:
            self._chunk = _LARGE
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._relay.failed(self.other, error)
            return
        self.moved += sent
        if sent < size:
            self._pending = data[sent:]
            self.watch()
            self.other.watch()

    def watch(self) -> None:
        """Wait for what this half's source is good for just now."""
        events = (0 if self._eof or self._pending else EPOLLIN) | (EPOLLOUT if self.other._pending else 0)
        if not self._muted:
            self._engine.modify(self.source_fd, events)
        elif events & EPOLLIN:
            self._muted = False
            self._engine.add(self.source_fd, self.on_source, events)

    def _drain(self) -> None:
        try:
            sent = self._send(self._pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._relay.failed(self.other, error)
            return
        self.moved += sent
        self._pending = self._pending[sent:]
        if not self._pending:
            self.watch()
            self.other.watch()

    def _end(self) -> None:
        """The source has ended, and nothing is pending: reading stops while something is."""
        self._eof = self.done = True
        if not self.other.done:
            try:
                self._sink.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._relay.failed(self.other, error)
                return
            self.watch()
        self._relay.ended()

    def abort(self, reason: str) -> None:
        """As `Handler` has it."""
        self._relay.abort(reason)

    def close(self) -> None:
        """Close the source."""
        self._engine.forget(self.source_fd)
        self.source_fd = -1
        self.source.close()
