"""A TCP connection as a transport."""

from __future__ import annotations

import socket

from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Engine
from noded.data.http.transport import LOW, Gathering, Reader
from noded.data.sockets import FIRST_READ, orderly


class SocketTransport(Gathering):
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
