from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.enrol import Enrolled
from controller.schema.manifests import load
from controller.store import Resource
from controller.translate import World, world
from mesh.model import Action, Enrolment, MtlsMode, Workload

CREATED = 1_700_000_000


def build(text: str, *enrolled: Enrolled) -> World:
    manifests, problems = load([("f", text)])
    assert problems == []
    stored = [Resource(*m.key, m.body, "uid", 1, 1, CREATED) for m in manifests]
    for resource in stored:  # as `Resources.apply` completes it
        if resource.kind == "Service" and "clusterIPs" not in resource.body["spec"]:
            stated = resource.body["spec"].get("clusterIP")
            resource.body["spec"]["clusterIPs"] = [stated] if stated else ["10.96.0.1"]
    return world(stored, {e.workload.uid: e for e in enrolled})


def enrolled(name: str, *addresses: str, node: str = "node-a", **labels: str) -> Enrolled:
    return Enrolled(node, Enrolment(name, "shop", "web", labels, addresses))


def manifest(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> str:
    others = {"Service": "v1", "Workload": "nodemesh.dev/v1alpha1", "HTTPRoute": "gateway.networking.k8s.io/v1"}
    version = others.get(kind, "security.istio.io/v1")
    meta = {"name": name, "namespace": "shop", **metadata}
    return "---\n" + yaml.safe_dump({"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec})


def test_a_service_has_an_endpoint_for_each_address_of_its_family_that_it_selects() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "admin", "port": 81}]
    ports.append({"name": "dns", "port": 53, "protocol": "UDP"})
    made = build(
        manifest("Service", "web", {"selector": {"app": "web"}, "ports": ports})
        + manifest("Workload", "old", {"address": "10.0.0.9"}, labels={"app": "web"}),
        enrolled("web-1", "10.77.0.1", "fd77::1", app="web", x="y"),
        enrolled("db-1", "10.77.0.2", app="db"),
    )
    service = made.services["shop/web"]
    assert [(p.name, p.port) for p in service.ports] == [("http", 80), ("admin", 81)]
    assert [(e.address, e.workload, e.ports) for e in service.endpoints] == [
        ("10.77.0.1", "shop/web-1", (8080, 81)),
        ("10.0.0.9", "shop/old", (8080, 81)),
    ]


def test_a_headless_service_has_no_address_and_endpoints_of_both_families() -> None:
    spec = {"selector": {"app": "web"}, "clusterIP": "None"}
    service = build(manifest("Service", "web", spec), enrolled("w", "10.77.0.1", "fd77::1", app="web")).services[
        "shop/web"
    ]
    assert service.addresses == ()
    assert [e.address for e in service.endpoints] == ["10.77.0.1", "fd77::1"]


def test_a_service_without_a_selector_has_no_endpoints() -> None:
    made = build(manifest("Service", "web", {"ports": [{"port": 80}]}), enrolled("w", "10.77.0.1"))
    assert made.services["shop/web"].endpoints == ()


def test_enrolment_wins_over_a_declaration_of_the_same_name_or_address() -> None:
    declared = manifest("Workload", "web-1", {"address": "10.0.0.1", "serviceAccount": "other"}) + manifest(
        "Workload", "thief", {"addresses": ["10.77.0.1", "10.0.0.2"]}
    )
    made = build(declared + manifest("Workload", "none", {"address": "10.77.0.1"}), enrolled("web-1", "10.77.0.1"))
    assert made.workloads == {
        "shop/web-1": Workload("shop/web-1", "web-1", "shop", "web", "node-a", ("10.77.0.1",), True, "web-1", "latest"),
        "shop/thief": Workload("shop/thief", "thief", "shop", "default", "", ("10.0.0.2",), False, "thief", "latest"),
    }


@pytest.mark.parametrize(
    ("labels", "app", "version"),
    [
        ({}, "w", "latest"),
        ({"app": "a", "version": "1"}, "a", "1"),
        ({"app": "a", "app.kubernetes.io/name": "b", "app.kubernetes.io/version": "2", "version": "1"}, "b", "2"),
        ({"app": "a", "service.istio.io/canonical-name": "c", "service.istio.io/canonical-revision": "3"}, "c", "3"),
    ],
)
def test_app_and_version_follow_istios_canonical_labels(labels: dict[str, str], app: str, version: str) -> None:
    found = build("", enrolled("w", "10.77.0.1", **labels)).workloads["shop/w"]
    assert (found.app, found.version) == (app, version)


def test_every_clause_of_a_policy_arrives() -> None:
    source = {
        "principals": ["a/ns/b/sa/c"],
        "notNamespaces": ["x"],
        "ipBlocks": ["10.0.0.0/8"],
        "remoteIpBlocks": ["1.1.1.1"],
    }
    rule = {
        "from": [{"source": source}, {"source": {"serviceAccounts": ["web", "data/db"]}}],
        "to": [{"operation": {"ports": ["80"], "notPorts": ["81"], "paths": ["/x"]}}],
        "when": [{"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.2"]}],
    }
    spec = {"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [rule]}
    (policy,) = build(manifest("AuthorizationPolicy", "p", spec, annotations={"istio.io/dry-run": "True"})).policies
    assert (policy.key, policy.action, policy.selector, policy.dry_run) == ("shop/p", Action.DENY, {"app": "web"}, True)
    ((first, second), (operation,), (condition,)) = (
        policy.rules[0].sources,
        policy.rules[0].operations,
        policy.rules[0].conditions,
    )
    assert first.principals == ("a/ns/b/sa/c",)
    assert (first.not_namespaces, first.ip_blocks, first.http_clauses) == (("x",), ("10.0.0.0/8",), ("remoteIpBlocks",))
    assert second.service_accounts == ("shop/web", "data/db")
    assert (operation.ports, operation.not_ports, operation.http_clauses) == ((80,), (81,), ("paths",))
    assert (condition.key, condition.values, condition.not_values) == ("source.ip", ("10.0.0.1",), ("10.0.0.2",))


@pytest.mark.parametrize(("spec", "rules"), [({}, 0), ({"rules": None}, 0), ({"rules": []}, 0), ({"rules": [{}]}, 1)])
def test_no_rules_allow_nothing_and_an_empty_rule_is_kept(spec: dict[str, Any], rules: int) -> None:
    (policy,) = build(manifest("AuthorizationPolicy", "p", spec)).policies
    assert policy.action is Action.ALLOW
    assert len(policy.rules) == rules
    assert not policy.dry_run


def test_a_peer_authentication_arrives_with_its_ports() -> None:
    spec = {
        "selector": {"matchLabels": {"app": "web"}},
        "mtls": {"mode": "STRICT"},
        "portLevelMtls": {8080: {"mode": "DISABLE"}, 8081: {}},
    }
    (made,) = build(manifest("PeerAuthentication", "p", spec)).peer_auths
    assert (made.mode, made.selector, made.created) == (MtlsMode.STRICT, {"app": "web"}, CREATED)
    assert made.port_modes == {8080: MtlsMode.DISABLE, 8081: MtlsMode.UNSET}
