"""A choice among hosts, each as likely as its share: all alike, but for those in slow start.

A host's share in slow start grows evenly from a tenth to the whole over the window (Envoy's defaults: aggression 1,
minimum weight 10 %), in steps of a 20th of the window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from math import inf

from mesh.balance.host import Host

_FLOOR = 0.1
_STEPS = 20


class Pool:
    """Of some hosts, at some time."""

    __slots__ = ("_sums", "_window", "count", "expires", "hosts", "settled")

    def __init__(self, hosts: Sequence[Host], window: float, now: float) -> None:
        self.count = len(hosts)
        self.hosts = hosts
        """Those in slow start last, the oldest of them first."""
        self.settled = self.count
        """How many are not in slow start."""
        self.expires = inf
        """When to make a new pool, since shares have grown."""
        self._window = window
        self._sums = [0.0]
        if window > 0 and (warming := [host for host in hosts if host.added + window > now]):
            warming.sort(key=lambda host: host.added)
            settled = [host for host in hosts if host.added + window <= now]
            self.hosts, self.settled = settled + warming, len(settled)
            self.expires = min(warming[0].added + window, now + window / _STEPS)
            self._sums = list(accumulate([self.share(host, now) for host in warming]))

    def share(self, host: Host, now: float) -> float:
        """What part of a full weight the host has now: 0.1 to 1."""
        if now >= host.added + self._window:
            return 1.0
        return _FLOOR + (1.0 - _FLOOR) * (now - host.added) / self._window

    def draw(self, now: float, roll: float, turn: int = -1) -> Host:
        """A host by its share; with a `turn`, the settled ones share their part round robin. There must be a host."""
        at = roll * (self.settled + self._sums[-1])
        if at < self.settled:
            return self.hosts[int(at) if turn < 0 else turn % self.settled]
        return self.hosts[self.settled + bisect_right(self._sums, at - self.settled, 0, len(self._sums) - 1)]

    def two(self, now: float, roll: float) -> tuple[Host, Host]:
        """Two hosts, by their shares; different ones if all are settled and there are two."""
        if self.settled < self.count:
            return self.draw(now, roll), self.draw(now, roll * 67108864.0 % 1.0)
        if self.count == 1:
            return self.hosts[0], self.hosts[0]
        at = roll * self.count
        first = int(at)
        second = int((at - first) * (self.count - 1))
        return self.hosts[first], self.hosts[second + (second >= first)]

    def another(self, roll: float, excluded: Collection[Host]) -> Host | None:
        """A host that is not excluded, if there is one: looks at no more hosts than are excluded, and one."""
        at = int(roll * self.count)
        for index in range(at, at + min(len(excluded) + 1, self.count)):
            if (host := self.hosts[index % self.count]) not in excluded:
                return host
        return None
