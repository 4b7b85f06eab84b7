"""Routes and traffic policies through meshctl, against a real mesh-controller."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.cli import main
from tests.unix_api import Result, daemon, invoke

MANIFESTS = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-v2, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - backendRefs: [{name: web, port: 80, weight: 90}, {name: web-v2, port: 80, weight: 10}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec: {targetRef: {name: web}, timeout: 10s, loadBalancing: {policy: Maglev}}
"""

Meshctl = Callable[..., Result]


@pytest.fixture(scope="module")
def controller() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("state", "run"):
            (folder / part).mkdir(mode=0o700)
        config = folder / "controller.yaml"
        config.write_text(
            f'listen: "127.0.0.1:0"\nmonitoringAddress: "127.0.0.1:0"\n'
            f"stateDir: {folder}/state\nrunDir: {folder}/run\nmeshRanges: [10.77.0.0/16]\n"
        )
        with daemon("controller.main", config, folder / "run/controller.sock"):
            yield folder / "run/controller.sock"


@pytest.fixture
def meshctl(controller: Path, capsys: pytest.CaptureFixture[str]) -> Meshctl:
    return lambda *args: invoke(main, capsys, "--socket", str(controller), *args)


@pytest.fixture(autouse=True)
def applied(meshctl: Meshctl, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "all.yaml"
    path.write_text(MANIFESTS)
    result = meshctl("apply", "-f", str(path))
    assert result.status == 0, result.err
    yield path
    meshctl("delete", "-f", str(path))


def shown(meshctl: Meshctl, *args: str) -> Any:
    result = meshctl(*args, "-o", "json")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_a_route_says_what_became_of_it_as_it_would_on_kubernetes(meshctl: Meshctl) -> None:
    (entry,) = shown(meshctl, "get", "httproute", "canary", "-n", "shop")["status"]["parents"]
    assert entry["parentRef"] == {"group": "", "kind": "Service", "name": "web", "port": 80}
    assert entry["controllerName"] == "nodemesh.dev/controller"
    assert {c["type"]: (c["status"], c["reason"]) for c in entry["conditions"]} == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    assert {c["observedGeneration"] for c in entry["conditions"]} == {1}


def test_what_get_shows_of_a_route_can_be_applied_again(meshctl: Meshctl, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(meshctl("get", "hr", "canary", "-n", "shop", "-o", "yaml").out)
    assert "unchanged" in meshctl("apply", "-f", str(again)).out


def test_lists_show_services_and_conditions(meshctl: Meshctl) -> None:
    (row,) = meshctl("get", "httproutes", "-n", "shop", "--no-headers").out.splitlines()
    assert row.split()[:6] == ["shop", "canary", "shop/web:80", "1", "yes", "yes"]
    (row,) = meshctl("get", "tp", "-n", "shop", "--no-headers").out.splitlines()
    assert row.split()[:5] == ["shop", "web", "web", "-", "Maglev"]


def test_describe_says_why_a_route_does_not_do_what_it_says(meshctl: Meshctl) -> None:
    assert "shop/web:80" in (out := meshctl("describe", "httproute", "canary", "-n", "shop").out)
    assert "no (" not in out
    meshctl("delete", "service", "web-v2", "-n", "shop")
    out = meshctl("describe", "hr/canary", "-n", "shop").out
    assert "no (BackendNotFound)" in out
    assert "there is no service shop/web-v2" in out
    assert "no (BackendNotFound)" in meshctl("get", "hr", "-n", "shop").out


def test_describe_service_names_its_routes_and_policy(meshctl: Meshctl) -> None:
    out = meshctl("describe", "service", "web", "-n", "shop").out
    assert "HTTPRoute/shop/canary" in out
    assert "Traffic policy" in out
    other = meshctl("describe", "service", "web-v2", "-n", "shop").out
    assert "Routes" not in other
    assert "Traffic policy" not in other


def test_describe_says_whether_a_traffic_policy_holds(meshctl: Meshctl, tmp_path: Path) -> None:
    assert "service shop/web" in meshctl("describe", "tp", "web", "-n", "shop").out
    more = tmp_path / "more.yaml"
    policy = MANIFESTS.rpartition("---\n")[2]
    late, lost = policy.replace("{name: web, n", "{name: zz, n"), policy.replace("{name: web", "{name: none")
    more.write_text(f"{late}---\n{lost}")
    assert meshctl("apply", "-f", str(more)).status == 0
    assert "nothing: shop/web is for service shop/web, too, and older" in meshctl("describe", "tp/zz", "-n", "shop").out
    assert "nothing: there is no service shop/none" in meshctl("describe", "tp/none", "-n", "shop").out
    meshctl("delete", "-f", str(more))


def test_a_split_by_version_is_described_at_the_policy_and_the_service(meshctl: Meshctl, tmp_path: Path) -> None:
    file = tmp_path / "split.yaml"
    split = MANIFESTS.rpartition("---\n")[2].replace("timeout: 10s", "versions: {v1: 9, v2: 1}")
    file.write_text(split.replace("{name: web, n", "{name: api, n").replace("{name: web}", "{name: web-v2}"))
    workload = "apiVersion: nodemesh.dev/v1alpha1\nkind: Workload\nmetadata: {name: old, namespace: shop, labels: "
    workload += "{app: split, version: v2}}\nspec: {address: 10.0.0.9}\n---\n"
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: web-v2, namespace: shop}\n"
    service += "spec: {selector: {app: split}, ports: [{name: http, port: 80}]}\n---\n"
    file.write_text(workload + service + file.read_text())
    assert meshctl("apply", "-f", str(file)).status == 0
    assert "v1=9,v2=1" in meshctl("get", "tp", "api", "-n", "shop").out.replace(" ", "")
    for described in ("tp/api", "service/web-v2"):
        out = meshctl("describe", described, "-n", "shop").out
        rows = [line.split() for line in out.partition("Versions:\n")[2].splitlines()[1:3]]
        assert rows == [["v1", "9", "0%", "0"], ["v2", "1", "100%", "1"]]
    assert "Versions" not in meshctl("describe", "tp", "web", "-n", "shop").out
    out = meshctl("policy", "check", "--from", "shop/client", "--to", "shop/web-v2:80").out
    assert "shop/web-v2:80 is split by TrafficPolicy shop/api" in out
    assert "version v2: 100%, 1 endpoint\n" in out
    meshctl("delete", "-f", str(file))
    meshctl("apply", "-f", str(tmp_path / "all.yaml"))


def test_a_fault_is_shown_where_it_stands(meshctl: Meshctl, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(MANIFESTS.replace("weight: 90", "wieght: 90").replace("10s", "10"))
    result = meshctl("apply", "-f", str(file))
    assert result.status != 0
    assert f"{file}:17:41: spec.rules[0].backendRefs[0].wieght: unknown field" in result.err
    assert f"{file}:22:32: spec.timeout: 10 is not a duration" in result.err
