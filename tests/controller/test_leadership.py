from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from controller.kubernetes.client import Client
from controller.kubernetes.leadership import LEASE, Leadership
from tests.controller.fake_kubernetes import FakeKubernetes, fake_kubernetes

LEASES, NS = "apis/coordination.k8s.io/v1/leases", "nodemesh-system"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with fake_kubernetes() as server:
        yield server


async def until(true: Callable[[], Any]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.sleep(0.01)


class Candidate:
    """A replica that notes when it leads."""

    def __init__(self, client: Client, name: str) -> None:
        self.election = Leadership(
            client,
            NS,
            name,
            clock=lambda: 1_800_000_000 + trio.current_time() % 1e6,
            duration=1,
            deadline=0.6,
            retry=0.05,
        )
        self.leads = False
        self.scope = trio.CancelScope()

    async def lead(self) -> None:
        self.leads = True
        try:
            await trio.sleep_forever()
        finally:
            self.leads = False

    async def run(self) -> None:
        with self.scope:
            await self.election.run(self.lead)


def holder(cluster: FakeKubernetes) -> str:
    return str((cluster.get(LEASES, LEASE, NS) or {"spec": {}})["spec"].get("holderIdentity"))


async def test_one_leads_and_hands_over_at_once_when_it_stops(cluster: FakeKubernetes, nursery: trio.Nursery) -> None:
    async with Client(cluster.access) as client:
        one, two = Candidate(client, "one"), Candidate(client, "two")
        nursery.start_soon(one.run)
        await until(lambda: one.leads)
        nursery.start_soon(two.run)
        await trio.sleep(0.3)
        assert not two.leads
        one.scope.cancel()
        await until(lambda: two.leads)
        assert not one.leads
        assert holder(cluster) == "two"
        assert (cluster.get(LEASES, LEASE, NS) or {})["spec"]["leaseTransitions"] >= 1
        two.scope.cancel()
        await until(lambda: not two.leads)


async def test_a_leader_that_died_is_followed_once_its_lease_has_run_out(
    cluster: FakeKubernetes, nursery: trio.Nursery
) -> None:
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": "2999-01-01T00:00:00.000000Z"}
    cluster.put(LEASES, {"metadata": {"name": LEASE, "namespace": NS}, "spec": spec})
    async with Client(cluster.access) as client:
        two = Candidate(client, "two")
        nursery.start_soon(two.run)
        await until(lambda: two.leads)  # whatever the dead one's clock said
        assert holder(cluster) == "two"
        two.scope.cancel()
        await until(lambda: not two.leads)


async def test_a_leader_that_cannot_renew_stops_leading(cluster: FakeKubernetes, nursery: trio.Nursery) -> None:
    async with Client(cluster.access) as client:
        one = Candidate(client, "one")
        nursery.start_soon(one.run)
        await until(lambda: one.leads)
        cluster.stop()
        await until(lambda: not one.leads)
        cluster.start()
        await until(lambda: one.leads)
        one.scope.cancel()
        await until(lambda: not one.leads)


async def test_a_leader_whose_lease_was_taken_stops_leading(cluster: FakeKubernetes, nursery: trio.Nursery) -> None:
    async with Client(cluster.access) as client:
        one = Candidate(client, "one")
        nursery.start_soon(one.run)
        await until(lambda: one.leads)
        spec = {"holderIdentity": "other", "leaseDurationSeconds": 60, "renewTime": "2026-01-01T00:00:00.000000Z"}
        cluster.put(LEASES, {"metadata": {"name": LEASE, "namespace": NS}, "spec": spec})
        await until(lambda: not one.leads)
        assert holder(cluster) == "other"
        one.scope.cancel()
