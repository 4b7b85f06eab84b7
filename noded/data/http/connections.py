"""Connections to one port of a service where its circuit breaker bounds them, and the requests that wait for one."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mesh.circuit import Circuit
from noded.data.timers import Timers

if TYPE_CHECKING:
    from noded.data.http.outbound import OutboundExchange
    from noded.data.http.upstreams import Upstream

FULL = "the circuit breaker is open: too many connections"
"""Instead of a call: the request is to wait for a connection, or to be refused."""


class Connections:
    """Told by upstreams when a connection is to be opened or is gone, and by the service when a request is over."""

    def __init__(self, circuit: Circuit, timers: Timers) -> None:
        self._circuit, self._timers = circuit, timers
        self._upstreams: set[Upstream] = set()
        self._waiting: deque[OutboundExchange] = deque()

    @property
    def requests(self) -> int:
        """How many a connection may carry, 0 for any number."""
        return self._circuit.requests_per_connection

    def enter(self, upstream: Upstream) -> bool:
        """Whether one may be opened; an idle one to another endpoint, or for another client, makes room."""
        gauge = self._circuit.connections
        if 0 < gauge.most <= gauge.count:
            any(other.close_an_idle_one() for other in self._upstreams)
        if not gauge.enter():
            return False
        self._upstreams.add(upstream)
        return True

    def leave(self, upstream: Upstream) -> None:
        """One is gone."""
        self._circuit.connections.leave()
        if not upstream.all and not upstream.shared:
            self._upstreams.discard(upstream)
        self.free()

    def free(self) -> None:
        """One may be had, or opened: whoever has waited longest tries again, but not in the midst of what goes on."""
        if self._waiting:
            self._timers.after(0.0, self._next)

    def wait(self, exchange: OutboundExchange) -> bool:
        """Whether the request may wait until a connection can be had."""
        pending = self._circuit.pending
        if 0 < pending.most <= pending.count:  # those that have given up need no room
            for gone in [other for other in self._waiting if other.done]:
                self._waiting.remove(gone)
                pending.leave()
        if not pending.enter():
            return False
        self._waiting.append(exchange)
        return True

    def _next(self) -> None:
        while self._waiting:
            exchange = self._waiting.popleft()
            self._circuit.pending.leave()
            if not exchange.done:
                exchange.try_once()
                if not exchange.done or self._circuit.requests.count:
                    return  # else it was answered at once, and nobody is left who would wake the next
