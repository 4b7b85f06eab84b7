"""Tables which send equal keys to equal hosts, on every node and in every process: they depend on nothing but the set.

Both are made once for a set of hosts, in slices: a table for thousands of hosts takes tens of milliseconds, and a proxy
has other requests meanwhile. A host that is ejected stays in its table and is passed over, so that only its own keys
move, and come back afterwards.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Generator, Sequence
from hashlib import blake2b
from struct import unpack
from typing import Protocol

MAGLEV_SIZE = 65_537
"""Prime; Envoy's default."""

_SLICE = 256
_LAST = 200
"""So few empty slots are looked for from the slots' side: by then a host would try hundreds for each it gets."""

RING_POINTS = 65_536
_MOST_POINTS, _LEAST_POINTS = 160, 8
_INDEX_BITS = 20
_BUCKET_BITS = 12


class Table(Protocol):
    """From a key's 64-bit hash to the index of a host."""

    def find(self, key: int, probe: int) -> int:
        """The host at the key (`probe` 0), or what is tried after `probe` others weren't available."""
        ...


Building = Generator[None, None, Table]


def hashed(key: bytes) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


class Maglev:
    """Maglev's (https://research.google/pubs/pub44824/ section 3.4): even to 1 %, and of n hosts one that comes or goes
    moves little more than 1/n of the keys.
    """

    __slots__ = ("_slots",)

    def __init__(self, slots: array[int]) -> None:
        self._slots = slots

    def find(self, key: int, probe: int) -> int:
        """Probes stride through the table, so that the keys of a host that is out are spread over all others."""
        return self._slots[(key + probe * 25_717) % MAGLEV_SIZE]

    @staticmethod
    def build(names: Sequence[bytes]) -> Building:
        """Of hosts by name, of which there is at least one, in an order that depends on the set only."""
        size = MAGLEV_SIZE
        at, skip = [], []
        for index, name in enumerate(names):
            first, second = unpack(">QQ", blake2b(name, digest_size=16).digest())
            at.append(first % size)
            skip.append(second % (size - 1) + 1)
            if index % _SLICE == _SLICE - 1:
                yield
        slots = array("H" if len(names) <= 1 << 16 else "I", bytes((2 if len(names) <= 1 << 16 else 4) * size))
        taken = bytearray(size)
        empty, host = size, -1
        while empty > _LAST:
            some = min(empty // 64, empty - _LAST) or 1  # the fewer are empty the longer takes each
            empty -= some
            for _ in range(some):
                host = host + 1 if host + 1 < len(at) else 0
                slot, step = at[host], skip[host]
                while taken[slot]:
                    slot += step
                    if slot >= size:
                        slot -= size
                taken[slot] = 1
                slots[slot] = host
                at[host] = slot
            yield
        left = [slot for slot in range(size) if not taken[slot]]
        while left:
            host = host + 1 if host + 1 < len(at) else 0
            start, inverse = at[host], pow(skip[host], -1, size)
            slot = min(left, key=lambda slot: (slot - start) * inverse % size)
            left.remove(slot)
            slots[slot] = host
            if len(left) % 16 == 0:
                yield
        return Maglev(slots)


class Ring:
    """Ketama's: each host at many points of a circle, a key with the first that follows it.

    Between 8 and 160 points a host, as many as make 65,536 in all. Of n hosts, one that comes or goes moves 1/n of the
    keys and no other, but the shares are less even than Maglev's (by 1/sqrt(points): 8 % with 160).
    """

    __slots__ = ("_points", "_starts")

    def __init__(self, points: array[int], starts: array[int]) -> None:
        self._points = points
        """Sorted: the upper bits where it is, the lowest 20 whose it is."""
        self._starts = starts
        """Where the points with the same upper 12 bits begin: looking one up takes no longer with more hosts."""

    def find(self, key: int, probe: int) -> int:
        """Probes go on along the ring."""
        bucket = key >> (64 - _BUCKET_BITS)
        at = bisect_left(self._points, key, self._starts[bucket], self._starts[bucket + 1])
        return self._points[(at + probe) % len(self._points)] & ((1 << _INDEX_BITS) - 1)

    @staticmethod
    def build(names: Sequence[bytes]) -> Building:
        """Of hosts by name, of which there is at least one, in an order that depends on the set only."""
        count = max(_LEAST_POINTS, min(_MOST_POINTS, RING_POINTS // len(names)))
        buckets: list[list[int]] = [[] for _ in range(1 << _BUCKET_BITS)]
        for index, name in enumerate(names):
            for chunk in range(0, count, 8):
                for point in unpack(">8Q", blake2b(b"%s#%d" % (name, chunk)).digest())[: count - chunk]:
                    buckets[point >> (64 - _BUCKET_BITS)].append(point >> _INDEX_BITS << _INDEX_BITS | index)
                if (index * count + chunk) % (4 * _SLICE) < 8:
                    yield
        points, starts = array("Q"), array("I", [0])
        for number, bucket in enumerate(buckets):
            points.extend(sorted(bucket))
            starts.append(len(points))
            if number % _SLICE == 0:
                yield
        return Ring(points, starts)
