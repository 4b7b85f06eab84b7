"""From the rounds' measurements to medians, ratios, a table, and the JSON that `--json` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

from bench.load import Requests


@dataclass(frozen=True)
class Run:
    """One run of wrk over one path, and the CPU its proxies took meanwhile."""

    seen: Requests
    cpu_us: float

    @property
    def cpu_us_per_request(self) -> float:
        """Of both proxies together."""
        return self.cpu_us / self.seen.requests


@dataclass
class Series:
    """All that was measured of one path, a value for each round."""

    keep_alive: dict[int, list[Run]] = field(default_factory=dict)
    """By number of connections."""
    connects: list[Run] = field(default_factory=list)
    bulk_gbps: list[float] = field(default_factory=list)
    rss_mb: dict[str, float] = field(default_factory=dict)
    """By process, at the end."""


Results = dict[str, Series]
S = TypeVar("S")


@dataclass(frozen=True)
class Line(Generic[S]):
    """A line of a table, from what was measured of each path."""

    label: str
    of: Callable[[S], list[float]]
    """A value for each round; none if it was not measured on this path."""
    digits: int = 0
    bound: str = ""
    """What the ratio of Nodemesh to Envoy must be."""


def _runs(connections: int, figure: Callable[[Run], float]) -> Callable[[Series], list[float]]:
    return lambda series: [figure(run) for run in series.keep_alive[connections]]


def _lines(connections: Iterable[int]) -> list[Line[Series]]:
    lines = []
    for count in connections:
        alone, busy = count == 1, count == 64
        lines += [
            Line(f"requests/s, {count}", _runs(count, lambda run: run.seen.rps), 0, "≥ 1" if busy else ""),
            Line(f"p50 µs, {count}", _runs(count, lambda run: run.seen.p50_us), 0, "≤ 1.3" if alone else ""),
            Line(f"p99 µs, {count}", _runs(count, lambda run: run.seen.p99_us), 0),
            Line(
                f"CPU µs a request, {count}", _runs(count, lambda run: run.cpu_us_per_request), 1, "≤ 1" if busy else ""
            ),
        ]
    return [
        *lines,
        Line("new connections/s", lambda s: [x.seen.rps for x in s.connects], 0, "≥ 0.67"),
        Line("CPU µs a new connection", lambda s: [x.cpu_us_per_request for x in s.connects], 0),
        Line("bulk Gb/s, one stream", lambda s: s.bulk_gbps, 2, "≥ 0.67"),
        Line("memory MB, both sides", lambda s: [sum(s.rss_mb.values())], 0),
    ]


def table(results: Results) -> str:
    """The figures of the paths, see `render`."""
    return render(results, _lines(next(iter(results.values())).keep_alive))


def render(results: Mapping[str, S], lines: Iterable[Line[S]]) -> str:
    """Medians for each path; beside them the ratio of Nodemesh to Envoy: median and range of the rounds' ratios."""
    paths = list(results)
    ratios = "nodemesh" in results and "envoy" in results
    rows = [["", *paths, *(["nodemesh/envoy", "range", "wanted"] if ratios else [])]]
    for line in lines:
        values = {path: line.of(series) for path, series in results.items()}
        row = [line.label, *(_number(median(values[path]), line.digits) if values[path] else "-" for path in paths)]
        if ratios and values["nodemesh"] and values["envoy"]:
            each = [ours / theirs for ours, theirs in zip(values["nodemesh"], values["envoy"], strict=True)]
            row += [f"{median(each):.2f}", f"{min(each):.2f}–{max(each):.2f}", line.bound]
        elif ratios:
            row += ["-", "-", line.bound]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def document(results: Results) -> dict[str, Any]:
    """What `--json` writes: medians over the rounds. Memory is that of all of a path's proxies together."""
    return {
        "rows": [
            {
                "path": path,
                "connections": connections,
                "rps": round(median(run.seen.rps for run in runs), 1),
                "p50_us": median(run.seen.p50_us for run in runs),
                "p99_us": median(run.seen.p99_us for run in runs),
                "cpu_us_per_request": round(median(run.cpu_us_per_request for run in runs), 2),
            }
            for path, series in results.items()
            for connections, runs in series.keep_alive.items()
        ],
        "bulk_gbps": {path: round(median(series.bulk_gbps), 3) for path, series in results.items()},
        "connects_per_s": {
            path: round(median(run.seen.rps for run in series.connects), 1) for path, series in results.items()
        },
        "rss_mb": {path: round(sum(series.rss_mb.values(), 0.0), 1) for path, series in results.items()},
    }


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", " ") if value else "-"
