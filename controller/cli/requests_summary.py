"""From requests by edge and outcome, as the controller lists them, to a line for each service, route or edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controller.cli.columns import party
from mesh.request_counts import BUCKETS, quantile

Row = Mapping[str, Any]
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _service(row: Row) -> dict[str, str]:
    name, _, rest = str(row.get("service") or "").partition(".")
    namespace = rest.partition(".")[0]
    return {"service": f"{namespace}/{name}" if namespace else party(row.get("destination"))}


def _route(row: Row) -> dict[str, str]:
    kind, _, name = str(row.get("route") or "").partition("/")
    return {"kind": kind, "route": name, **_service(row)}


def _edge(row: Row) -> dict[str, str]:
    ends = {"source": party(row.get("source")), "destination": party(row.get("destination"))}
    return {**ends, **_service(row), "security": str(row.get("security"))}


GROUPS: dict[str, Callable[[Row], dict[str, str]]] = {"services": _service, "routes": _route, "edges": _edge}


def summarise(rows: Iterable[Row], by: str) -> list[dict[str, Any]]:
    """One for each of what `GROUPS[by]` tells apart, in order, with rates and times of the last half to full minute.

    A request inside the mesh is reported from both of its ends; it is counted once, as its source saw it, which knows
    of routes, tries and failures to connect.
    """
    given = list(rows)
    from_source = {_ends(row) for row in given if row.get("reporter") == "source"}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    durations: dict[tuple[str, ...], list[int]] = {}
    for row in given:
        if row.get("reporter") != "source" and _ends(row) in from_source:
            continue
        names = GROUPS[by](row)
        if by == "routes" and not names["route"]:
            continue
        key = tuple(names.values())
        line = found.setdefault(key, {**names, **_NOTHING})
        count, recent = row.get("requests") or 0, row.get("recent_requests") or 0
        line["requests"] += count
        line["recent_requests"] += recent
        line["rate"] += recent / (row.get("recent_seconds") or 60.0)
        if row.get("failed"):
            line["failed"] += count
            line["recent_failed"] += recent
        line["last_seen"] = max(line["last_seen"], row.get("last_seen") or 0)
        buckets = durations.setdefault(key, [0] * BUCKETS)
        for index, number in enumerate(row.get("recent_durations") or ()):
            buckets[index] += number
    for key, line in found.items():
        if line["recent_requests"]:
            line["success"] = 1 - line["recent_failed"] / line["recent_requests"]
        for name, share in _QUANTILES.items():
            line[name] = quantile(durations[key], share)
    return [line for _, line in sorted(found.items())]


_NOTHING: dict[str, Any] = {
    "requests": 0,
    "failed": 0,
    "recent_requests": 0,
    "recent_failed": 0,
    "rate": 0.0,
    "success": None,
    "last_seen": 0.0,
}


def _ends(row: Row) -> tuple[str, str]:
    return party(row.get("source")), party(row.get("destination"))
