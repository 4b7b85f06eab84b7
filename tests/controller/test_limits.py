"""Rate limits that hold for the mesh, at the controller: what nodes may ask for, and what becomes of those that go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from controller.limits import SharedLimits
from controller.translate import World
from mesh.codec import decode, encode
from mesh.model import Workload
from mesh.ratelimit import Report
from mesh.sync import FromNode, LimitGrants, LimitReports
from mesh.traffic import RateLimit, TrafficPolicy

NAME = "shop/web/all"


def world(limit: RateLimit, *nodes: str) -> World:
    policy = TrafficPolicy("t", "shop", "shop/web", rate_limits=(limit,))
    workloads = {
        node: Workload(f"shop/{node}", node, "shop", "client", node, (f"10.0.0.{i}",), True, node, "v1")
        for i, node in enumerate(nodes, 1)
    }
    return World(workloads=workloads, traffic={policy.key: policy})


class Mesh:
    def __init__(self, limit: RateLimit, *nodes: str, replicated: bool = False) -> None:
        self.world = world(limit, *nodes)
        self.limits = SharedLimits(lambda: self.world, replicated=replicated)
        self.got: dict[str, int] = {}
        self.consumers: dict[str, int] = {}

    def connect(self, node: str) -> None:
        def tell(message: LimitGrants) -> None:
            for grant in message.grants.values():
                self.got[node] = self.got.get(node, 0) + grant.tokens
                self.consumers[node] = grant.consumers

        self.limits.join(node, tell)

    def ask(self, node: str, wanted: int, **other: int) -> None:
        self.limits.report(node, LimitReports({NAME: Report(10.0, wanted, **other)}))


async def started(nursery: trio.Nursery, mesh: Mesh) -> Mesh:
    """Long enough ago for its buckets to be full."""
    nursery.start_soon(mesh.limits.run)
    await trio.sleep(20)
    return mesh


TEN = RateLimit("all", 10, shared=True)


async def test_what_there_is_is_granted_and_the_rest_dealt_out_as_it_comes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    mesh = await started(nursery, Mesh(TEN, "a", "b"))
    mesh.connect("a")
    mesh.connect("b")
    mesh.ask("a", 8)
    assert mesh.got == {"a": 8}
    for _ in range(100):
        mesh.ask("a", 100)
        mesh.ask("b", 3)
        await trio.sleep(0.1)
    assert 100 <= sum(mesh.got.values()) <= 112
    assert abs(mesh.got["a"] - 8 - mesh.got["b"]) <= 4, "not max-min fair"


async def test_soon_after_a_start_there_are_no_tokens_saved_up(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    mesh = Mesh(TEN, "a")
    nursery.start_soon(mesh.limits.run)
    await trio.sleep(1)
    mesh.connect("a")
    mesh.ask("a", 10)
    assert mesh.got == {"a": 0}
    await trio.sleep(0.55)
    assert 4 <= mesh.got["a"] <= 6


async def test_a_node_that_goes_leaves_its_part_to_the_others(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    mesh = await started(nursery, Mesh(TEN, "a", "b"))
    mesh.connect("a")
    mesh.connect("b")
    for _ in range(20):
        mesh.ask("a", 100)
        mesh.ask("b", 100)
        await trio.sleep(0.1)

    async def rate_of_a(seconds: int) -> float:
        before = mesh.got["a"]
        for _ in range(seconds * 10):
            mesh.ask("a", 100)
            await trio.sleep(0.1)
        return (mesh.got["a"] - before) / seconds

    assert await rate_of_a(2) <= 6
    await rate_of_a(1)
    assert 4 <= await rate_of_a(5) <= 6, "what a silent node may be making itself was given to another"
    await rate_of_a(5)
    assert 9 <= await rate_of_a(5) <= 10.5
    mesh.limits.report("a", LimitReports({NAME: Report(0.0, 0)}, (NAME,)))


@pytest.mark.parametrize(
    "hostile",
    [
        Report(float("nan"), 5),
        Report(float("inf"), 2**63),
        Report(-1.0, -5, -7, -9),
        Report(1.0, 0, returned=2**63),
        Report(1.0, 5, consumers=2**63),
    ],
)
async def test_no_report_crashes_it_or_takes_more_than_a_fair_part(
    autojump_clock: MockClock, nursery: trio.Nursery, hostile: Report
) -> None:
    mesh = await started(nursery, Mesh(TEN, "a", "b"))
    mesh.connect("a")
    mesh.connect("b")
    message = decode(FromNode, encode(LimitReports({NAME: hostile, "shop/web/none": hostile, "": hostile}), FromNode))
    for _ in range(50):
        mesh.limits.report("b", message)
        mesh.ask("a", 100)
        await trio.sleep(0.1)
    assert mesh.got["a"] >= 20
    assert sum(mesh.got.values()) <= 61
    assert mesh.consumers["a"] <= 2


async def test_a_limit_that_changes_is_another(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    mesh = await started(nursery, Mesh(TEN, "a"))
    mesh.connect("a")
    mesh.ask("a", 10)
    mesh.world = world(replace(TEN, requests=20), "a")
    mesh.ask("a", 20)
    assert mesh.got == {"a": 30}
    mesh.world = world(replace(TEN, shared=False), "a")
    mesh.ask("a", 5)
    assert mesh.got == {"a": 30}


async def test_a_replica_has_as_much_of_a_limit_as_it_has_of_the_nodes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Two replicas of the controller, which know nothing of each other, with one node and three."""
    names = ("a", "b", "c", "d")
    first = await started(nursery, Mesh(TEN, *names, replicated=True))
    second = await started(nursery, Mesh(TEN, *names, replicated=True))
    first.connect("a")
    for node in "bcd":
        second.connect(node)
    for _ in range(100):
        first.ask("a", 100)
        for node in "bcd":
            second.ask(node, 100)
        await trio.sleep(0.1)
    assert 25 <= first.got["a"] <= 30
    assert 75 <= sum(second.got.values()) <= 86
    assert first.consumers["a"] >= 4
    assert second.consumers["b"] >= 4
