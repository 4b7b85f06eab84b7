"""Rate limits that hold for the mesh, in the control process: between its workers and the controller."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from mesh.model import MeshConfig, Workload
from mesh.ratelimit import Grant, Report
from mesh.snapshot import Snapshot
from mesh.sync import LimitGrants, LimitReports, Update
from mesh.traffic import RateLimit, TrafficPolicy
from noded.control.limits import SharedLimits

NAME = "shop/web/all"
LIMIT = RateLimit("all", 100, burst=10, shared=True)


def snapshot(limit: RateLimit | None, nodes: int = 4) -> Snapshot:
    """A mesh of so many nodes."""
    policy = TrafficPolicy("t", "shop", "shop/web", rate_limits=(limit,) if limit else ())
    workloads = tuple(
        Workload(f"shop/{n}", f"{n}", "shop", "client", f"node-{n}", (f"10.0.0.{n + 1}",), True, "client", "v1")
        for n in range(nodes)
    )
    update = Update("e", 1, 0, True, MeshConfig(), workloads, has_policies=True, traffic=(policy,))
    return Snapshot.empty().apply(update)


class Node:
    def __init__(self) -> None:
        self.snapshot = snapshot(LIMIT)
        self.got: dict[int, int] = {}
        self.limits = SharedLimits(lambda: self.snapshot, self.tell)

    def tell(self, worker: int, message: LimitGrants) -> None:
        self.got[worker] = self.got.get(worker, 0) + sum(grant.tokens for grant in message.grants.values())

    def ask(self, worker: int, wanted: int) -> None:
        self.limits.heard(worker, LimitReports({NAME: Report(50.0, wanted)}))


async def test_what_workers_want_is_asked_for_once_and_dealt_out(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    node = Node()
    nursery.start_soon(node.limits.run)
    node.ask(0, 6)
    node.ask(1, 3)
    message = await node.limits.next()
    assert message.reports[NAME].wanted >= 9
    node.limits.granted(LimitGrants({NAME: Grant(9, 4), "shop/web/other": Grant(5, 1)}))
    assert node.got == {0: 6, 1: 3}


async def test_nothing_is_said_where_nobody_asks(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    node = Node()
    nursery.start_soon(node.limits.run)
    node.limits.heard(0, LimitReports({"shop/web/none": Report(1.0, 1)}))
    with trio.move_on_after(3600) as scope:
        await node.limits.next()
    assert scope.cancelled_caught
    assert node.got == {}


async def test_messages_to_the_controller_are_few(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    node = Node()
    nursery.start_soon(node.limits.run)
    count, began = 0, trio.current_time()

    async def work() -> None:
        while True:
            node.ask(0, 10)
            await trio.sleep(0.001)

    nursery.start_soon(work)
    while trio.current_time() < began + 5:
        message = await node.limits.next()
        count += 1
        await trio.sleep(0.002)
        node.limits.granted(LimitGrants({NAME: Grant(1, 4)}))
        assert set(message.reports) == {NAME}
    assert count <= 5 / 0.05 + 2


async def test_without_the_controller_the_node_has_its_part_of_the_limit_and_no_more(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Also if it never was there since the node started: the snapshot says how many nodes there are."""
    node = Node()
    nursery.start_soon(node.limits.run)
    for _ in range(200):
        node.ask(0, 100)
        node.ask(1, 100)
        await trio.sleep(0.05)
    elapsed = 10 - 2
    assert 0.9 * elapsed * 25 <= sum(node.got.values()) <= elapsed * 25 + 10 / 4 + 1
    assert abs(node.got[0] - node.got[1]) <= 20


async def test_when_no_worker_has_to_do_with_it_the_tokens_are_given_back(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    node = Node()
    nursery.start_soon(node.limits.run)
    node.ask(0, 2)
    await node.limits.next()
    node.limits.granted(LimitGrants({NAME: Grant(7, 4)}))
    node.limits.heard(0, LimitReports({NAME: Report(0.0, 0, 1)}, (NAME,)))
    returned = 0
    while True:
        message = await node.limits.next()
        returned += message.reports[NAME].returned
        if message.left:
            break
    assert (returned, message.left) == (6, (NAME,))
    with trio.move_on_after(3600) as scope:
        await node.limits.next()
    assert scope.cancelled_caught


async def test_a_worker_that_ended_wants_nothing(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    node = Node()
    nursery.start_soon(node.limits.run)
    node.ask(0, 5)
    node.ask(1, 5)
    node.limits.worker_ended(0)
    node.limits.granted(LimitGrants({NAME: Grant(5, 4)}))
    assert node.got.get(0, 0) == 0
    assert node.got[1] == 5


async def test_a_node_that_finds_itself_alone_withholds_nothing_from_its_workers(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """It had thought that there were others, and told its workers so: they say it back."""
    node = Node()
    nursery.start_soon(node.limits.run)
    node.limits.heard(0, LimitReports({NAME: Report(50.0, 5)}))
    node.limits.granted(LimitGrants({NAME: Grant(0, 1, False)}))
    granted = 0
    for _ in range(20):
        node.limits.heard(0, LimitReports({NAME: Report(50.0, 20, consumers=4)}))
        await trio.sleep(0.1)
        node.limits.granted(LimitGrants({NAME: Grant(10, 1, False)}))
        granted += 10
    assert node.got[0] >= granted - 20
