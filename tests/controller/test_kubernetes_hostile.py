"""What people with rights in one namespace, and root of one node, try on the controller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.enrol import Refusal
from mesh.model import Enrolment
from tests.controller.client import connected
from tests.controller.fake_kubernetes import FakeKubernetes, fake_kubernetes, pod
from tests.controller.test_kubernetes import NS, PODS, Replica, assigned, home_of, running, until

SHOP = {"metadata": {"name": "shop", "labels": {"nodemesh.dev/mode": "enabled"}}}


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with fake_kubernetes() as server:
        server.put("api/v1/namespaces", SHOP)
        yield server


@pytest.fixture
async def replica(cluster: FakeKubernetes, tmp_path: Path) -> AsyncIterator[Replica]:
    async with running(cluster, tmp_path / "a") as found:
        yield found


def refusal(replica: Replica, node: str, workload: Enrolment) -> str:
    with pytest.raises(Refusal) as refused:
        replica.daemon.home.register.enrol(node, workload)
    return str(refused.value)


async def test_a_pod_with_endless_labels_is_refused_and_the_node_s_other_pods_are_not(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    credential = await replica.joined(cluster, "node-a")
    cluster.put(PODS, pod("web", "10.77.0.5"))
    cluster.put(PODS, pod("greedy", "10.77.0.6", labels={f"{n}.example.com/{'x' * 63}": "y" * 63 for n in range(4000)}))
    async with connected(replica.port, credential) as node:
        await node.until(lambda: (found := assigned(node)) and len(found.pods) == 2, "both pods")
        found = assigned(node)
        assert found is not None
        assert [(entry.name, len(entry.labels)) for entry in found.pods] == [("greedy", 0), ("web", 1)]
    assert "4000 labels" in refusal(replica, "node-a", Enrolment("greedy", "shop", "web", {}, ("10.77.0.6",)))
    replica.daemon.home.register.enrol("node-a", Enrolment("web", "shop", "web", {}, ("10.77.0.5",)))


async def test_a_node_cannot_say_that_its_pod_has_a_node_s_address(cluster: FakeKubernetes, replica: Replica) -> None:
    await replica.joined(cluster, "node-a")
    own = {"addresses": [{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "Hostname", "address": "node-b"}]}
    cluster.put("api/v1/nodes", {"metadata": {"name": "node-b"}, "status": own})
    cluster.put(PODS, pod("young"))
    pods, nodes = home_of(replica).cluster.pods, home_of(replica).cluster.nodes
    await until(lambda: "shop/young" in pods.objects and "node-b" in nodes.objects)
    assert "node 'node-b' itself" in refusal(replica, "node-a", Enrolment("young", "shop", "web", {}, ("10.0.0.2",)))


async def test_pods_for_nodes_that_never_were_leave_nothing_behind(cluster: FakeKubernetes, replica: Replica) -> None:
    seen = home_of(replica).cluster
    for number in range(20):
        cluster.put(PODS, pod(f"p-{number}", node=f"nowhere-{number}"))
    await until(lambda: len(seen.pods.objects) == 20)
    for number in range(20):
        cluster.remove(PODS, f"p-{number}", "shop")
    await until(lambda: not seen.pods.objects)
    assert not seen._on_node


async def test_a_range_that_a_node_gives_itself_does_not_make_the_world_the_mesh_s(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    for name, text in (("greedy", "0.0.0.0/0"), ("odd", "10.77.3.9/24"), ("none", "nonsense")):
        cluster.put("api/v1/nodes", {"metadata": {"name": name}, "spec": {"podCIDR": text}})
    await until(lambda: len(home_of(replica).cluster.nodes.objects) == 3)
    assert home_of(replica).ranges() == ("10.77.3.0/24",)


async def test_published_roots_that_somebody_removes_or_changes_come_back(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.home._LOOK_SECONDS", 0.05)
    maps, name = "api/v1/configmaps", "nodemesh-root"
    async with running(cluster, tmp_path / "a") as replica:
        bundle = replica.daemon.authority.bundle.decode()

        def published() -> bool:
            found = cluster.get(maps, name, NS)
            return found is not None and found["data"]["roots.pem"] == bundle

        await until(published)
        cluster.remove(maps, name, NS)
        await until(published)
        found = cluster.get(maps, name, NS)
        assert found is not None
        cluster.put(maps, found | {"data": {"roots.pem": "another's"}})
        await until(published)
