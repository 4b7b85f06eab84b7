"""What requests hold of a worker's memory while they wait is bounded: whoever holds most has to let go.

Each request's buffers are bounded, and each connection's requests, but not how many connections a client makes of a
backend that takes nothing. A worker serves many workloads, and the kernel, where memory is short, would end it.
"""

from __future__ import annotations

import logging
import os
import resource
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Protocol

MOST = 256 * 1024 * 1024
"""Bytes that all sessions may hold."""
_SUSPECT = 192 * 1024 * 1024
"""Resident bytes of the process below which nobody is asked."""

log = logging.getLogger(__name__)


class Holder(Protocol):
    """A client's connection with what waits for it and its requests."""

    @property
    def source(self) -> Hashable:
        """Who is to blame."""

    @property
    def held(self) -> int:
        """Bytes."""

    def abort(self, reason: str, flags: str) -> None:
        """Reset it."""


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def relieve(sessions: Iterable[Holder], most: int = MOST) -> int:
    """If they hold more than `most`: reset the largest of the source that holds most, until a quarter of it is free.

    Returns how many were reset.
    """
    by: dict[Hashable, list[tuple[int, int, Holder]]] = defaultdict(list)
    for number, session in enumerate(sessions):
        by[session.source].append((session.held, number, session))
    sums = {source: sum(held for held, _, _ in of) for source, of in by.items()}
    total, ended = sum(sums.values()), 0
    if total <= most:
        return 0
    for of in by.values():
        of.sort()
    while total > most * 3 // 4:
        worst = max(sums, key=sums.__getitem__)
        held, _, session = by[worst].pop()
        session.abort("its requests hold too much memory while they wait", "OM")
        sums[worst] -= held
        total -= held
        ended += 1
    log.warning("requests held too much memory: connections were reset", extra={"count": ended, "pid": os.getpid()})
    return ended


def suspicious() -> bool:
    """Whether it is worth asking them."""
    return resident() > _SUSPECT
