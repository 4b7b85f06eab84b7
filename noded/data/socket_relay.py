"""Moving the bytes of an established connection between two sockets: into the mesh or out of it in plaintext.

A blocked sink stops its source's reading, so no more than one read is held for either direction. All methods run in the
engine's task.
"""

from __future__ import annotations

import socket

from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Engine
from noded.data.sockets import FIRST_READ, FULL_READ, orderly
from noded.data.tracker import Flow


class Waiting:
    """Carries a captured connection that has no server yet. Owns the client's socket; finishes the flow."""

    def __init__(self, engine: Engine, flow: Flow, client: socket.socket) -> None:
        self._engine, self._flow, self._client = engine, flow, client

    def connected(self, server: socket.socket | None, why: str) -> None:
        """As `dial.Done` has it: join the two, or reset the client."""
        flow = self._flow
        if server is None or flow.finished:
            if server is not None:
                server.close()
            self._client.close()
            flow.finish("UF", why)
            return
        flow.establish()
        flow.carrier = self.join(server)

    def join(self, server: socket.socket) -> SocketRelay:
        """Let bytes flow between the client and this server."""
        return SocketRelay(self._engine, self._flow, self._client, server)

    def counts(self) -> tuple[int, int]:
        """As `Carrier` has it."""
        return 0, 0

    def abort(self, reason: str, flags: str = "-") -> None:
        """As `Carrier` has it."""
        if not self._flow.finished:
            self._client.close()
            self._flow.finish(flags, reason)


class SocketRelay:
    """Two sockets joined: the client's, and the one dialled for it. Owns both; finishes the flow."""

    def __init__(self, engine: Engine, flow: Flow, client: socket.socket, server: socket.socket) -> None:
        self._flow = flow
        self._forward = self.half(engine, client, server)
        self._backward = self.half(engine, server, client)
        self._forward.other, self._backward.other = self._backward, self._forward
        self._closed = False
        engine.add(self._forward.source_fd, self._forward.on_source)
        engine.add(self._backward.source_fd, self._backward.on_source)

    def half(self, engine: Engine, source: socket.socket, sink: socket.socket) -> Half:
        """One direction."""
        return Half(self, engine, source, sink)

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

    def failed(self, half: Half, error: OSError | None) -> None:
        """The socket that `half` reads from was reset."""
        who, flags = ("the client", "DC") if half is self._forward else ("the server", "UC")
        self.abort(f"{who} reset the connection" if error is None else f"{who}: {error.strerror}", flags)

    def _close(self) -> None:
        self._closed = True
        self._forward.close()
        self._backward.close()


class Half:
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
        self.other: Half
        self.moved = 0
        self.done = self._eof = self._muted = False
        self._chunk = FIRST_READ
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
        if size == FIRST_READ:
            self._chunk = FULL_READ
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
