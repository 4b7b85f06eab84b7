"""The edges of the mesh as the nodes report them, in memory since the start, bounded.

A node is believed only about edges whose near side may be its own: of a namespace within its scope.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace

from controller.request_telemetry import RequestTelemetry
from controller.tokens import Scope
from mesh.model import EdgeCounts, EdgeKey, EdgeReport

_MAX_TEXT = 512


@dataclass(slots=True)
class Edge:
    """Totals of one edge. Times in Unix seconds."""

    first_seen: float
    last_seen: float
    opened: int = 0
    closed: int = 0
    failed: int = 0
    denied: int = 0
    received: int = 0
    sent: int = 0


class Telemetry:
    """Sums up reports. The edge that was quiet longest makes room for a new one when there are `limit`."""

    def __init__(self, clock: Callable[[], float], limit: int = 50_000) -> None:
        self._clock, self._limit = clock, limit
        self.requests = RequestTelemetry(clock)
        self._edges: OrderedDict[tuple[str, EdgeKey], Edge] = OrderedDict()
        self.rejected = 0
        """Reported edges that were not believed."""
        self.evicted = 0

    def add(self, node: str, scope: Scope, reports: Iterable[EdgeReport]) -> None:
        """Count what a node reports."""
        now = self._clock()
        for report in reports:
            if not _believable(report, scope):
                self.rejected += 1
                continue
            key = (node, report.key)
            edge = self._edges.get(key)
            if edge is None:
                edge = self._edges[key] = Edge(now, now)
                if len(self._edges) > self._limit:
                    self._edges.popitem(last=False)
                    self.evicted += 1
            self._edges.move_to_end(key)
            counts: EdgeCounts = report.counts
            edge.last_seen = now
            edge.opened += counts.opened
            edge.closed += counts.closed
            edge.failed += counts.failed
            edge.denied += counts.denied
            edge.received += counts.received
            edge.sent += counts.sent

    def __len__(self) -> int:
        return len(self._edges)

    def edges(self) -> list[tuple[EdgeKey, Edge]]:
        """All of them; an edge that several nodes report (its workload has moved) is summed up."""
        summed: dict[EdgeKey, Edge] = {}
        for (_node, key), edge in self._edges.items():
            if (known := summed.get(key)) is None:
                summed[key] = Edge(*astuple(edge))
                continue
            known.first_seen = min(known.first_seen, edge.first_seen)
            known.last_seen = max(known.last_seen, edge.last_seen)
            for name in ("opened", "closed", "failed", "denied", "received", "sent"):
                setattr(known, name, getattr(known, name) + getattr(edge, name))
        return list(summed.items())

    def open_now(self) -> dict[EdgeKey, int]:
        """Live connections by edge, under flags `-`: a connection opens there, and closes under what it ended with."""
        live: dict[EdgeKey, int] = {}
        for (_node, key), edge in self._edges.items():
            opened_as = replace(key, flags="-")
            live[opened_as] = live.get(opened_as, 0) + edge.opened - edge.closed
        return live


def _believable(report: EdgeReport, scope: Scope) -> bool:
    key, counts = report.key, report.counts
    if key.reporter not in ("source", "destination"):
        return False
    near = key.source if key.reporter == "source" else key.destination
    texts = (*astuple(key.source), *astuple(key.destination), key.service, key.security, key.flags)
    return (
        scope.touches(near.namespace)
        and all(len(text) <= _MAX_TEXT for text in texts)
        and all(0 <= count < 1 << 62 for count in astuple(counts))
    )
