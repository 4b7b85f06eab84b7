"""What the workers counted, in two forms: running sums for Prometheus, and deltas that the controller is still to get.

Both are bounded: a workload that is talked to by ever new peers must not grow this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from mesh.model import EdgeCounts, EdgeKey, EdgeReport
from noded.control.request_telemetry import RequestTelemetry
from noded.link import Counts

MAX_EDGES = 4096
"""Edges kept, in either form; the one that was quiet the longest goes first."""
REPORT_EDGES = 1024
"""Edges in one `Report`."""
GAUGES = frozenset({"open_connections", "tunnels"})
"""Names in `Counts.totals` that go up and down; the others only grow."""


class Telemetry:
    """Fed by the workers' `Counts`."""

    def __init__(self, max_edges: int = MAX_EDGES) -> None:
        self._max = max_edges
        self.requests = RequestTelemetry()
        self._sums: OrderedDict[EdgeKey, EdgeCounts] = OrderedDict()
        self._unsent: OrderedDict[EdgeKey, EdgeCounts] = OrderedDict()
        self._live: dict[int, dict[str, int]] = {}
        self._ended: dict[str, int] = {}
        self._open: dict[int, dict[EdgeKey, int]] = {}
        """For each worker, its live connections by edge; one opens under flags `-`, whatever it closes with."""
        self.evicted = 0
        """Edges whose series were dropped to stay within the bound."""
        self.unreported = 0
        """Edges whose counts were dropped before the controller could get them."""

    def add(self, worker: int, counts: Counts) -> None:
        """Take in one message of a worker."""
        self._live[worker] = counts.totals
        self.requests.add(counts.requests)
        live = self._open.setdefault(worker, {})
        for edge in counts.edges:
            opened_as = replace(edge.key, flags="-")
            live[opened_as] = live.get(opened_as, 0) + edge.counts.opened - edge.counts.closed
            if not live[opened_as]:
                del live[opened_as]
            _accumulate(self._sums, edge)
            _accumulate(self._unsent, edge)
        self._bound()

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the `totals` what happened in this process."""
        self._ended[name] = self._ended.get(name, 0) + by

    def worker_ended(self, worker: int) -> None:
        """Its totals stay counted, its gauges don't, and its connections were reset."""
        for key, number in self._open.pop(worker, {}).items():
            reset = EdgeReport(replace(key, flags="LR"), EdgeCounts(closed=max(number, 0)))
            _accumulate(self._sums, reset)
            _accumulate(self._unsent, reset)
        for name, value in self._live.pop(worker, {}).items():
            if name not in GAUGES:
                self._ended[name] = self._ended.get(name, 0) + value

    def totals(self) -> dict[str, int]:
        """Process-wide numbers by name, over all workers that are or were."""
        sums = dict(self._ended)
        for totals in self._live.values():
            for name, value in totals.items():
                sums[name] = sums.get(name, 0) + value
        return sums

    def edges(self) -> list[tuple[EdgeKey, EdgeCounts]]:
        """Sums since this process started, a copy."""
        return list(self._sums.items())

    def take(self) -> tuple[EdgeReport, ...]:
        """The next deltas for the controller, at most `REPORT_EDGES`; `give_back` those that could not be sent."""
        taken: list[EdgeReport] = []
        while self._unsent and len(taken) < REPORT_EDGES:
            taken.append(EdgeReport(*self._unsent.popitem(last=False)))
        return tuple(taken)

    def give_back(self, edges: Iterable[EdgeReport]) -> None:
        """Keep these for the next `take`."""
        for edge in edges:
            _accumulate(self._unsent, edge)
        self._bound()

    def _bound(self) -> None:
        while len(self._sums) > self._max:
            self._sums.popitem(last=False)
            self.evicted += 1
        while len(self._unsent) > self._max:
            self._unsent.popitem(last=False)
            self.unreported += 1


def _accumulate(into: OrderedDict[EdgeKey, EdgeCounts], edge: EdgeReport) -> None:
    into[edge.key] = _sum(into.get(edge.key), edge.counts)
    into.move_to_end(edge.key)


def _sum(a: EdgeCounts | None, b: EdgeCounts) -> EdgeCounts:
    if a is None:
        return b
    return EdgeCounts(
        opened=a.opened + b.opened,
        closed=a.closed + b.closed,
        failed=a.failed + b.failed,
        denied=a.denied + b.denied,
        received=a.received + b.received,
        sent=a.sent + b.sent,
    )
