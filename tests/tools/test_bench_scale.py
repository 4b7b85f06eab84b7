"""What `tools/bench kube` simulates, and what it makes of its measurements."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from bench import simulated, usage
from bench.fleet import Question, View
from bench.scale import Change, Scale, document, percentile, tables
from bench.simulated import NAMESPACE, Plan
from controller.kubernetes import objects
from mesh.model import Endpoint, MeshConfig, Service, Workload
from mesh.sync import Update


def an_update(*workloads: Workload, full: bool = False, **rest: Any) -> Update:
    return Update("epoch", 2, 1, full, MeshConfig(), workloads, **rest)


def a_workload(name: str, *, meshed: bool = False, namespace: str = NAMESPACE) -> Workload:
    return Workload(f"{namespace}/{name}", name, namespace, "default", "n", ("10.128.0.2",), meshed)


def a_change(kind: str, ms: float, *, own: int = 900) -> Change:
    return Change(kind, {"known": ms / 1000}, (100, 100, own), (1, 1, 2), {"controller 1": 0.01, "controller 2": 0.02})


def test_every_pod_has_an_address_of_its_nodes_range_and_no_other_pods() -> None:
    plan = Plan(pods=3000, nodes=300)
    addresses = {}
    for number in range(3050):  # as many changes come on top
        address = ipaddress.ip_address(plan.address_of(number))
        body = simulated.node(plan, plan.node_of(number))
        assert address in ipaddress.ip_network(objects.node(body | _metadata(body)).pod_ranges[0])
        addresses[address] = number
    assert len(addresses) == 3050
    assert {plan.service_of(number) for number in range(3050)} == {f"service-{n:04}" for n in range(plan.services)}


@pytest.mark.parametrize(("pods", "nodes"), [(0, 1), (1, 0), (201, 1), (1, 5001)])
def test_a_plan_that_has_no_room_is_refused(pods: int, nodes: int) -> None:
    with pytest.raises(ValueError, match="nodes"):
        Plan(pods, nodes)


def test_the_controller_sees_a_simulated_pod_as_it_sees_a_real_one() -> None:
    plan = Plan(40, 4)
    body = simulated.pod(plan, 21)
    seen = objects.pod(body | _metadata(body) | simulated.pod_status(plan, 21, ready=True))
    assert (seen.node, seen.addresses, seen.labels) == (plan.node(1), ("10.128.1.7",), {"app": "service-0001"})
    noded = simulated.noded_pod(plan, 1)
    assert objects.pod(noded | _metadata(noded)).host_network
    assert simulated.token_request(noded | _metadata(noded))["spec"]["boundObjectRef"]["uid"] == "u"


def _metadata(body: simulated.Json) -> simulated.Json:
    return {"metadata": {"uid": "u", "namespace": NAMESPACE} | body["metadata"]}


def test_a_view_follows_its_namespace_and_no_other() -> None:
    view = View(NAMESPACE)
    endpoints = (Endpoint("10.128.0.2", f"{NAMESPACE}/a", (8080,)),)
    services = (Service("s", NAMESPACE, (), (), endpoints), Service("s", "other", (), (), ()))
    view.apply(an_update(a_workload("a"), a_workload("x", namespace="other"), full=True, services=services))
    assert (view.known, view.meshed, view.endpoints) == ({"scale/a"}, set(), {"s": frozenset({"10.128.0.2"})})
    view.apply(an_update(a_workload("a", meshed=True)))
    assert (view.known, view.meshed) == ({"scale/a"}, {"scale/a"})
    view.apply(an_update(removed=("w:scale/a", "s:scale/s")))
    assert (view.known, view.meshed, view.endpoints) == (set(), set(), {})


async def test_a_question_is_answered_when_it_is_true_of_the_last_node() -> None:
    question = Question(lambda view: "scale/a" in view.known, {"one", "two"})
    one, two = View(NAMESPACE), View(NAMESPACE)
    one.apply(an_update(a_workload("a")))
    assert not question.look("one", one)
    assert not question.look("two", two)
    assert question.missing == 1
    two.apply(an_update(a_workload("a")))
    assert question.look("two", two)
    assert await question.answered() > 0


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 51)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.01)) == (25, 50, 7)


def test_the_document_and_the_tables_hold_what_was_measured() -> None:
    scale = Scale(2000, 100, 100, joined_s=1.5, filling_s={"all there": 60.25}, filling_cpu_s={"controller 1": 12.5})
    scale.rss_mb["2000 pods"] = {"controller 1": 81.0}
    scale.idle_cpu_share["2000 pods"] = {"controller 1": 0.01}
    scale.changes = [a_change("deleted", 10), a_change("deleted", 30), a_change("deleted", 20), a_change("made", 5)]
    written = document(scale)
    assert json.loads(json.dumps(written)) == written
    assert list(written["changes"]) == ["deleted", "made"]
    assert written["changes"]["deleted"] == {
        "number": 3,
        "ms": {"known": {"p50": 20.0, "p99": 30.0}},
        "bytes_a_node": 100,
        "bytes_most": 900,
        "updates_a_node": 1.33,
        "controllers_cpu_ms": 30.0,
    }
    text = tables(scale)
    assert "| deleted | known | 20 | 30 | 100 | 900 | 1.33 | 30.0 |" in text
    assert "| controller 1 | 81 | 1.0% | 12.5 |" in text
    assert "| all there | 60.2 |" in text


def test_a_process_that_is_in_no_pod_is_not_found() -> None:
    with pytest.raises(ProcessLookupError, match="no python"):
        usage.in_pod("0123-none", "python")


def test_busy_time_of_the_machine_grows_with_ours() -> None:
    before = usage.busy_us()
    while usage.busy_us() < before + 50_000:  # what the kernel says of the two is not of the same moment
        sum(range(100_000))
