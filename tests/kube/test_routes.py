"""Routes on a real cluster: Gateway API's CRDs come after the mesh and go before it, as they are the user's.

The CRDs here are stand-ins of the same names that keep whatever is in a spec, so that the mesh is all that judges it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kubebed.cluster import Cluster
from kubebed.errors import KubebedError
from tests.kube.mesh import Mesh, service
from tests.kube.pods import Space, eventually

GROUP = "gateway.networking.k8s.io"
KINDS = {"HTTPRoute": "v1", "GRPCRoute": "v1", "ReferenceGrant": "v1beta1"}
Json = dict[str, Any]


def definition(kind: str, version: str) -> Json:
    kept = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    plural = f"{kind.lower()}s"
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": kept, "status": kept}}},
        "subresources": {"status": {}},
    }
    # Names of this group are reserved: who has not asked says so.
    approved = {"api-approved.kubernetes.io": "unapproved, a test's stand-in"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "annotations": approved},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [served],
        },
    }


@pytest.fixture
def gateway_api(mesh: Mesh, cluster: Cluster) -> Iterator[None]:
    """The CRDs, installed while the mesh is there."""
    made = json.dumps({"apiVersion": "v1", "kind": "List", "items": [definition(*kind) for kind in KINDS.items()]})
    try:
        cluster.kubectl("apply", "-f", "-", stdin=made)
        names = [f"crd/{kind.lower()}s.{GROUP}" for kind in KINDS]
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
        yield
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=made)


def route(name: str, *backends: Json) -> Json:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": list(backends)}],
        },
    }


def conditions(shop: Space, name: str) -> dict[str, tuple[str, str]]:
    """Of the route's only parent: status and reason by type."""
    (parent,) = json.loads(shop.kubectl("get", "httproute", name, "-o", "json"))["status"]["parents"]
    assert parent["controllerName"] == "nodemesh.dev/controller"
    return {c["type"]: (c["status"], c["reason"]) for c in parent["conditions"]}


def test_a_route_is_told_what_became_of_it(mesh: Mesh, shop: Space, gateway_api: None) -> None:
    shop.apply(service("web"), route("canary", {"name": "web", "port": 80}, {"name": "web-v2", "port": 80}))
    missing = {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("False", "BackendNotFound")}
    eventually(lambda: conditions(shop, "canary") == missing)
    # From whichever replica answers: one may hear of the new kind, and so of the route, later than the other.
    eventually(lambda: "no (BackendNotFound)" in mesh.ctl("describe", "httproute", "canary", "-n", shop.name))
    shop.apply(service("web-v2"))
    eventually(lambda: conditions(shop, "canary")["ResolvedRefs"] == ("True", "ResolvedRefs"))
    shop.apply(route("canary", {"name": "web", "port": 80, "weight": -1}))
    eventually(lambda: conditions(shop, "canary") == {"Accepted": ("False", "UnsupportedValue")})


def test_a_traffic_policy_is_judged_by_the_api_server_and_by_the_mesh(mesh: Mesh, shop: Space) -> None:
    def policy(name: str, **spec: Any) -> Json:
        spec = {"targetRef": {"name": "web"}, **spec}
        return {
            "apiVersion": "nodemesh.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": name},
            "spec": spec,
        }

    def status(name: str) -> dict[str, str]:
        found = json.loads(shop.kubectl("get", "tp", name, "-o", "json"))["status"]["conditions"]
        return {c["type"]: c["status"] for c in found}

    shop.apply(
        service("web"), policy("good", timeout="10s", retryBudget={"percent": "20%"}), policy("bad", timeout="x")
    )
    eventually(lambda: status("good") == {"Accepted": "True", "Programmed": "True"})
    eventually(lambda: status("bad") == {"Accepted": "False", "Programmed": "False"})
    with pytest.raises(KubebedError, match="Unsupported value"):
        shop.apply(policy("worse", loadBalancing={"policy": "Rounds"}))
