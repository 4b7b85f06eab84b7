"""Rate limits that hold for the whole mesh: one bucket each, here, from which the nodes get what they ask for.

A node's word is bounded by what it can be: a limit that is in force, no more consumers than there are nodes. What it
takes is dealt out max-min fairly, and what it gives back it has been granted before.

On Kubernetes each replica has a bucket for the nodes that are connected to it, with as large a part of the limit as
they are of the nodes: never more than the limit, but what one replica's nodes leave is not given to another's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from controller.translate import World
from mesh.ratelimit import FORGET, Allocator, Bucket, Grant
from mesh.sync import LimitGrants, LimitReports
from mesh.traffic import RateLimit
from mesh.traffic_index import TrafficIndex

_TURN = 0.01

Tell = Callable[[LimitGrants], None]


@dataclass(slots=True)
class _Shared:
    limit: RateLimit
    bucket: Bucket
    allocator: Allocator
    until: float
    """If nobody asks for anything before, it is as good as new then."""


class SharedLimits:
    """`run` must be running. Nothing else waits."""

    def __init__(self, world: Callable[[], World], *, replicated: bool) -> None:
        """`replicated`: other controllers may serve some of the nodes."""
        self._world, self._replicated = world, replicated
        self._meshed: frozenset[str] = frozenset()
        """The nodes that have workloads in the mesh."""
        self._seen: World | None = None
        self._index = TrafficIndex()
        self._all: dict[str, _Shared] = {}
        self._tell: dict[str, Tell] = {}
        self._started = math.inf
        self._woken = trio.Event()

    def join(self, node: str, tell: Tell) -> None:
        """A node is connected: tell it so. Call `part` when it is not any more."""
        self._tell[node] = tell

    def part(self, node: str, tell: Tell) -> None:
        """The node goes on with what it has, and by its part of the limits: that stays reserved for a while."""
        if self._tell.get(node) == tell:
            del self._tell[node]

    def report(self, node: str, message: LimitReports) -> None:
        """What a node asks for."""
        now = trio.current_time()
        index = self._in_force()
        nodes = max(len(self._meshed), len(self._tell), 1)
        grants: dict[str, Grant] = {}
        for name, report in message.reports.items():
            if (limit := index.shared_limit(name)) is None:
                continue
            shared = self._of(name, limit, now)
            bounded = replace(report, consumers=min(report.consumers, nodes))
            grants[name] = shared.allocator.report(node, bounded, now)
        for name in message.left:
            if name in self._all:
                self._all[name].allocator.leave(node)
                grants.pop(name, None)
        if grants and node in self._tell:
            self._tell[node](LimitGrants(grants))
        self._woken.set()

    async def run(self) -> NoReturn:
        """Hold rounds, until cancelled."""
        self._started = trio.current_time()
        while True:
            self._woken = trio.Event()
            now = trio.current_time()
            messages: defaultdict[str, dict[str, Grant]] = defaultdict(dict)
            for name, shared in list(self._all.items()):
                if now >= shared.until and shared.allocator.idle:
                    del self._all[name]
                elif now >= shared.allocator.deadline:
                    for node, grant in shared.allocator.round(now).items():
                        messages[node][name] = grant
            for node, grants in messages.items():
                if node in self._tell:
                    self._tell[node](LimitGrants(grants))
            await trio.sleep(_TURN)
            deadlines = (s.until if s.allocator.idle else s.allocator.deadline for s in self._all.values())
            with trio.move_on_at(min(deadlines, default=math.inf)):
                await self._woken.wait()

    def _in_force(self) -> TrafficIndex:
        world = self._world()
        if world is not self._seen:
            self._seen = world
            self._meshed = frozenset(workload.node for workload in world.workloads.values() if workload.meshed)
            self._index = TrafficIndex().apply((), tuple(world.traffic.values()), set(), set())
            for name, shared in list(self._all.items()):
                if self._index.shared_limit(name) != shared.limit:
                    del self._all[name]
        return self._index

    def _of(self, name: str, limit: RateLimit, now: float) -> _Shared:
        if (shared := self._all.get(name)) is None:
            # Soon after the start, tokens that a controller before this one gave away may still be about.
            bucket = Bucket(limit, now, empty=now < self._started + FORGET)
            shared = self._all[name] = _Shared(limit, bucket, Allocator(bucket, now), now)
        if self._replicated:
            own = sum(node in self._meshed for node in self._tell)
            shared.bucket.divide(max(own, 1), len(self._meshed), now)
        shared.until = now + max((limit.burst or limit.requests) * limit.seconds / limit.requests, FORGET)
        return shared
