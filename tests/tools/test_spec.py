"""Testbed files: what is read, and that everything wrong is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.document import SpecError
from testbed.spec import Spec, parse

SHOP = """\
name: shop
nodes: [node-a, node-b]
pods:
  - {name: client, node: node-a, namespace: shop, serviceAccount: client, labels: {app: client}}
  - {name: web, node: node-b, namespace: shop, run: [python3, -m, http.server, "8080"]}
  - {name: outsider, node: node-b, namespace: other, mesh: false}
services:
  - {name: web, namespace: shop, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
noded: {workers: 1}
"""


def read(text: str) -> Spec:
    return parse(text, Path("shop.yaml"))


def faults(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        read(text)
    return str(caught.value)


def test_a_file_becomes_nodes_pods_and_services() -> None:
    spec = read(SHOP)
    client, web, outsider = spec.pods
    assert [node.address for node in spec.nodes] == ["172.30.0.1", "172.30.0.2"]
    assert client.addresses == ("10.77.1.2", "fd77:0:0:1::2")
    assert outsider.addresses == ("10.77.2.3", "fd77:0:0:2::3")
    assert (client.mesh, web.service_account, outsider.mesh) == (True, "default", False)
    assert web.run == ("python3", "-m", "http.server", "8080")
    assert spec.services[0]["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": 8080}]
    assert spec.noded == {"workers": 1}


def test_namespaces_carry_the_testbeds_name() -> None:
    assert read(SHOP).namespaces == (
        "nm-shop-controller",
        "nm-shop-fabric",
        "nm-shop-node-a",
        "nm-shop-node-b",
        "nm-shop-shop.client",
        "nm-shop-shop.web",
        "nm-shop-other.outsider",
    )


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("serviceAccount", "serviceAcount", "shop.yaml:4: pods[0].serviceAcount: unknown key; did you mean"),
        ("node: node-b, namespace: other", "node: node-c", "shop.yaml:6: pods[2].node: 'node-c' is not one of nodes"),
        ("mesh: false", "mesh: 'no'", "shop.yaml:6: pods[2].mesh: must be true or false"),
        ("port: 80,", "port: 80000,", "shop.yaml:8: services[0].ports[0].port: must be a port"),
        ("name: shop\n", "name: my-shop\n", "shop.yaml:1: name: 'my-shop' must be"),
        ("node-b]", "controller]", "shop.yaml:2: nodes: 'controller' can't be used"),
        ("name: web, node", "name: client, node", "shop.yaml:5: pods[1]: there is a pod shop/client already"),
        ("nodes: [node-a, node-b]", "nodes: {", "not YAML"),
        ("noded: {workers: 1}", "policies: [absent.yaml]", "shop.yaml:9: policies: there is no file absent.yaml"),
    ],
)
def test_a_mistake_is_told_with_its_line(old: str, new: str, complaint: str) -> None:
    assert complaint in faults(SHOP.replace(old, new, 1))


def test_all_mistakes_are_told_at_once() -> None:
    told = faults(SHOP.replace("mesh: false", "mesh: 7").replace("port: 80,", "prt: 80,"))
    assert [line.split(": ")[0] for line in told.splitlines()] == ["shop.yaml:6", "shop.yaml:8", "shop.yaml:8"]


def test_a_pod_is_found_by_name_or_uid_and_an_ambiguous_name_is_refused() -> None:
    spec = read(SHOP)
    assert spec.pod("web") == spec.pod("shop/web")
    twice = read(SHOP.replace("name: outsider", "name: web"))
    with pytest.raises(SpecError, match="'web' is one of shop/web, other/web"):
        twice.pod("web")
    with pytest.raises(SpecError, match="has no pod 'nobody'"):
        spec.pod("nobody")


def test_a_policy_file_is_needed_to_go_up_and_not_afterwards() -> None:
    text = SHOP + "policies: [absent.yaml]\n"
    assert "there is no file absent.yaml" in faults(text)
    assert parse(text, Path("shop.yaml"), up=True).name == "shop"
