"""Affinity: the host that a key belongs to, among hosts that come, go and are ejected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf

from mesh.balance.affinity import Building, Table, hashed
from mesh.balance.host import Host

_PROBES = 16


class Affine:
    """A table for the hosts, rebuilt when their set changes; the old one answers until the new one is done."""

    __slots__ = ("_build", "_building", "_coming", "_hosts", "_names", "_table", "_wanted")

    def __init__(self, build: Callable[[Sequence[bytes]], Building]) -> None:
        self._build = build
        self._table: Table | None = None
        self._names: list[bytes] = []
        self._hosts: list[Host] = []
        """Those of the table, by index."""
        self._building: Building | None = None
        self._coming: tuple[list[bytes], list[Host]] = [], []
        """Those of the table that is being built."""
        self._wanted: tuple[list[bytes], list[Host]] = [], []

    def update(self, hosts: Collection[Host]) -> None:
        """These are the hosts now."""
        ordered = sorted(hosts, key=lambda host: (host.address, host.port, host.uid))
        self._wanted = [f"{host.address}:{host.port}".encode() for host in ordered], ordered
        if self._building is None:
            self._begin()

    def _begin(self) -> None:
        names, hosts = self._wanted
        if names == self._names:
            self._hosts = hosts  # the same places in a table, though there may be other workloads
        elif names:
            self._coming = self._wanted
            self._building = self._build(names)
        else:
            self._names, self._hosts, self._table = [], [], None

    def work(self) -> bool:
        """Go on building for about half a millisecond; whether there is more to do."""
        if self._building is None:
            return False
        try:
            next(self._building)
        except StopIteration as built:
            self._table = built.value
            self._names, self._hosts = self._coming
            self._building = None
            self._begin()
        return self._building is not None

    def pick(self, key: bytes, panic: bool, excluded: Collection[Host]) -> Host | None:
        """The key's host; with that one ejected or excluded the next that isn't, None if none is near."""
        if self._building is not None:
            self.work()
            while self._table is None and self._building is not None:
                self.work()
        if (table := self._table) is None:
            return None
        number = hashed(key)
        for probe in range(_PROBES):
            host = self._hosts[table.find(number, probe)]
            out = host.ejected_until
            if (not out or (panic and out != inf)) and host not in excluded:
                return host
        return None
