"""Circuit breaking: so many at a time and no more, from one node to one service."""

from __future__ import annotations

from mesh.traffic import CircuitBreaker


class Gauge:
    """How many there are of something, and how many there may be at most (0: no bound)."""

    __slots__ = ("count", "most", "refused")

    def __init__(self, most: int = 0) -> None:
        self.most = most
        """May be changed at any time: those that are in stay."""
        self.count = 0
        self.refused = 0
        """How often it was full, ever."""

    def enter(self) -> bool:
        """One more, if there is room. Whoever was let in must `leave`, exactly once."""
        if 0 < self.most <= self.count:
            self.refused += 1
            return False
        self.count += 1
        return True

    def leave(self) -> None:
        """One less."""
        self.count -= 1


class Circuit:
    """The bounds of one service. Those of a node's worker processes add up: each gets its part, and at least 1."""

    __slots__ = ("_workers", "connections", "pending", "requests", "requests_per_connection")

    def __init__(self, breaker: CircuitBreaker | None, workers: int = 1) -> None:
        self._workers = workers
        self.connections = Gauge()
        self.requests = Gauge()
        self.pending = Gauge()
        """Requests that wait for a connection."""
        self.requests_per_connection = 0
        """After so many a connection is closed (0: no bound)."""
        self.update(breaker)

    def update(self, breaker: CircuitBreaker | None) -> None:
        """The bounds have changed; what is under way stays and counts."""
        breaker = breaker or CircuitBreaker()
        self.connections.most = -(-breaker.max_connections // self._workers)
        self.requests.most = -(-breaker.max_requests // self._workers)
        self.pending.most = -(-breaker.max_pending // self._workers)
        self.requests_per_connection = breaker.max_requests_per_connection
