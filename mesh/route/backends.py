"""Where a request goes, of a rule's backends, and where copies of it go."""

from __future__ import annotations

from mesh.traffic import Backend, Mirror, RouteRule


def choose_backend(rule: RouteRule, roll: float) -> Backend | None:
    """One by weight; `roll` is in [0, 1). None where there is none with a weight: answer 500.

    An invalid backend keeps its share, as Gateway API demands: if the one returned says why in `invalid`, answer 500,
    too (for gRPC UNAVAILABLE, in either case).
    """
    backends = rule.backends
    if len(backends) == 1:
        backend = backends[0]
        return backend if backend.weight > 0 else None
    total = 0
    for backend in backends:
        total += backend.weight
    left = int(roll * total)  # exact for weights to 1,000,000: in each share as many steps as its weight
    for backend in backends:
        left -= backend.weight
        if left < 0:
            return backend
    return None


def mirrors(rule: RouteRule, roll: float) -> list[Mirror]:
    """The mirrors that get a copy of this request. One roll does for all: each has its share."""
    step = int(roll * 10_000)
    return [mirror for mirror in rule.mirrors if step < mirror.share]
