"""One endpoint as one proxy process sees it: what it has on hand, how fast it answers, how it fares."""

from __future__ import annotations

from math import exp

DECAY = 10.0
"""Seconds in which an old latency loses its weight (to 1/e): Finagle's `decayTime`."""

_UNKNOWN = 1e9
"""Cost of a host that has requests but never answered one: Finagle's penalty, so that it isn't flooded meanwhile."""


class Host:
    """Made and owned by `Hosts`; whoever sends it a request says `started` and, exactly once, `finished`."""

    __slots__ = (
        "active",
        "added",
        "address",
        "answered",
        "ejected_until",
        "ejections",
        "errors",
        "ewma",
        "ewma_at",
        "local",
        "port",
        "succeeded",
        "uid",
    )

    def __init__(self, address: str, port: int, uid: str, *, local: bool, added: float) -> None:
        self.address = address
        self.port = port
        self.uid = uid
        """Of the workload, or `""`."""
        self.local = local
        self.added = added
        """When it joined the service; what slow start counts from."""
        self.active = 0
        """Requests in flight."""
        self.ewma = 0.0
        """Peak-sensitive moving average of its latency at `ewma_at`, seconds; 0: no answer yet."""
        self.ewma_at = added
        self.ejected_until = 0.0
        """0: not ejected; infinite: no longer an endpoint. Set by `Hosts` only."""
        self.errors = self.answered = self.succeeded = self.ejections = 0
        """`mesh.outlier`'s: errors in a row; outcomes and successes in this interval; weight of the next ejection."""

    def started(self) -> None:
        """A request is about to be sent."""
        self.active += 1

    def finished(self, seconds: float, ok: bool, now: float) -> None:
        """The request is over, well or not, after `seconds`. Failing fast does not make a host look fast."""
        self.active -= 1
        if seconds > self.ewma * (kept := exp((self.ewma_at - now) / DECAY)):
            self.ewma = seconds  # a peak counts at once
        elif ok:
            self.ewma = self.ewma * kept + seconds * (1.0 - kept)
        else:
            return
        self.ewma_at = now

    def cost(self, now: float) -> float:
        """What one more request may be expected to wait for here, after Finagle's peak EWMA."""
        if self.ewma == 0.0:
            return _UNKNOWN + self.active if self.active else 0.0
        return self.ewma * exp((self.ewma_at - now) / DECAY) * (self.active + 1)

    def __repr__(self) -> str:
        return f"<Host {self.address}:{self.port} active={self.active}>"
