"""Rate limits that hold for the whole mesh: one bucket each, here, from which the nodes get what they ask for.

A node's word is bounded by what it can be: a limit that is in force, no more consumers than there are nodes. What it
takes is dealt out max-min fairly, and what it gives back it has been granted before.

On Kubernetes one replica keeps them, the leader, and the others forward to it what their nodes ask (see
`controller.forwarding`). Where none leads, the nodes hear nothing, and each goes by its part of a limit.
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

Tell = Callable[[str, LimitGrants], None]
"""Tell a node, by its name."""


@dataclass(slots=True)
class _Shared:
    limit: RateLimit
    allocator: Allocator
    until: float
    """If nobody asks for anything before, it is as good as new then."""


class SharedLimits:
    """Nothing here waits but `keep`, which one controller of a mesh runs at a time."""

    def __init__(self, world: Callable[[], World], forward: Callable[[str, LimitReports], None] | None = None) -> None:
        """`forward` is given what nodes ask while another controller keeps the buckets."""
        self._world, self._forward = world, forward
        self._meshed: frozenset[str] = frozenset()
        """The nodes that have workloads in the mesh."""
        self._seen: World | None = None
        self._index = TrafficIndex()
        self._all: dict[str, _Shared] = {}
        self._tell: dict[str, Tell] = {}
        """Where each node was last heard."""
        self._since: float | None = None
        self._woken = trio.Event()

    @property
    def kept(self) -> bool:
        """Whether the buckets are here."""
        return self._since is not None

    def part(self, tell: Tell) -> None:
        """Who was told this way is not connected any more.

        Its nodes go on with what they have, and by their part of the limits: that stays reserved for a while.
        """
        self._tell = {node: known for node, known in self._tell.items() if known != tell}

    def answered(self, node: str, grants: LimitGrants) -> None:
        """What the controller that keeps the buckets has for a node."""
        if node in self._tell:
            self._tell[node](node, grants)

    def report(self, node: str, message: LimitReports, tell: Tell) -> None:
        """What a node asks for. It is answered by `tell`; call `part` when that leads nowhere any more."""
        self._tell[node] = tell
        if self._since is None:
            if self._forward is not None:
                self._forward(node, message)
            return
        now = trio.current_time()
        index = self._in_force()
        nodes = max(len(self._meshed), len(self._tell))
        grants: dict[str, Grant] = {}
        for name, report in message.reports.items():
            if (limit := index.shared_limit(name)) is None:
                continue
            shared = self._of(name, limit, now, self._since)
            bounded = replace(report, consumers=min(report.consumers, nodes))
            grants[name] = shared.allocator.report(node, bounded, now)
        for name in message.left:
            if name in self._all:
                self._all[name].allocator.leave(node)
                grants.pop(name, None)
        if grants:
            self.answered(node, LimitGrants(grants))
        self._woken.set()

    async def keep(self) -> NoReturn:
        """Keep the buckets and hold rounds, until cancelled."""
        self._since = trio.current_time()
        try:
            while True:
                self._woken = trio.Event()
                self._round(trio.current_time())
                await trio.sleep(_TURN)
                deadlines = (s.until if s.allocator.idle else s.allocator.deadline for s in self._all.values())
                with trio.move_on_at(min(deadlines, default=math.inf)):
                    await self._woken.wait()
        finally:
            self._since = None
            self._all.clear()

    def _round(self, now: float) -> None:
        messages: defaultdict[str, dict[str, Grant]] = defaultdict(dict)
        for name, shared in list(self._all.items()):
            if now >= shared.until and shared.allocator.idle:
                del self._all[name]
            elif now >= shared.allocator.deadline:
                for node, grant in shared.allocator.round(now).items():
                    messages[node][name] = grant
        for node, grants in messages.items():
            self.answered(node, LimitGrants(grants))

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

    def _of(self, name: str, limit: RateLimit, now: float, since: float) -> _Shared:
        if (shared := self._all.get(name)) is None:
            # Soon after the start, tokens that a controller before this one gave away may still be about.
            bucket = Bucket(limit, now, empty=now < since + FORGET)
            shared = self._all[name] = _Shared(limit, Allocator(bucket, now), now)
        shared.until = now + max((limit.burst or limit.requests) * limit.seconds / limit.requests, FORGET)
        return shared
