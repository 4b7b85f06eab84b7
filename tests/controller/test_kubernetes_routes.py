"""Gateway API's routes on a (fake) cluster: read where their CRDs exist, and told what becomes of them."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.translate import CONTROLLER
from mesh.traffic import Parent
from tests.controller.fake_kubernetes import FakeKubernetes, fake_kubernetes
from tests.controller.test_kubernetes import OURS, Replica, running, until

GATEWAY = "apis/gateway.networking.k8s.io"
ROUTES = f"{GATEWAY}/v1/httproutes"
Json = dict[str, Any]


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with fake_kubernetes() as server:
        server.kinds |= {
            ROUTES: "HTTPRoute",
            f"{GATEWAY}/v1/grpcroutes": "GRPCRoute",
            f"{GATEWAY}/v1beta1/referencegrants": "ReferenceGrant",
        }
        for name, namespace in (("web", "shop"), ("api", "other")):
            spec = {"clusterIP": f"10.96.0.{len(name)}", "ports": [{"name": "http", "port": 80}]}
            server.put("api/v1/services", {"metadata": {"name": name, "namespace": namespace}, "spec": spec})
        yield server


@pytest.fixture
async def replica(cluster: FakeKubernetes, tmp_path: Path) -> AsyncIterator[Replica]:
    async with running(cluster, tmp_path / "a") as found:
        yield found


PARENT = {"group": "", "kind": "Service", "name": "web"}


def put(cluster: FakeKubernetes, *rules: Json, name: str = "r", parents: list[Json] | None = None) -> None:
    known = cluster.get(ROUTES, name, "shop") or {}
    spec = {"parentRefs": [PARENT] if parents is None else parents, "rules": list(rules)}
    generation = known.get("metadata", {}).get("generation", 0) + 1
    metadata = {"name": name, "namespace": "shop", "generation": generation}
    status = {"status": known["status"]} if "status" in known else {}
    body = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": spec}
    cluster.put(ROUTES, body | status)


def entries(cluster: FakeKubernetes, name: str = "r") -> list[Json]:
    return list(((cluster.get(ROUTES, name, "shop") or {}).get("status") or {}).get("parents") or ())


def said(cluster: FakeKubernetes, name: str = "r") -> list[dict[str, tuple[str, str]]]:
    """Of each parent: the conditions' status and reason."""
    ours = [entry for entry in entries(cluster, name) if entry["controllerName"] == CONTROLLER]
    assert all(c["message"] and c["lastTransitionTime"] for entry in ours for c in entry["conditions"])
    return [{c["type"]: (c["status"], c["reason"]) for c in entry["conditions"]} for entry in ours]


ACCEPTED = {"Accepted": ("True", "Accepted")}
GOOD = [ACCEPTED | {"ResolvedRefs": ("True", "ResolvedRefs")}]


async def test_a_route_is_told_what_becomes_of_it_as_what_it_refers_to_comes_and_goes(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    put(cluster, {"backendRefs": [{"name": "api", "namespace": "other", "port": 80}]})
    await until(lambda: said(cluster) == [ACCEPTED | {"ResolvedRefs": ("False", "RefNotPermitted")}])
    assert entries(cluster)[0]["parentRef"] == PARENT
    assert {c["observedGeneration"] for c in entries(cluster)[0]["conditions"]} == {1}
    assert replica.world.routes["HTTPRoute/shop/r"].rules[0].backends[0].invalid == "RefNotPermitted"
    before = entries(cluster)[0]["conditions"]

    source = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}
    grant = {"from": [source], "to": [{"group": "", "kind": "Service"}]}
    cluster.put(f"{GATEWAY}/v1beta1/referencegrants", {"metadata": {"name": "g", "namespace": "other"}, "spec": grant})
    await until(lambda: said(cluster) == GOOD)
    after = {c["type"]: c for c in entries(cluster)[0]["conditions"]}
    assert after["Accepted"] == next(c for c in before if c["type"] == "Accepted")

    cluster.remove("api/v1/services", "web", "shop")
    await until(lambda: said(cluster)[0]["Accepted"] == ("False", "NoMatchingParent"))
    assert replica.world.routes == {}


async def test_a_route_that_makes_no_sense_is_not_accepted_and_not_followed(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    put(cluster, {"filters": [{"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "y", "name": "z"}}]})
    await until(lambda: said(cluster) == [{"Accepted": ("False", "UnsupportedValue")}])
    (condition,) = entries(cluster)[0]["conditions"]
    assert "spec.rules[0].filters[0].type: the filter ExtensionRef is not supported" in condition["message"]
    assert replica.world.routes == {}
    put(cluster, {"backendRefs": [{"name": "web", "port": 80}]})
    await until(lambda: said(cluster) == GOOD)
    assert {c["observedGeneration"] for c in entries(cluster)[0]["conditions"]} == {2}


async def test_other_controllers_parents_and_statuses_are_left_alone(cluster: FakeKubernetes, replica: Replica) -> None:
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}
    theirs = {"parentRef": gateway, "controllerName": "edge.example/gateway", "conditions": []}
    extension = {"filters": [{"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "y", "name": "z"}}]}
    put(cluster, extension, name="theirs", parents=[gateway])
    put(cluster, {}, name="both", parents=[gateway, PARENT])
    await until(lambda: said(cluster, "both") == GOOD)
    body = copy.deepcopy(cluster.get(ROUTES, "both", "shop"))
    assert body is not None
    body["status"]["parents"].append(theirs)
    cluster.put(ROUTES, body)
    put(cluster, {}, name="both", parents=[gateway, {**PARENT, "port": 81}])
    await until(lambda: said(cluster, "both") and said(cluster, "both")[0]["Accepted"][0] == "False")
    assert theirs in entries(cluster, "both")
    put(cluster, {}, name="both", parents=[gateway])
    await until(lambda: entries(cluster, "both") == [theirs])
    assert entries(cluster, "theirs") == []
    assert set(replica.world.route_statuses) == set()


async def test_a_traffic_policy_has_conditions_and_reaches_the_world(cluster: FakeKubernetes, replica: Replica) -> None:
    def conditions(name: str) -> dict[str, str]:
        found = ((cluster.get(f"{OURS}/trafficpolicies", name, "shop") or {}).get("status") or {}).get("conditions")
        return {c["type"]: c["status"] for c in found or ()}

    for name, spec in (("good", {"timeout": "10s"}), ("bad", {"timeout": "soon"})):
        body = {"metadata": {"name": name, "namespace": "shop"}, "spec": {"targetRef": {"name": "web"}, **spec}}
        cluster.put(f"{OURS}/trafficpolicies", body)
    await until(lambda: conditions("good") == {"Accepted": "True", "Programmed": "True"})
    await until(lambda: conditions("bad") == {"Accepted": "False", "Programmed": "False"})
    assert {key: policy.timeout for key, policy in replica.world.traffic.items()} == {"shop/good": 10.0}


async def test_routes_are_read_once_their_crds_are_installed_whatever_the_version(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.mirror._ABSENT_SECONDS", 0.05)
    del cluster.kinds[ROUTES]
    async with running(cluster, tmp_path / "a") as replica:
        assert replica.world.routes == {}
        older = f"{GATEWAY}/v1beta1/httproutes"
        cluster.kinds[older] = "HTTPRoute"
        body = {"apiVersion": "gateway.networking.k8s.io/v1beta1", "spec": {"parentRefs": [{**PARENT, "port": 80}]}}
        cluster.put(older, {"metadata": {"name": "old", "namespace": "shop"}, **body})
        await until(lambda: "HTTPRoute/shop/old" in replica.world.routes)
        assert replica.world.routes["HTTPRoute/shop/old"].parents == (Parent("shop/web", 80),)
        await until(lambda: "status" in (cluster.get(older, "old", "shop") or {}))
