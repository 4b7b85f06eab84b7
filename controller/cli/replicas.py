"""What several controllers say, as one answer: each knows of the nodes connected to it, and what those report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_NAMES = ("reporter", "source", "destination", "service", "security")
_COUNTS = (
    *("opened", "closed", "failed", "denied", "received", "sent"),
    *("requests", "requests_failed", "rate", "recent", "recent_failed"),
)


def nodes(answers: Iterable[Sequence[Row]]) -> list[Row]:
    """By name; of a node that several know, what the one says that it is connected to, or heard from last."""
    found: dict[str, Row] = {}
    for row in (row for answer in answers for row in answer):
        name = str(row.get("name"))
        if name not in found or _fresh(row) > _fresh(found[name]):
            found[name] = row
    return [row for _name, row in sorted(found.items())]


def _fresh(row: Row) -> tuple[bool, float]:
    return bool(row.get("connected")), float(row.get("last_seen") or 0)


def edges(answers: Iterable[Sequence[Row]]) -> list[Row]:
    """By who talked to whom, counts added up: a node that went from one controller to another reported to both.

    A connection may have been opened under one and closed under the other, so what is open follows from the sums.
    """
    found: dict[str, dict[str, Any]] = {}
    live: Counter[str] = Counter()
    for row in (row for answer in answers for row in answer):
        key = _key(row, *_NAMES, "flags")
        live[_key(row, *_NAMES)] += (row.get("opened") or 0) - (row.get("closed") or 0)
        known = found.setdefault(key, {})
        found[key] = {
            **row,
            **{name: (row.get(name) or 0) + (known.get(name) or 0) for name in _COUNTS},
            "first_seen": min(row.get("first_seen") or 0, known.get("first_seen") or row.get("first_seen") or 0),
            "last_seen": max(row.get("last_seen") or 0, known.get("last_seen") or 0),
        }
    for row in found.values():
        row["open"] = max(live[_key(row, *_NAMES)], 0) if row.get("flags") == "-" else 0
    return list(found.values())


def _key(row: Row, *names: str) -> str:
    return json.dumps([row.get(name) for name in names], sort_keys=True)


def requests(answers: Iterable[Sequence[Row]]) -> list[Row]:
    """All of them: whoever shows them adds up."""
    return [row for answer in answers for row in answer]


MERGED: dict[str, Callable[[Iterable[Sequence[Row]]], list[Row]]] = {
    "/v1/nodes": nodes,
    "/v1/edges": edges,
    "/v1/requests": requests,
}
"""The lists that differ from controller to controller; any other answer is the same from each."""
