"""Requests as the nodes report them, in memory since the start, bounded; and how they fared of late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from typing import Any

from controller.tokens import Scope
from mesh.model import EdgeKey, Party
from mesh.request_counts import BUCKETS, RequestCounts, RequestKey, RequestReport, failed

WINDOW = 30.0
"""Seconds. "Of late" is this window and the one before."""
_MAX_TEXT = 512
_NONE = RequestCounts()


@dataclass(slots=True)
class Outcome:
    """Requests of one key. Times in Unix seconds."""

    first_seen: float
    last_seen: float
    total: RequestCounts = _NONE
    window: float = 0.0
    """When the one that is counted in began."""
    now: RequestCounts = _NONE
    before: RequestCounts = _NONE

    def turn(self, window: float) -> None:
        """Count in the window that begins then."""
        if window != self.window:
            self.before = self.now if window - self.window == WINDOW else _NONE
            self.window, self.now = window, _NONE


@dataclass(slots=True)
class OfEdge:
    """What an edge's requests come to. `rate` is requests a second of late."""

    requests: int = 0
    requests_failed: int = 0
    rate: float = 0.0
    recent: int = 0
    recent_failed: int = 0
    first_seen: float = 0.0
    last_seen: float = 0.0


@dataclass(slots=True)
class RequestTelemetry:
    """Sums up reports. The key that was quiet longest makes room for a new one when there are `limit`."""

    clock: Callable[[], float]
    limit: int = 10_000
    rejected: int = 0
    """Reports that were not believed."""
    evicted: int = 0
    _outcomes: OrderedDict[tuple[str, RequestKey], Outcome] = field(default_factory=OrderedDict)

    def add(self, node: str, scope: Scope, reports: Iterable[RequestReport]) -> None:
        """Count what a node reports."""
        now = self.clock()
        for report in reports:
            if not _believable(report, scope):
                self.rejected += 1
                continue
            key = node, report.key
            outcome = self._outcomes.get(key)
            if outcome is None:
                outcome = self._outcomes[key] = Outcome(now, now)
                if len(self._outcomes) > self.limit:
                    self._outcomes.popitem(last=False)
                    self.evicted += 1
            self._outcomes.move_to_end(key)
            outcome.turn(now - now % WINDOW)
            outcome.last_seen = now
            outcome.total += report.counts
            outcome.now += report.counts

    def __len__(self) -> int:
        return len(self._outcomes)

    def _recent(self) -> float:
        """How many seconds "of late" are, now."""
        return WINDOW + self.clock() % WINDOW

    def rows(self) -> list[dict[str, Any]]:
        """As `GET /v1/requests` shows them, one for each node that told of it."""
        now, seconds = self.clock(), self._recent()
        rows = []
        for (node, key), outcome in self._outcomes.items():
            outcome.turn(now - now % WINDOW)
            recent = outcome.now + outcome.before
            rows.append(
                {
                    "node": node,
                    "reporter": key.edge.reporter,
                    "source": _plain(key.edge.source),
                    "destination": _plain(key.edge.destination),
                    "service": key.edge.service,
                    "security": key.edge.security,
                    "flags": key.edge.flags,
                    "protocol": key.protocol,
                    "code": key.code,
                    "grpc_status": key.grpc,
                    "route": key.route,
                    "failed": failed(key.protocol, key.code, key.grpc),
                    "first_seen": outcome.first_seen,
                    "last_seen": outcome.last_seen,
                    "requests": outcome.total.count,
                    "received": outcome.total.received,
                    "sent": outcome.total.sent,
                    "recent_seconds": seconds,
                    "recent_requests": recent.count,
                    "recent_durations": recent.durations if recent.count else (),
                }
            )
        return rows

    def by_edge(self) -> dict[EdgeKey, OfEdge]:
        """Summed up by edge and flags."""
        now, seconds = self.clock(), self._recent()
        found: dict[EdgeKey, OfEdge] = {}
        for (_node, key), outcome in self._outcomes.items():
            outcome.turn(now - now % WINDOW)
            edge = found.setdefault(key.edge, OfEdge(first_seen=outcome.first_seen))
            recent = outcome.now.count + outcome.before.count
            edge.requests += outcome.total.count
            edge.recent += recent
            edge.rate += recent / seconds
            edge.first_seen = min(edge.first_seen, outcome.first_seen)
            edge.last_seen = max(edge.last_seen, outcome.last_seen)
            if failed(key.protocol, key.code, key.grpc):
                edge.requests_failed += outcome.total.count
                edge.recent_failed += recent
        return found


def _plain(party: Party) -> dict[str, str]:
    """What `asdict` makes of it, in a tenth of the time."""
    return {
        "workload": party.workload,
        "namespace": party.namespace,
        "principal": party.principal,
        "app": party.app,
        "version": party.version,
    }


def _believable(report: RequestReport, scope: Scope) -> bool:
    key, edge, counts = report.key, report.key.edge, report.counts
    if edge.reporter not in ("source", "destination") or key.protocol not in ("http", "grpc"):
        return False
    near = edge.source if edge.reporter == "source" else edge.destination
    texts = (*astuple(edge.source), *astuple(edge.destination), edge.service, edge.security, edge.flags)
    histograms = (counts.durations, counts.received_sizes, counts.sent_sizes)
    numbers = (counts.count, counts.microseconds, counts.received, counts.sent, *(n for h in histograms for n in h))
    return (
        scope.touches(near.namespace)
        and all(len(text) <= _MAX_TEXT for text in (*texts, key.grpc, key.route))
        and 0 <= key.code < 1000
        and all(len(histogram) in (0, BUCKETS) for histogram in histograms)
        and all(0 <= number < 1 << 62 for number in numbers)
    )
