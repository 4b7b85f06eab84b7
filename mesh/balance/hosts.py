"""The endpoints of one port of a service, with the choice among them.

Which are chosen from, in this order: the local ones that are healthy (with `prefer_local`), all that are healthy, and
if more than half are ejected all of them, since the fault is then hardly theirs (Envoy's panic threshold of 50 %).
With RING_HASH and MAGLEV a client's host must not depend on the node it comes through nor on the time: neither locality
nor slow start counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf

from mesh.balance.affine import Affine
from mesh.balance.affinity import Building, Maglev, Ring, hashed
from mesh.balance.host import Host
from mesh.balance.pool import Pool
from mesh.traffic import Balance, LoadBalancing

Key = tuple[str, int, str]
"""Of an endpoint: its address, its port, its workload's uid or `""`."""


class Hosts:
    """Owned by one proxy process, for one service port. Starts empty: `update` it with the endpoints."""

    def __init__(self, balancing: LoadBalancing) -> None:
        self._choice = _CHOICES.get(balancing.policy, Hosts._random)
        table = _TABLES.get(balancing.policy)
        self._affine = Affine(table) if table else None
        self._window = 0.0 if table else balancing.slow_start
        self._prefer_local = balancing.prefer_local and not table
        self._hosts: dict[Key, Host] = {}
        self._turn = -1
        self.ejected = 0
        """How many are ejected."""
        self._pool = self._wide = Pool((), 0.0, 0.0)
        self._expires = inf

    def __len__(self) -> int:
        return len(self._hosts)

    @property
    def all(self) -> Collection[Host]:
        """Every host, ejected or not."""
        return self._hosts.values()

    def update(self, backends: Iterable[Key], local_uids: Collection[str], now: float) -> None:
        """These are the endpoints now, those of `local_uids` on this node.

        A host that stays keeps its state. One that goes is `ejected_until` infinity, for who still holds it.
        """
        before, self._hosts = self._hosts, {}
        for key in backends:
            local = key[2] in local_uids
            if (host := before.pop(key, None)) is None:
                host = self._hosts.get(key) or Host(*key, local=local, added=now)
            host.local = local
            self._hosts[key] = host
        for host in before.values():
            host.ejected_until = inf
        if self._affine:
            self._affine.update(self._hosts.values())
        self.ejected = sum(1 for host in self._hosts.values() if host.ejected_until)
        self._expires = -inf

    def work(self) -> bool:
        """Build half a millisecond's worth of the table that affinity needs; whether there is more to do.

        To be called while nothing else wants doing, until False, after each `update`. `pick` does a slice, too, and all
        that is left if there is no table at all yet.
        """
        return self._affine is not None and self._affine.work()

    def eject(self, host: Host, until: float) -> None:
        """Choose it no more (but in a panic) until it is readmitted, which `until` announces."""
        if not host.ejected_until:
            self.ejected += 1
            self._expires = -inf
        if host.ejected_until != inf:
            host.ejected_until = until

    def readmit(self, host: Host) -> None:
        """Undo `eject`."""
        if host.ejected_until and host.ejected_until != inf:
            host.ejected_until = 0.0
            self.ejected -= 1
            self._expires = -inf

    @property
    def panic(self) -> bool:
        """Whether ejections are ignored."""
        return 2 * self.ejected > len(self._hosts)

    def pick(
        self, now: float, roll: float, hash_key: bytes | None = None, excluded: Collection[Host] = ()
    ) -> Host | None:
        """The host for a request, None only if there is no host at all.

        RING_HASH and MAGLEV take the one of `hash_key`, and without a key any.
        `roll` is uniform in [0, 1) with all its 53 bits. `excluded` (those tried before) is avoided as long as there is
        another host: then a local one is passed over for a remote one too.
        """
        if now >= self._expires:
            self._arrange(now)
        pool = self._pool
        if not pool.count:
            return None
        if hash_key is not None and self._affine:
            if (affine := self._affine.pick(hash_key, self.panic, excluded)) is not None:
                return affine
            roll = (hashed(hash_key) >> 11) / (1 << 53)
        host = self._choice(self, pool, now, roll)
        if excluded and host in excluded:
            return self._another(host, excluded, roll)
        return host

    def _least_request(self, pool: Pool, now: float, roll: float) -> Host:
        first, second = pool.two(now, roll)
        if pool.settled == pool.count:
            return second if second.active < first.active else first
        loaded = first.active * pool.share(second, now), second.active * pool.share(first, now)
        return second if loaded[1] < loaded[0] else first

    def _peak_ewma(self, pool: Pool, now: float, roll: float) -> Host:
        first, second = pool.two(now, roll)
        if pool.settled == pool.count:
            return second if second.cost(now) < first.cost(now) else first
        costs = first.cost(now) * pool.share(second, now), second.cost(now) * pool.share(first, now)
        return second if costs[1] < costs[0] else first

    def _round_robin(self, pool: Pool, now: float, roll: float) -> Host:
        if self._turn < 0:  # so that not all proxies begin with the same one
            self._turn = int(roll * pool.count)
        self._turn += 1
        if pool.settled == pool.count:
            return pool.hosts[self._turn % pool.count]
        return pool.draw(now, roll, self._turn)

    def _random(self, pool: Pool, now: float, roll: float) -> Host:
        if pool.settled == pool.count:
            return pool.hosts[int(roll * pool.count)]
        return pool.draw(now, roll)

    def _another(self, host: Host, excluded: Collection[Host], roll: float) -> Host:
        for pool in (self._pool, self._wide):
            if (other := pool.another(roll, excluded)) is not None:
                return other
        return host

    def _arrange(self, now: float) -> None:
        """Work out anew who is chosen from: O(hosts), once after endpoints, ejections or slow starts changed."""
        hosts = list(self._hosts.values())
        healthy = [host for host in hosts if not host.ejected_until]
        near = [host for host in healthy if host.local] if self._prefer_local else []
        self._wide = self._pool = Pool(hosts if self.panic else healthy, self._window, now)
        if near:
            self._pool = Pool(near, self._window, now)
        self._expires = min(self._pool.expires, self._wide.expires)


_CHOICES: dict[Balance, Callable[[Hosts, Pool, float, float], Host]] = {
    Balance.LEAST_REQUEST: Hosts._least_request,
    Balance.EWMA: Hosts._peak_ewma,
    Balance.ROUND_ROBIN: Hosts._round_robin,
}

_TABLES: dict[Balance, Callable[[Sequence[bytes]], Building]] = {
    Balance.RING_HASH: Ring.build,
    Balance.MAGLEV: Maglev.build,
}
