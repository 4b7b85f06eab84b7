from __future__ import annotations

from typing import Any

from controller.kubernetes import objects
from controller.kubernetes.objects import Pod
from controller.kubernetes.policies import declared
from controller.kubernetes.world import Builder
from controller.translate import World
from mesh.model import Action, Endpoint, MtlsMode, Policy, Rule
from tests.controller import fake_kubernetes as fake

Json = dict[str, Any]


def a_pod(name: str, *addresses: str, created: str = "2026-01-01T00:00:00Z", **given: Any) -> Pod:
    body = fake.pod(name, **{"uid": f"uid-{name}", **given})
    body["metadata"]["creationTimestamp"] = created
    body["status"]["podIPs"] = [{"ip": address} for address in addresses]
    return objects.pod(body)


def a_slice(name: str, ports: list[Json], *endpoints: Json, family: str = "IPv4") -> Json:
    labels = {"kubernetes.io/service-name": "web"}
    metadata = {"name": name, "namespace": "shop", "labels": labels}
    return {"metadata": metadata, "addressType": family, "ports": ports, "endpoints": list(endpoints)}


def to(*addresses: str, ready: bool | None = True, name: str = "") -> Json:
    target = {"targetRef": {"kind": "Pod", "name": name, "namespace": "shop"}} if name else {}
    return {"addresses": list(addresses), "conditions": {"ready": ready} if ready is not None else {}, **target}


def built(
    pods: list[Pod],
    spec: Json | None = None,
    *slices: Json,
    more: list[tuple[str, Json]] | None = None,
    nodes: list[Json] | None = None,
) -> World:
    services = {}
    if spec is not None:
        found = objects.service({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
        services = {"shop/web": found} if found else {}
    resources = [declared(kind)(body).resource for kind, body in more or []]
    return Builder().build(
        {pod.key: pod for pod in pods},
        services,
        [entry for body in slices if (entry := objects.endpoint_slice(body))],
        [resource for resource in resources if resource],
        lambda pod: (pod.enrolled, pod.addresses),
        map(objects.node, nodes or []),
    )


def a_node(name: str, pods: str = "", *addresses: str) -> Json:
    status = {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]}
    return {"metadata": {"name": name}, "spec": {"podCIDR": pods} if pods else {}, "status": status}


HTTP = [{"name": "http", "port": 8080}]


def test_a_service_s_named_ports_have_the_targets_that_each_slice_says() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 81}]
    world = built(
        [a_pod("a", "10.77.0.1"), a_pod("b", "10.77.0.2")],
        {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": ports},
        a_slice("1", [{"name": "http", "port": 8080}, {"name": "admin", "port": 9000}], to("10.77.0.1", name="a")),
        a_slice("2", [{"name": "http", "port": 8081}], to("10.77.0.2", name="b")),
        a_slice("3", [{"name": "admin", "port": 9001}], to("10.77.0.2", name="b")),
    )
    service = world.services["shop/web"]
    assert service.addresses == ("10.96.0.1",)
    assert service.endpoints == (
        Endpoint("10.77.0.1", "shop/a", (8080, 9000)),
        Endpoint("10.77.0.2", "shop/b", (8081, 9001)),
    )


def test_an_endpoint_that_is_not_ready_is_left_out_unless_the_service_wants_it() -> None:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}
    slices = a_slice("1", HTTP, to("10.77.0.1", ready=False), to("10.77.0.2"), to("10.77.0.3", ready=None))
    assert [e.address for e in built([], spec, slices).services["shop/web"].endpoints] == ["10.77.0.2", "10.77.0.3"]
    everything = built([], {**spec, "publishNotReadyAddresses": True}, slices).services["shop/web"].endpoints
    assert [e.address for e in everything] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]


def test_a_headless_service_has_no_address_and_all_its_endpoints() -> None:
    spec = {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 8080}]}
    service = built([], spec, a_slice("1", HTTP, to("10.77.0.1"))).services["shop/web"]
    assert (service.addresses, [e.address for e in service.endpoints]) == ((), ["10.77.0.1"])


def test_endpoints_are_of_the_service_s_families() -> None:
    four, six = a_slice("4", HTTP, to("10.77.0.1")), a_slice("6", HTTP, to("fd00::1"), family="IPv6")
    ports = [{"name": "http", "port": 80}]
    dual = built([], {"clusterIPs": ["10.96.0.1", "fd96::1"], "ports": ports}, four, six).services["shop/web"]
    assert [e.address for e in dual.endpoints] == ["10.77.0.1", "fd00::1"]
    single = built([], {"clusterIPs": ["10.96.0.1"], "ports": ports}, four, six).services["shop/web"]
    assert [e.address for e in single.endpoints] == ["10.77.0.1"]


def test_a_name_for_something_outside_is_no_service_and_udp_is_no_port() -> None:
    assert built([], {"type": "ExternalName", "externalName": "example.org"}).services == {}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53}]
    assert [p.name for p in built([], {"clusterIP": "10.96.0.1", "ports": ports}).services["shop/web"].ports] == ["tcp"]


def test_an_address_that_two_pods_show_is_the_younger_s() -> None:
    world = built([a_pod("young", "10.77.0.1", created="2026-02-01T00:00:00Z"), a_pod("old", "10.77.0.1")])
    assert list(world.workloads) == ["shop/young"]


def test_a_node_cannot_take_an_address_out_of_another_s_range() -> None:
    victim = a_pod("victim", "10.77.0.1", node="node-a")
    thief = a_pod("thief", "10.77.0.1", "10.77.1.9", node="node-b", created="2026-02-01T00:00:00Z")
    world = built([thief, victim], nodes=[a_node("node-a", "10.77.0.0/24"), a_node("node-b", "10.77.1.0/24")])
    assert {uid: w.addresses for uid, w in world.workloads.items()} == {
        "shop/victim": ("10.77.0.1",),
        "shop/thief": ("10.77.1.9",),
    }


def test_an_address_of_a_node_or_a_service_is_no_pod_s_and_no_workload_s() -> None:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}
    declared_ = {
        "apiVersion": "nodemesh.dev/v1alpha1",
        "metadata": {"name": "vm", "namespace": "shop", "uid": "u"},
        "spec": {"addresses": ["10.96.0.1", "10.0.0.1", "10.1.0.1"]},
    }
    pods = [a_pod("api", "10.0.0.1"), a_pod("vip", "10.96.0.1")]
    world = built(pods, spec, more=[("Workload", declared_)], nodes=[a_node("node-a", "", "10.0.0.1")])
    assert {uid: w.addresses for uid, w in world.workloads.items()} == {"shop/vm": ("10.1.0.1",)}


def test_a_workload_cannot_wait_for_a_pod_s_address_to_be_sent_its_traffic_in_plaintext() -> None:
    body = {
        "apiVersion": "nodemesh.dev/v1alpha1",
        "metadata": {"name": "trap", "namespace": "shop", "uid": "u"},
        "spec": {"addresses": ["10.77.0.200", "fd00:0:0:1::5"]},
    }
    nodes = [a_node("node-a", "10.77.0.0/24"), a_node("node-b", "fd00:0:0:1::/64")]
    assert built([], more=[("Workload", body)], nodes=nodes).workloads == {}


def test_ranges_that_are_none_or_as_wide_as_the_world_are_not_a_node_s() -> None:
    ranges = [objects.node(a_node("n", text)).pod_ranges for text in ("0.0.0.0/0", "::/0", "nonsense", "10.77.0.9/24")]
    assert ranges == [(), (), (), ("10.77.0.0/24",)]


def test_a_service_with_endless_ports_and_endpoints_stays_of_a_size_that_nodes_can_take() -> None:
    ports = [{"name": f"p{n}", "port": n} for n in range(1, 20_001)]
    addresses = [f"10.77.{n >> 8}.{n & 255}" for n in range(1000)]
    world = built([], {"clusterIP": "10.96.0.1", "ports": ports}, a_slice("1", HTTP, *map(to, addresses)))
    assert len(world.services["shop/web"].endpoints) == 5


def test_pods_that_are_finished_or_in_their_node_s_network_are_no_workloads() -> None:
    pods = [a_pod("done", "10.77.0.1", phase="Failed"), a_pod("host", "10.0.0.1", hostNetwork=True), a_pod("new")]
    assert built(pods).workloads == {}


def test_the_annotation_counts_for_the_pod_that_it_names() -> None:
    right = a_pod("a", "10.77.0.1", annotations={objects.ENROLLED: "uid-a"})
    wrong = a_pod("b", "10.77.0.2", annotations={objects.ENROLLED: "uid-a"})
    world = built([right, wrong])
    assert (world.workloads["shop/a"].meshed, world.workloads["shop/b"].meshed) == (True, False)


def test_a_declared_workload_never_takes_a_pod_s_name_or_address() -> None:
    def workload(name: str, *addresses: str) -> tuple[str, Json]:
        metadata = {"name": name, "namespace": "shop", "uid": "u", "labels": {"app": "vm"}}
        return "Workload", {"metadata": metadata, "spec": {"addresses": list(addresses)}}

    world = built(
        [a_pod("web", "10.77.0.1")],
        {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
        a_slice("1", HTTP, to("10.77.9.1")),
        more=[workload("web", "10.77.9.9"), workload("vm", "10.77.0.1", "10.77.9.1")],
    )
    assert {uid: w.addresses for uid, w in world.workloads.items()} == {
        "shop/web": ("10.77.0.1",),
        "shop/vm": ("10.77.9.1",),
    }
    assert world.services["shop/web"].endpoints == (Endpoint("10.77.9.1", "shop/vm", (8080,)),)


def test_what_cannot_be_read_is_closed() -> None:
    metadata = {"name": "odd", "namespace": "shop", "uid": "u"}
    spec = {"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "SOMETIMES"}}
    entry = declared("PeerAuthentication")({"metadata": metadata, "spec": spec})
    assert "mtls.mode" in entry.problem
    (peer_auth,) = built([], more=[("PeerAuthentication", {"metadata": metadata, "spec": spec})]).peer_auths
    assert (peer_auth.mode, peer_auth.selector) == (MtlsMode.STRICT, {"app": "web"})
    assert declared("Workload")({"metadata": metadata, "spec": {}}).resource is None


def test_a_policy_too_large_to_send_to_every_node_is_closed_and_says_so() -> None:
    metadata = {"name": "endless", "namespace": "shop", "uid": "u"}
    spec = {"selector": {"matchLabels": {"app": "web"}}, "action": "ALLOW", "rules": [{}] * 400_000}
    entry = declared("AuthorizationPolicy")({"metadata": metadata, "spec": spec})
    assert "divide it" in entry.problem
    (policy,) = built([], more=[("AuthorizationPolicy", {"metadata": metadata, "spec": spec})]).policies
    assert (policy.action, policy.rules, policy.selector) == (Action.DENY, (Rule(),), {"app": "web"})
    blocks = {"rules": [{"from": [{"source": {"ipBlocks": [f"10.0.{n >> 8}.{n & 255}" for n in range(9000)]}}]}]}
    assert not declared("AuthorizationPolicy")({"metadata": metadata, "spec": blocks}).problem


def test_a_policy_that_did_not_change_is_translated_once() -> None:
    metadata = {"name": "deny", "namespace": "shop", "uid": "u"}
    read, builder = declared("AuthorizationPolicy"), Builder()

    def build(*resources: Any) -> tuple[Policy, ...]:
        return builder.build({}, {}, [], resources, lambda pod: (False, ())).policies

    resource = read({"metadata": metadata, "spec": {"action": "DENY"}}).resource
    (first,) = build(resource)
    assert build(resource)[0] is first
    assert build() == ()
    (changed,) = build(read({"metadata": metadata, "spec": {"action": "ALLOW"}}).resource)
    assert changed.action is Action.ALLOW


def test_what_did_not_change_is_the_same_object() -> None:
    builder, pods = Builder(), {p.key: p for p in (a_pod("a", "10.77.0.1"), a_pod("b", "10.77.0.2"))}

    def build() -> World:
        return builder.build(pods, {}, [], [], lambda pod: (pod.enrolled, pod.addresses))

    first = build()
    pods["shop/b"] = a_pod("b", "10.77.0.3")
    second = build()
    assert second.workloads["shop/a"] is first.workloads["shop/a"]
    assert second.workloads["shop/b"].addresses == ("10.77.0.3",)
