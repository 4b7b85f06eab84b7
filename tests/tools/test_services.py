"""Names and DNAT rules that follow from the controller's list of services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed.services import hosts, translation
from testbed.spec import parse

POD = parse(
    "{name: t, nodes: [n], pods: [{name: client, node: n, namespace: shop}]}",
    Path("t.yaml"),
).pods[0]


def service(name: str, namespace: str, addresses: list[str], endpoints: list[tuple[str, int]]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "addresses": addresses,
        "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"address": address, "workload": "", "ports": [port]} for address, port in endpoints],
    }


def names(text: str, address: str) -> list[str]:
    return [name for line in text.splitlines() if line.split()[0] == address for name in line.split()[1:]]


def test_a_service_of_the_pods_namespace_has_its_short_name_too() -> None:
    text = hosts(POD, [service("web", "shop", ["10.96.0.1"], []), service("db", "data", ["10.96.0.2"], [])])
    assert names(text, "10.96.0.1") == ["web.shop.svc.cluster.local", "web.shop.svc", "web.shop", "web"]
    assert names(text, "10.96.0.2") == ["db.data.svc.cluster.local", "db.data.svc", "db.data"]


def test_a_headless_service_has_the_addresses_of_its_endpoints() -> None:
    text = hosts(POD, [service("web", "shop", [], [("10.77.1.2", 80), ("10.77.2.2", 80)])])
    assert "web" in names(text, "10.77.1.2")
    assert "web" in names(text, "10.77.2.2")


def test_endpoints_share_the_connections_evenly() -> None:
    rules = translation([service("web", "shop", ["10.96.0.1"], [("10.77.1.2", 8080), ("10.77.2.2", 8080)])], 4)
    chosen = [line for line in rules.splitlines() if line.startswith("-A services")]
    assert "--probability 0.500000" in chosen[0]
    assert "--to-destination 10.77.1.2:8080" in chosen[0]
    assert "--probability" not in chosen[1]
    assert "--to-destination 10.77.2.2:8080" in chosen[1]


def test_families_stay_apart_and_ports_without_a_target_have_no_rule() -> None:
    mixed = service("web", "shop", ["10.96.0.1", "fd96::1"], [("10.77.1.2", 80), ("fd77::2", 80), ("10.77.1.3", 0)])
    v4, v6 = translation([mixed], 4), translation([mixed], 6)
    assert "fd77" not in v4
    assert "10.77.1.3" not in v4
    assert "--to-destination [fd77::2]:80" in v6
