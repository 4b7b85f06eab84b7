"""A simulated mesh whose nodes share one rate limit: clients, workers, nodes, a controller, and messages between them
that take time and, while the controller is away, get lost. Events in order of time; no clock but the simulation's."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections.abc import Callable
from itertools import count

from mesh.ratelimit import Allocator, Branch, Bucket, Grant, Report, Share, TokenBucket
from mesh.traffic import RateLimit

HOLD = 0.1
"""How long a request without a token is held where one may come."""
WORKER_SPACING, NODE_SPACING, TURN = 0.01, 0.05, 0.01
"""Seconds between messages of a worker and of a node, at least, and between a controller's rounds."""


class Mesh:
    """`demands` in requests a second, one for each worker of each node.

    `together`: so many requests come at a moment, where one by one would take too long to simulate. `delay` is the
    longest that a message between a node and the controller is under way.
    """

    def __init__(
        self, limit: RateLimit, demands: list[list[float]], seed: int, *, together: int = 1, delay: float = 0.01
    ) -> None:
        self.limit, self.together, self.delay = limit, together, delay
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.root = Allocator(Bucket(limit, 0.0), 0.0)
        self.cut: set[int] = set()
        """Nodes that do not reach the controller."""
        self.admitted: list[tuple[float, int]] = []
        """When, and on which node."""
        self.arrived: list[tuple[float, int]] = []
        self.reports = 0
        self.nodes = [Node(self, index, rates) for index, rates in enumerate(demands)]
        self.every(TURN, self.deal)

    def demand(self, demands: list[list[float]]) -> None:
        """From now on, of the same workers."""
        for node, rates in zip(self.nodes, demands, strict=True):
            for worker, rate in zip(node.workers, rates, strict=True):
                worker.demand(rate)

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), do))

    def every(self, period: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self.at(self.now + period, again)

        self.at(self.now, again)

    def run(self, until: float) -> None:
        while self.events[0][0] <= until:
            self.now, _, do = heapq.heappop(self.events)
            do()
        self.now = until

    def deal(self) -> None:
        if self.now >= self.root.deadline:
            for name, grant in self.root.round(self.now).items():
                self.nodes[int(name)].hear(grant)

    def restart_controller(self) -> None:
        self.root = Allocator(Bucket(self.limit, self.now, empty=True), self.now)

    def count_admitted(self, begin: float, end: float) -> int:
        """In that time; requests are admitted in its order."""
        return bisect_left(self.admitted, (end, -1)) - bisect_left(self.admitted, (begin, -1))

    def most_within(self, seconds: float) -> int:
        """The most that were admitted in any time of that length."""
        moments = dict.fromkeys(when for when, _ in self.admitted)
        return max((self.count_admitted(when, when + seconds) for when in moments), default=0)

    def one_bucket(self) -> list[float]:
        """When one bucket in one place would have admitted a request, of those that came."""
        bucket = TokenBucket.of(self.limit, 0.0)
        return [when for when, _ in self.arrived if bucket.take(when)]

    def latency(self) -> float:
        return self.random.uniform(0.05 * self.delay, self.delay)


class Node:
    """A node's control process with its workers."""

    def __init__(self, mesh: Mesh, index: int, rates: list[float]) -> None:
        self.mesh, self.index = mesh, index
        self.branch = Branch(mesh.limit, 0.0)
        self.spoke = -1.0
        self.wakes_at = -1.0
        self.arrives = 0.0
        """When the last message to the controller arrives, and the last from it: none overtakes another."""
        self.heard = 0.0
        self.workers = [Worker(self, str(number), rate) for number, rate in enumerate(rates)]
        self.turn()

    def turn(self) -> None:
        """Hold a round and report, if it is time to, and be woken when it will be."""
        now = self.mesh.now
        if now >= self.branch.deadline:
            self.pass_on(self.branch.round(now))
        if now >= max(self.branch.due, self.spoke + NODE_SPACING):
            self.spoke = now
            self.say(self.branch.report_up(now))
        wake = min(self.branch.deadline, max(self.branch.due, self.spoke + NODE_SPACING))
        if not now < self.wakes_at <= wake:
            self.wakes_at = max(wake, now + TURN)
            self.mesh.at(self.wakes_at, self.turn)

    def ask(self, name: str, report: Report) -> Grant:
        grant = self.branch.report(name, report, self.mesh.now)
        self.turn()
        return grant

    def say(self, report: Report) -> None:
        mesh = self.mesh
        mesh.reports += 1

        def arrives() -> None:
            if self.index not in mesh.cut:
                self.hear(mesh.root.report(str(self.index), report, mesh.now))

        self.arrives = max(self.arrives, mesh.now + mesh.latency())
        mesh.at(self.arrives, arrives)

    def hear(self, grant: Grant) -> None:
        def arrives() -> None:
            if self.index not in self.mesh.cut:
                self.pass_on(self.branch.granted(grant, self.mesh.now))
                self.turn()

        self.heard = max(self.heard, self.mesh.now + self.mesh.latency())
        self.mesh.at(self.heard, arrives)

    def pass_on(self, grants: dict[str, Grant]) -> None:
        for name, grant in grants.items():
            self.workers[int(name)].hear(grant)


class Worker:
    def __init__(self, node: Node, name: str, rate: float) -> None:
        self.node, self.name, self.rate = node, name, 0.0
        self.mesh = node.mesh
        self.share = Share(self.mesh.limit, 0.0)
        self.held: list[float] = []
        self.spoke = self.wakes_at = -1.0
        self.changes = 0
        self.turn()
        self.demand(rate)

    def demand(self, rate: float) -> None:
        self.rate = rate
        self.changes += 1
        self.next_clients(self.changes)

    def next_clients(self, change: int) -> None:
        if self.rate > 0:
            wait = self.mesh.random.expovariate(self.rate / self.mesh.together)
            self.mesh.at(self.mesh.now + wait, lambda: self.clients(change))

    def clients(self, change: int) -> None:
        if change != self.changes:
            return
        mesh, share = self.mesh, self.share
        now, one = mesh.now, (mesh.now, self.node.index)
        for _ in range(mesh.together):
            mesh.arrived.append(one)
            if share.take(now):
                mesh.admitted.append(one)
            elif share.worth_waiting and len(self.held) < share.most_waiting:
                self.held.append(now)
                mesh.at(now + HOLD, self.expire)
        self.turn()
        self.next_clients(change)

    def expire(self) -> None:
        while self.held and self.held[0] + HOLD <= self.mesh.now:
            self.held.pop(0)
            self.share.give_up(self.mesh.now)
        self.turn()

    def turn(self) -> None:
        """Report if it is time to, and be woken when it will be."""
        now = self.mesh.now
        if now >= max(self.share.due, self.spoke + WORKER_SPACING):
            self.spoke = now
            self.hear(self.node.ask(self.name, self.share.report(now)))
        wake = max(self.share.due, self.spoke + WORKER_SPACING)
        if not now < self.wakes_at <= wake:
            self.wakes_at = wake
            self.mesh.at(wake, self.turn)

    def hear(self, grant: Grant) -> None:
        now = self.mesh.now
        self.share.granted(grant, now)
        if not self.share.worth_waiting:
            self.held = []
        while self.held and self.share.take(now, again=True):
            self.held.pop(0)
            self.mesh.admitted.append((now, self.node.index))
        if now >= self.share.due:
            self.turn()
