"""Faults injected into connections that are not HTTP: `TrafficPolicy`'s delay, reset and bandwidth.

Slow connections have relays of their own, so that the others pay nothing for them: what may not be moved yet stops the
reading, as a blocked sink does, until a timer lets it go on.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.fault import ConnectionFault, of_connection
from mesh.traffic import Fault
from noded.data.engine import EPOLLIN, EPOLLOUT, Engine
from noded.data.node import LocalWorkload, Node
from noded.data.outbound_stream import OutboundStream
from noded.data.socket_relay import Half, SocketRelay, Waiting
from noded.data.sockets import FIRST_READ
from noded.data.timers import Timers
from noded.data.tracker import Flow

if TYPE_CHECKING:
    from noded.data.pool import Pool

_SLICE = 0.05
"""Seconds of its bandwidth that a connection moves at once."""


def choose(fault: Fault) -> ConnectionFault | None:
    """What happens to a connection of a service that has faults."""
    return of_connection(fault, random.random(), random.random(), random.random())


class Delayed:
    """Carries a connection that is held up; then `go()`, or the end if it is reset."""

    def __init__(
        self,
        node: Node,
        timers: Timers,
        flow: Flow,
        client: socket.socket,
        fault: ConnectionFault,
        go: Callable[[], None],
    ) -> None:
        self._flow, self._fault, self._go = flow, fault, go
        node.tracker.count("faults")
        self._waiting = flow.carrier = Waiting(node.engine, flow, client)
        if fault.delay:
            timers.after(fault.delay, self._over)
        else:
            self._over()

    def _over(self) -> None:
        if self._flow.finished:
            return
        if self._fault.reset:
            self._waiting.abort("a fault was injected", "FI")
        else:
            self._flow.carrier = None
            self._go()


class Pace:
    """So many bytes a second."""

    __slots__ = ("_next", "_rate", "slice")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._next = 0.0
        self.slice = min(max(int(rate * _SLICE), 1), FIRST_READ - 1)

    def wait(self) -> float:
        """Seconds until more may be moved."""
        return self._next - time.monotonic()

    def moved(self, size: int) -> None:
        """So much was."""
        self._next = max(self._next, time.monotonic()) + size / self._rate


class SlowStream(OutboundStream):
    """A slow connection in a tunnel."""

    __slots__ = ("_down", "_limit", "_resting", "_timers", "_up")

    def __init__(
        self,
        pool: Pool,
        local: LocalWorkload,
        flow: Flow,
        client: socket.socket,
        address: str,
        port: int,
        node: Node,
        *,
        limit: int,
        timers: Timers,
    ) -> None:
        super().__init__(pool, local, flow, client, address, port, node)
        self._timers, self._limit = timers, limit
        self._up, self._down = Pace(limit), Pace(limit)
        self._chunk = self._up.slice
        self._resting = False

    def another(self) -> OutboundStream:
        """See `OutboundStream`."""
        args = self._pool, self._local, self.flow, self._client, self.address, self._port, self._node
        return SlowStream(*args, limit=self._limit, timers=self._timers)

    def on_socket(self, mask: int) -> None:
        """See `StreamRelay`."""
        if mask & EPOLLIN and not self._eof and not self._paused and not self.closed:
            if (wait := self._up.wait()) > 0:
                self._pause()
                self.tunnel.waiting.discard(self)
                self._timers.after(wait, self.resume)
                mask &= ~EPOLLIN
            else:
                before = self.from_socket
                super().on_socket(mask)
                self._up.moved(self.from_socket - before)
                return
        super().on_socket(mask)

    def on_data(self, data: memoryview) -> int:
        """See `StreamRelay`: it is written in slices, however much fits."""
        if self.closed:
            return len(data)
        if self._pending:
            self._pending += data
        else:
            self._pending = bytearray(data)
            self._rest()
        return 0

    def _events(self) -> int:
        return super()._events() & ~(EPOLLOUT if self._resting else 0)

    def _rest(self) -> None:
        """Write no more until a slice may be moved again."""
        self._resting = True
        self._watch()
        self._timers.after(max(self._down.wait(), 0.0), self._rested)

    def _pause(self) -> None:
        super()._pause()
        self._watch()

    def _rested(self) -> None:
        self._resting = False
        self._watch()

    def _watch(self) -> None:
        if not self.closed and not self._muted:
            self.engine.modify(self._fd, self._events())

    def _drain(self) -> None:
        pending = self._pending
        assert pending is not None
        if self._resting:
            return
        rest = pending[self._down.slice :]
        del pending[self._down.slice :]
        before, half_closed = self.to_socket, self._half_closed
        self._half_closed = half_closed and not rest  # the end is to come after the rest
        super()._drain()
        self._half_closed = half_closed
        self._down.moved(self.to_socket - before)
        if rest and not self.closed:
            self._pending = pending + rest
            self._rest()


class SlowRelay(SocketRelay):
    """A slow connection in plaintext."""

    def __init__(
        self, engine: Engine, flow: Flow, client: socket.socket, server: socket.socket, limit: int, timers: Timers
    ) -> None:
        self._limit, self._timers = limit, timers
        super().__init__(engine, flow, client, server)

    def half(self, engine: Engine, source: socket.socket, sink: socket.socket) -> Half:
        """See `SocketRelay`."""
        return _SlowHalf(self, engine, source, sink, self._limit, self._timers)


class _SlowHalf(Half):
    __slots__ = ("_pace", "_timers")

    def __init__(
        self, relay: SocketRelay, engine: Engine, source: socket.socket, sink: socket.socket, limit: int, timers: Timers
    ) -> None:
        super().__init__(relay, engine, source, sink)
        self._timers, self._pace = timers, Pace(limit)
        self._chunk = self._pace.slice

    def on_source(self, mask: int) -> None:
        if mask & EPOLLIN and self.source_fd >= 0 and not self._pending and not self._eof:
            if (wait := self._pace.wait()) > 0:
                self._engine.modify(self.source_fd, EPOLLOUT if self.other._pending else 0)
                self._timers.after(wait, self._go_on)
                mask &= ~EPOLLIN
            else:
                before = self.moved
                super().on_source(mask)
                self._pace.moved(self.moved - before)
                return
        super().on_source(mask)

    def _go_on(self) -> None:
        if self.source_fd >= 0:
            self.watch()


class SlowWaiting(Waiting):
    """As `Waiting`, for a connection that will be slow."""

    def __init__(self, engine: Engine, flow: Flow, client: socket.socket, limit: int, timers: Timers) -> None:
        super().__init__(engine, flow, client)
        self._limit, self._timers = limit, timers

    def join(self, server: socket.socket) -> SocketRelay:
        """See `Waiting`."""
        return SlowRelay(self._engine, self._flow, self._client, server, self._limit, self._timers)
