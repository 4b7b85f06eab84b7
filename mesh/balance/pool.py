"""A choice among hosts, each as likely as its share: all alike, but for those in slow start.

A host's share in slow start grows evenly from a tenth to the whole over the window (Envoy's defaults: aggression 1,
minimum weight 10 %). Being linear in `now`, the shares' sums over hosts in order of age need no upkeep as time passes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from math import inf

from mesh.balance.host import Host

_FLOOR = 0.1


class Pool:
    """Of some hosts, at some time."""

    __slots__ = ("_ages", "_origin", "_window", "count", "hosts", "settled", "settles_at")

    def __init__(self, hosts: Sequence[Host], window: float, now: float) -> None:
        self.count = len(hosts)
        self.hosts = hosts
        """Those in slow start last, the oldest of them first."""
        self.settled = self.count
        """How many are not in slow start."""
        self.settles_at = inf
        """When the oldest in slow start has its full share: time to make a new pool."""
        self._window = window
        self._origin = now
        self._ages = [0.0]
        if window <= 0:
            return
        if warming := sorted([host for host in hosts if host.added + window > now], key=lambda host: host.added):
            settled = [host for host in hosts if host.added + window <= now]
            self.hosts, self.settled = settled + warming, len(settled)
            self.settles_at = warming[0].added + window
            self._ages += accumulate([now - host.added for host in warming])

    def share(self, host: Host, now: float) -> float:
        """What part of a full weight the host has now: 0.1 to 1."""
        if now >= host.added + self._window:
            return 1.0
        return _FLOOR + (1.0 - _FLOOR) * (now - host.added) / self._window

    def draw(self, now: float, roll: float, turn: int = -1) -> Host:
        """A host by its share; with a `turn`, the settled ones share their part round robin. There must be a host."""
        warming = self.count - self.settled
        at = roll * (self.settled + self._weight(warming, now))
        if at < self.settled:
            return self.hosts[int(at) if turn < 0 else turn % self.settled]
        older = bisect_right(range(1, warming), at - self.settled, key=lambda some: self._weight(some, now))
        return self.hosts[self.settled + older]

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

    def _weight(self, some: int, now: float) -> float:
        """Of the `some` oldest in slow start together."""
        return _FLOOR * some + (1.0 - _FLOOR) * (self._ages[some] + (now - self._origin) * some) / (self._window or 1.0)
