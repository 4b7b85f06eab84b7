"""From what `tools/bench l7` measured to its tables, and to the JSON that `--json` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.figures import Line, Run, render


@dataclass(frozen=True)
class Idle:
    """Memory of a path's proxies with many idle connections, MB, by process: before there were any, and with them."""

    connections: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def kb_each(self) -> float:
        """What a connection took on both sides together."""
        return (workers(self.after) - workers(self.before)) * 1000 / self.connections


@dataclass
class Series:
    """All that was measured of one path."""

    runs: dict[tuple[str, int], list[Run]] = field(default_factory=dict)
    """By protocol and number of connections, a value for each round."""
    idle: Idle | None = None


Results = dict[str, Series]

_CPU_BOUND = {"http/1.1": "≤ 1", "http/2": "≤ 1.3", "grpc": "≤ 1.3"}
CONTROL = "control"
"""What the names of processes end with that carry no traffic."""


def _runs(kind: tuple[str, int], figure: Callable[[Run], float]) -> Callable[[Series], list[float]]:
    return lambda series: [figure(run) for run in series.runs.get(kind, ())]


def _lines(kinds: Iterable[tuple[str, int]]) -> list[Line[Series]]:
    lines: list[Line[Series]] = []
    for kind in kinds:
        protocol, count = kind
        what = f"{protocol}, {count}"
        lines += [
            Line(f"{what}: requests/s", _runs(kind, lambda run: run.seen.rps)),
            Line(f"{what}: p50 µs", _runs(kind, lambda run: run.seen.p50_us), 0, "≤ 1.2" if count == 1 else ""),
            Line(f"{what}: p99 µs", _runs(kind, lambda run: run.seen.p99_us)),
            Line(
                f"{what}: CPU µs a request",
                _runs(kind, lambda run: run.cpu_us_per_request),
                1,
                _CPU_BOUND[protocol] if count > 1 else "",
            ),
        ]
    return lines


def _idle_lines(results: Results) -> list[Line[Series]]:
    counts = {series.idle.connections for series in results.values() if series.idle is not None}
    if not counts:
        return []
    what = f"{max(counts):,} idle connections".replace(",", " ")
    return [
        Line(f"{what}: MB", lambda series: [workers(series.idle.after)] if series.idle else [], 0, "≤ 1"),
        Line(f"{what}: KB each", lambda series: [series.idle.kb_each] if series.idle else [], 1),
    ]


def workers(rss_mb: dict[str, float]) -> float:
    """Of the processes that carry traffic."""
    return sum(size for name, size in rss_mb.items() if not name.endswith(CONTROL))


def table(results: Results) -> str:
    """Medians, and ratios of Nodemesh to Envoy, with what is wanted of them."""
    kinds = dict.fromkeys(kind for series in results.values() for kind in series.runs)
    return render(results, [*_lines(kinds), *_idle_lines(results)])


def document(results: Results) -> dict[str, Any]:
    """What `--json` writes: medians over the rounds; memory of those processes that carry traffic, both sides'."""
    return {
        "rows": [
            {
                "path": path,
                "protocol": protocol,
                "connections": connections,
                "rps": round(median(run.seen.rps for run in runs), 1),
                "p50_us": median(run.seen.p50_us for run in runs),
                "p99_us": median(run.seen.p99_us for run in runs),
                "cpu_us_per_request": round(median(run.cpu_us_per_request for run in runs), 2),
            }
            for path, series in results.items()
            for (protocol, connections), runs in series.runs.items()
        ],
        "idle": {
            path: {
                "connections": series.idle.connections,
                "rss_mb": round(workers(series.idle.after), 1),
                "rss_mb_before": round(workers(series.idle.before), 1),
                "kb_each": round(series.idle.kb_each, 2),
            }
            for path, series in results.items()
            if series.idle is not None
        },
    }
