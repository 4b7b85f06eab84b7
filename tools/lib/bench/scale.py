"""What the measurements of `tools/bench kube` come to: percentiles, tables, and the JSON that `--json` writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

CONTROLLERS = "controller"
"""What the names of the controllers' processes begin with."""


@dataclass(frozen=True)
class Change:
    """One change in the steady state. `steps`: what came of it -> s after the API server had answered."""

    kind: str
    steps: dict[str, float]
    received: tuple[int, ...]
    """Bytes that each node was sent."""
    updates: tuple[int, ...]
    cpu_s: dict[str, float]
    """By process."""


@dataclass
class Scale:
    """All that was measured."""

    pods: int
    nodes: int
    services: int
    joined_s: float = 0.0
    """Until all nodes were connected and had their first update."""
    filling_s: dict[str, float] = field(default_factory=dict)
    """All pods at once: what was done -> s since the first was asked for."""
    filling_cpu_s: dict[str, float] = field(default_factory=dict)
    filling_received: tuple[int, ...] = ()
    filling_updates: tuple[int, ...] = ()
    idle_cpu_share: dict[str, dict[str, float]] = field(default_factory=dict)
    """With how many pods -> process -> share of a core."""
    rss_mb: dict[str, dict[str, float]] = field(default_factory=dict)
    """When -> process."""
    changes: list[Change] = field(default_factory=list)
    others_share: dict[str, float] = field(default_factory=dict)
    """Meanwhile -> what processes that are none of the cluster's had of all cores, 0 to 1."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that at least this share of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def controllers(by_process: dict[str, float]) -> float:
    """Of all replicas together."""
    return sum(value for name, value in by_process.items() if name.startswith(CONTROLLERS))


def _kinds(changes: Iterable[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.kind, []).append(change)
    return found


def document(scale: Scale) -> dict[str, Any]:
    """What `--json` writes. Times in ms unless the name says s; percentiles over the changes of a kind."""
    return {
        "pods": scale.pods,
        "nodes": scale.nodes,
        "services": scale.services,
        "joined_s": round(scale.joined_s, 2),
        "filling": {
            "s": _rounded(scale.filling_s, 2),
            "cpu_s": _rounded(scale.filling_cpu_s, 2),
            "bytes_a_node": round(median(scale.filling_received or (0,))),
            "updates_a_node": median(scale.filling_updates or (0,)),
        },
        "changes": {kind: _of_kind(changes) for kind, changes in _kinds(scale.changes).items()},
        "idle_cpu_share": {when: _rounded(shares, 4) for when, shares in scale.idle_cpu_share.items()},
        "rss_mb": {when: _rounded(sizes, 1) for when, sizes in scale.rss_mb.items()},
        "others_share": _rounded(scale.others_share, 2),
    }


def _of_kind(changes: list[Change]) -> dict[str, Any]:
    return {
        "number": len(changes),
        "ms": {
            step: {
                f"p{share}": round(1000 * percentile([change.steps[step] for change in changes], share / 100), 1)
                for share in (50, 99)
            }
            for step in changes[0].steps
        },
        "bytes_a_node": round(median(size for change in changes for size in change.received)),
        "bytes_most": round(median(max(change.received) for change in changes)),
        "updates_a_node": round(sum(sum(c.updates) for c in changes) / sum(len(c.updates) for c in changes), 2),
        "controllers_cpu_ms": round(1000 * sum(controllers(change.cpu_s) for change in changes) / len(changes), 1),
    }


def _rounded(values: dict[str, float], digits: int) -> dict[str, float]:
    return {key: round(value, digits) for key, value in values.items()}


def tables(scale: Scale) -> str:
    """The figures in Markdown."""
    filling = [[what, f"{seconds:.1f}"] for what, seconds in scale.filling_s.items()]
    changes = []
    for kind, found in document(scale)["changes"].items():
        for number, (step, ms) in enumerate(found["ms"].items()):
            shared = (found["bytes_a_node"], found["bytes_most"], found["updates_a_node"], found["controllers_cpu_ms"])
            cells = [f"{cell:,}".replace(",", " ") for cell in shared] if number == 0 else [""] * len(shared)
            changes.append(["" if number else kind, step, f"{ms['p50']:.0f}", f"{ms['p99']:.0f}", *cells])
    processes = list(scale.filling_cpu_s)
    used: list[list[str]] = []
    for name in processes:
        sizes = [sizes.get(name, 0.0) for sizes in scale.rss_mb.values()]
        shares = [shares.get(name, 0.0) for shares in scale.idle_cpu_share.values()]
        used.append(
            [
                name,
                *(f"{size:.0f}" for size in sizes),
                *(f"{share:.1%}" for share in shares),
                f"{scale.filling_cpu_s[name]:.1f}",
            ]
        )
    head = [
        "process",
        *(f"MB, {when}" for when in scale.rss_mb),
        *(f"CPU idle, {when}" for when in scale.idle_cpu_share),
        f"CPU s, {scale.pods} pods",
    ]
    change_head = ["change", "until", "p50 ms", "p99 ms", "bytes a node", "its own node", "updates", "CPU ms"]
    return "\n\n".join(
        (
            _markdown([f"{scale.pods} pods at once: until", "s"], filling),
            _markdown(change_head, changes),
            _markdown(head, used),
        )
    )


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
