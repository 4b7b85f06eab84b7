"""A service's connections and requests among versions of its workloads: `TrafficPolicy.versions`.

Of requests `mesh.balance` takes care, which knows what is ejected; here is what needs no more than the endpoints.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

_RANGE = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples modulo 2^64 are spread evenly however many there are (Weyl)."""

Backend = tuple[str, int, str]
"""Address, target port, uid of the workload or `""`."""


@dataclass(frozen=True, slots=True)
class Share:
    """Of one version that is given a weight."""

    version: str
    weight: int
    share: float
    """What part it gets, if none of the endpoints is ejected: 0 to 1."""
    endpoints: int


def shares(weights: Mapping[str, int], versions: Iterable[str]) -> tuple[Share, ...]:
    """Of all that have a weight, among endpoints of these versions."""
    counts = Counter(versions)
    total = sum(weight for version, weight in weights.items() if counts[version])
    return tuple(
        Share(version, weight, weight / total if total and counts[version] else 0.0, counts[version])
        for version, weight in sorted(weights.items())
    )


class Split:
    """Some endpoints, by version."""

    __slots__ = ("_members", "_sums")

    def __init__(self, weights: Mapping[str, int], backends: Iterable[tuple[str, Backend]]) -> None:
        members: dict[str, list[Backend]] = {}
        for version, backend in backends:
            if weights.get(version):
                members.setdefault(version, []).append(backend)
        self._members = [members[version] for version in sorted(members)]
        self._sums = list(accumulate(weights[version] for version in sorted(members)))

    def pick(self, turn: int) -> Backend | None:
        """An endpoint, None if there is none. Over any run of turns versions are taken by weight, endpoints alike."""
        if not self._members:
            return None
        at = turn * _GOLDEN % _RANGE * self._sums[-1] // _RANGE
        some = self._members[bisect_right(self._sums, at)]
        return some[turn % len(some)]
