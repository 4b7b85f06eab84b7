"""Rate limits that hold for the mesh, at the controller: what nodes may ask for, and what becomes of those that go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.lowlevel
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
    def __init__(self, limit: RateLimit, *nodes: str) -> None:
        self.world = world(limit, *nodes)
        self.forwarded: list[tuple[str, LimitReports]] = []
        self.limits = SharedLimits(lambda: self.world, lambda *asked: self.forwarded.append(asked))
        self.got: dict[str, int] = {}
        self.consumers: dict[str, int] = {}

    def tell(self, node: str, message: LimitGrants) -> None:
        for grant in message.grants.values():
            self.got[node] = self.got.get(node, 0) + grant.tokens
            self.consumers[node] = grant.consumers

    def ask(self, node: str, wanted: int, **other: int) -> None:
        self.limits.report(node, LimitReports({NAME: Report(10.0, wanted, **other)}), self.tell)


async def started(nursery: trio.Nursery, mesh: Mesh) -> Mesh:
    """Long enough ago for its buckets to be full."""
    nursery.start_soon(mesh.limits.keep)
    await trio.sleep(20)
    return mesh


TEN = RateLimit("all", 10, shared=True)


async def test_what_there_is_is_granted_and_the_rest_dealt_out_as_it_comes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    mesh = await started(nursery, Mesh(TEN, "a", "b"))
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
    nursery.start_soon(mesh.limits.keep)
    await trio.sleep(1)
    mesh.ask("a", 10)
    assert mesh.got == {"a": 0}
    await trio.sleep(0.55)
    assert 4 <= mesh.got["a"] <= 6


async def test_a_node_that_goes_leaves_its_part_to_the_others(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    mesh = await started(nursery, Mesh(TEN, "a", "b"))
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
    mesh.limits.report("a", LimitReports({NAME: Report(0.0, 0)}, (NAME,)), mesh.tell)


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
    message = decode(FromNode, encode(LimitReports({NAME: hostile, "shop/web/none": hostile, "": hostile}), FromNode))
    for _ in range(50):
        mesh.limits.report("b", message, mesh.tell)
        mesh.ask("a", 100)
        await trio.sleep(0.1)
    assert mesh.got["a"] >= 20
    assert sum(mesh.got.values()) <= 61
    assert mesh.consumers["a"] <= 2


async def test_a_limit_that_changes_is_another(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    mesh = await started(nursery, Mesh(TEN, "a"))
    mesh.ask("a", 10)
    mesh.world = world(replace(TEN, requests=20), "a")
    mesh.ask("a", 20)
    assert mesh.got == {"a": 30}
    mesh.world = world(replace(TEN, shared=False), "a")
    mesh.ask("a", 5)
    assert mesh.got == {"a": 30}


async def test_what_nodes_ask_is_forwarded_while_another_keeps_the_buckets(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    keeper = await started(nursery, Mesh(TEN, "a", "b"))
    other = Mesh(TEN, "a", "b")
    other.ask("b", 4)
    assert other.got == {}
    (asked,) = other.forwarded
    keeper.limits.report(*asked, other.limits.answered)
    keeper.ask("a", 8)
    await trio.sleep(1)
    assert other.got == {"b": 4}
    assert keeper.got == {"a": 8}
    other.limits.part(other.tell)
    other.limits.answered("b", LimitGrants({}))


async def test_who_keeps_the_buckets_no_longer_gives_away_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    mesh = Mesh(TEN, "a")
    with trio.move_on_after(20):
        await mesh.limits.keep()
    assert not mesh.limits.kept
    mesh.ask("a", 5)
    assert mesh.got == {}
    assert len(mesh.forwarded) == 1
    nursery.start_soon(mesh.limits.keep)
    await trio.sleep(0.01)
    mesh.ask("a", 5)
    assert mesh.got == {"a": 0}, "tokens that another controller has given away meanwhile"
