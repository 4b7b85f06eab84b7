"""Hosts of several versions of a service: a version by weight, then one of its hosts.

Only versions with a host that may be chosen count; the others' shares go to these. Whether ejections are ignored is
decided over all hosts together, so that a version whose hosts all fail gives its share away. Locality and slow start
hold among the hosts of one version.

With RING_HASH and MAGLEV the key decides on the version, too, by weighted rendezvous (Schindelhauer and Schomaker,
"Weighted distributed hash tables", 2005, the logarithmic method): a version whose weight changes, or that comes or
goes, gains or loses keys, and none moves between two others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf, log

from mesh.balance.affinity import hashed
from mesh.balance.host import Host
from mesh.balance.hosts import Hosts, Key
from mesh.traffic import LoadBalancing

_MASK = (1 << 64) - 1
_LOG = log(1 << 64)
_MIX = 0x9E3779B97F4A7C15
"""Odd, without a pattern: 2^64 over the golden ratio."""


class _Version(Hosts):
    """The hosts of one version. `VersionedHosts` decides which they are, and on ejections."""

    def __init__(self, name: str, balancing: LoadBalancing, whole: VersionedHosts) -> None:
        super().__init__(balancing)
        self.name = name
        self.weight = 0
        self.salt = hashed(name.encode())
        self._whole = whole

    @property
    def panic(self) -> bool:
        """See `Hosts`; here of all versions together."""
        return self._whole.panic

    def take(self, hosts: dict[Key, Host]) -> None:
        """These are the hosts now."""
        self._hosts = hosts
        if self._affine:
            self._affine.update(hosts.values())

    def arrange(self, now: float) -> float:
        """Work out who is chosen from, and until when that holds."""
        self._arrange(now)
        return self._expires

    @property
    def usable(self) -> bool:
        """Whether there is a host to be chosen, since `arrange`."""
        return self._wide.count > 0


class VersionedHosts(Hosts):
    """Like `Hosts`, whose state it shares; `weigh` before each `update`. Hosts of other versions are none of it."""

    def __init__(self, balancing: LoadBalancing) -> None:
        super().__init__(balancing)
        self._balancing = balancing
        self._hashes = self._affine is not None
        self._affine = None  # each version has its own
        self._versions: dict[str, _Version] = {}
        self._of: dict[str, _Version] = {}
        """By workload."""
        self._usable: list[_Version] = []
        self._sums: list[int] = []

    def weigh(self, weights: Mapping[str, int], versions: Mapping[str, str]) -> None:
        """These are the versions' weights now, and the version of each workload (by uid); `update` makes it so."""
        before, self._versions = self._versions, {}
        for name, weight in sorted(weights.items()):
            if weight:
                version = self._versions[name] = before.get(name) or _Version(name, self._balancing, self)
                version.weight = weight
        self._of = {uid: self._versions[name] for uid, name in versions.items() if name in self._versions}

    def update(self, backends: Iterable[Key], local_uids: Collection[str], now: float) -> None:
        """See `Hosts`."""
        super().update([key for key in backends if key[2] in self._of], local_uids, now)
        members: dict[str, dict[Key, Host]] = {name: {} for name in self._versions}
        for key, host in self._hosts.items():
            members[self._of[host.uid].name][key] = host
        for name, version in self._versions.items():
            version.take(members[name])

    def work(self) -> bool:
        """See `Hosts`."""
        return any(version.work() for version in self._versions.values())

    def shares(self, now: float) -> dict[str, float]:
        """What part of the requests each version gets at present; those with a weight, and adding up to 1 or 0."""
        if now >= self._expires:
            self._arrange(now)
        usable = {version.name: version.weight / self._sums[-1] for version in self._usable}
        return {name: usable.get(name, 0.0) for name in self._versions}

    def version_of(self, host: Host) -> str:
        """Of a host that is one of `all`."""
        return self._of[host.uid].name

    def pick(
        self, now: float, roll: float, hash_key: bytes | None = None, excluded: Collection[Host] = ()
    ) -> Host | None:
        """See `Hosts`. Another version than that of `excluded` is chosen only when that has no other host."""
        if now >= self._expires:
            self._arrange(now)
        if not (usable := self._usable):
            return None
        if excluded:
            return self._another_than(excluded, now, roll, hash_key)
        if hash_key is not None and self._hashes:
            return self._by_key(usable, hash_key).pick(now, roll, hash_key)
        version, roll = self._by_weight(usable, self._sums, roll)
        return version.pick(now, roll)

    @staticmethod
    def _by_weight(versions: Sequence[_Version], sums: Sequence[int], roll: float) -> tuple[_Version, float]:
        """A version, and what is left of the roll: uniform in [0, 1) again."""
        at = roll * sums[-1]
        version = versions[index := bisect_right(sums, at)]
        return version, (at - sums[index]) / version.weight + 1.0

    @staticmethod
    def _by_key(versions: Iterable[_Version], key: bytes) -> _Version:
        """Each version has a clock that rings at a time drawn from the key, the sooner the more it weighs: the first to
        ring. Times are negative here. O(versions), of which there are few: looking one up by a table would be coarse.
        """
        number, latest = hashed(key), -inf
        for version in versions:
            rings = (log(((number ^ version.salt) * _MIX & _MASK) + 1) - _LOG) / version.weight  # before 0
            if rings > latest:
                latest, first = rings, version
        return first

    def _another_than(self, excluded: Collection[Host], now: float, roll: float, hash_key: bytes | None) -> Host | None:
        """For another try: a host of a version that was tried, else of another, else one that was tried."""
        tried = [version for version in self._usable if any(self._of.get(host.uid) is version for host in excluded)]
        left = [version for version in self._usable if version not in tried]
        again: Host | None = None
        while tried or left:
            if tried:
                version = tried.pop(0)
            elif hash_key is not None and self._hashes:
                left.remove(version := self._by_key(left, hash_key))
            else:
                version, roll = self._by_weight(left, list(accumulate([v.weight for v in left])), roll)
                left.remove(version)
            host = version.pick(now, roll, hash_key, excluded)
            if host is not None and host not in excluded:
                return host
            again = again or host
        return again

    def _arrange(self, now: float) -> None:
        """See `Hosts`; also which versions are chosen from."""
        self._expires = min([version.arrange(now) for version in self._versions.values()], default=inf)
        self._usable = [version for version in self._versions.values() if version.usable]
        self._sums = list(accumulate([version.weight for version in self._usable]))
