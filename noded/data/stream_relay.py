"""Moving the bytes of an established connection between a socket and a tunnel's stream.

A blocked sink stops its source's reading, so what is held for a connection never exceeds one stream window. All methods
run in the engine's task.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from mesh.h2.connection import Stream
from mesh.h2.frames import ErrorCode
from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Engine
from noded.data.sockets import FIRST_READ, FULL_READ, orderly
from noded.data.tracker import Flow

if TYPE_CHECKING:
    from noded.data.tunnel import Tunnel

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
        self._chunk = FIRST_READ
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
            if size == FIRST_READ:
                self._chunk = FULL_READ

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
        if code == ErrorCode.NO_ERROR and self._half_closed and self.sock is not None and not self._muted:
            self._eof = True  # the peer has sent all it will and wants no more: so HTTP connections are closed
            if self._pending:
                self.engine.modify(self._fd, self._events())
            else:
                self._finish()
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
