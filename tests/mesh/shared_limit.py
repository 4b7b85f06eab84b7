"""A simulated mesh whose nodes share one rate limit: clients, workers, nodes, a controller, and messages between them
that take time and, while the controller is away, get lost. Events in order of time; no clock but the simulation's."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count

from mesh.ratelimit import Allocator, Branch, Bucket, Grant, Report, Share, TokenBucket
from mesh.traffic import RateLimit

HOLD = 0.1
"""How long a request without a token is held while there is plenty."""


class Mesh:
    """`demands` in requests a second, one for each worker of each node; with one worker a node, it is the consumer."""

    def __init__(self, limit: RateLimit, demands: list[list[float]], seed: int) -> None:
        self.limit = limit
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
        self.every(0.01, self.deal)

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
        return sum(begin <= when < end for when, _ in self.admitted)

    def one_bucket(self) -> list[float]:
        """When one bucket in one place would have admitted a request, of those that came."""
        bucket = TokenBucket.of(self.limit, 0.0)
        return [when for when, _ in self.arrived if bucket.take(when)]

    def latency(self) -> float:
        return self.random.uniform(0.0005, 0.01)


class Node:
    """A node's control process with its workers; with one worker only, that one talks to the controller itself."""

    def __init__(self, mesh: Mesh, index: int, rates: list[float]) -> None:
        self.mesh, self.index = mesh, index
        self.branch = Branch(mesh.limit, 0.0) if len(rates) > 1 else None
        self.workers = [Worker(self, str(number), rate) for number, rate in enumerate(rates)]
        if self.branch:
            mesh.every(0.05, self.turn)

    def turn(self) -> None:
        assert self.branch
        now = self.mesh.now
        if now >= self.branch.deadline:
            self.pass_on(self.branch.round(now))
        if now >= self.branch.due:
            self.say(self.branch.report_up(now))

    def ask(self, name: str, report: Report) -> Grant:
        assert self.branch
        grant = self.branch.report(name, report, self.mesh.now)
        self.turn()
        return grant

    def say(self, report: Report) -> None:
        mesh = self.mesh
        mesh.reports += 1

        def arrives() -> None:
            if self.index not in mesh.cut:
                self.hear(mesh.root.report(str(self.index), report, mesh.now))

        mesh.at(mesh.now + mesh.latency(), arrives)

    def hear(self, grant: Grant) -> None:
        def arrives() -> None:
            if self.index in self.mesh.cut:
                return
            if self.branch:
                self.pass_on(self.branch.granted(grant, self.mesh.now))
                self.turn()
            else:
                self.workers[0].hear(grant)

        self.mesh.at(self.mesh.now + self.mesh.latency(), arrives)

    def pass_on(self, grants: dict[str, Grant]) -> None:
        for name, grant in grants.items():
            self.workers[int(name)].hear(grant)


class Worker:
    def __init__(self, node: Node, name: str, rate: float) -> None:
        self.node, self.name, self.rate = node, name, rate
        self.mesh = node.mesh
        self.share = Share(self.mesh.limit, 0.0)
        self.held: list[float] = []
        self.wakes_at = -1.0
        self.turn()
        self.next_client()

    def next_client(self) -> None:
        if self.rate > 0:
            self.mesh.at(self.mesh.now + self.mesh.random.expovariate(self.rate), self.client)

    def client(self) -> None:
        now = self.mesh.now
        self.mesh.arrived.append((now, self.node.index))
        if self.share.take(now):
            self.mesh.admitted.append((now, self.node.index))
        elif self.share.worth_waiting:
            self.held.append(now)
        self.turn()
        self.next_client()

    def turn(self) -> None:
        """Report if it is time to, and be woken when it will be."""
        now = self.mesh.now
        if now >= self.share.due:
            report = self.share.report(now)
            if self.node.branch:
                self.hear(self.node.ask(self.name, report))
            else:
                self.node.say(report)
        if not now < self.wakes_at <= self.share.due:
            self.wakes_at = max(self.share.due, now + 0.001)
            self.mesh.at(self.wakes_at, self.turn)

    def hear(self, grant: Grant) -> None:
        now = self.mesh.now
        self.share.granted(grant, now)
        self.held = [since for since in self.held if now < since + HOLD and self.share.worth_waiting]
        while self.held and self.share.take(now, again=True):
            self.held.pop(0)
            self.mesh.admitted.append((now, self.node.index))
        if now >= self.share.due:
            self.mesh.at(now + 0.001, self.turn)
