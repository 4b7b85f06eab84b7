"""meshctl against a real mesh-controller: what the canned answers of test_meshctl.py promise is what it says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.cli import main
from tests.unix_api import Result, daemon, invoke

MANIFESTS = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {address: 10.77.1.2, serviceAccount: web}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/shop/sa/client"]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
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


@pytest.fixture
def applied(meshctl: Meshctl, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "all.yaml"
    path.write_text(MANIFESTS)
    result = meshctl("apply", "-f", str(path))
    assert result.status == 0, result.err
    yield path
    meshctl("delete", "-f", str(path))


def test_a_fault_is_shown_under_its_line_and_nothing_is_applied(meshctl: Meshctl, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MANIFESTS.replace('"cluster.local', '"spiffe://cluster.local'))
    result = meshctl("apply", "-f", str(path))
    assert result.status == 1
    assert result.err.startswith(f"{path}:21:29: spec.rules[0].from[0].source.principals[0]: ")
    _where, source, mark, hint, *_ = result.err.splitlines()
    assert source[mark.index("^") :].startswith('"spiffe://')
    assert "'cluster.local/ns/shop/sa/client'" in hint
    assert meshctl("get", "services", "-A").out == ""


def test_resources_are_applied_listed_and_deleted(meshctl: Meshctl, applied: Path) -> None:
    assert "service/web -n shop unchanged" in meshctl("apply", "-f", str(applied)).out
    for kind, shown in (("svc", "http:80"), ("wl", "10.77.1.2"), ("ap", "DENY"), ("pa", "STRICT")):
        row = meshctl("get", kind, "-n", "shop", "--no-headers").out.split()
        assert shown in row
        assert "-" not in row[:4]
    assert meshctl("get", "wl", "-A", "-l", "app=db").out == ""
    assert json.loads(meshctl("get", "ap/web", "-n", "shop", "-o", "json").out)["spec"]["action"] == "DENY"
    assert meshctl("delete", "ap", "web", "-n", "shop").status == 0
    result = meshctl("delete", "-f", str(applied))
    assert result.status == 1
    assert "authorizationpolicy/web -n shop not found" in result.out


def test_the_mesh_is_described_and_checked(meshctl: Meshctl, applied: Path) -> None:
    lines = [line.split() for line in meshctl("describe", "svc", "web", "-n", "shop").out.splitlines()]
    assert ["10.77.1.2", "8080", "shop/web-1", "-", "no"] in lines
    assert ["AuthorizationPolicy", "shop", "web", "DENY"] in lines
    assert "spiffe://cluster.local/ns/shop/sa/web" in meshctl("describe", "wl", "web-1", "-n", "shop").out
    assert meshctl("workloads", "--no-headers").out.split() == ["shop", "web-1", "-", "no", "web", "10.77.1.2"]
    assert meshctl("services", "--no-headers").out.split()[3:] == ["http:80", "1"]
    result = meshctl("policy", "check", "--from", "shop/client", "--to", "shop/web:http", "--no-headers")
    assert result.out.split()[:3] == ["shop/web-1", "8080", "allowed"]
    assert "not in the mesh" in result.out
    result = meshctl("policy", "check", "--from", "shop/client", "--to", "shop/nothing:80")
    assert (result.status, "no service shop/nothing" in result.err) == (1, True)


def test_tokens_are_made_listed_and_revoked(meshctl: Meshctl) -> None:
    assert meshctl("token", "create", "--allow", "shop/*", "--uses", "2").out.startswith("nm1.")
    identifier, allow, node, uses, *_ = meshctl("token", "list", "--no-headers").out.split()
    assert (allow, node, uses) == ("shop/*", "-", "2")
    assert meshctl("token", "revoke", identifier).status == 0
    assert meshctl("token", "list").out == ""
    assert meshctl("token", "create", "--allow", "Shop!/web").status == 1


def test_what_is_not_there_exits_1_with_what_there_is(meshctl: Meshctl) -> None:
    result = meshctl("get", "gadgets")
    assert result.status == 1
    assert "services, workloads" in result.err
    assert meshctl("node", "forget", "node-x").status == 1
    assert (meshctl("nodes").out, meshctl("edges").out) == ("", "")


def test_the_roots_can_be_had_as_pem(meshctl: Meshctl) -> None:
    assert meshctl("ca", "-o", "pem").out.startswith("-----BEGIN CERTIFICATE-----\n")
    assert "cluster.local" in meshctl("ca").out


def test_the_root_is_rotated_step_by_step_or_all_at_once(meshctl: Meshctl) -> None:
    before = meshctl("ca", "-o", "pem").out
    out_of_turn = meshctl("ca", "rotate", "--step", "drop")
    assert out_of_turn.status == 1
    assert "next step is 'add'" in out_of_turn.err
    assert "add:" in meshctl("ca", "rotate", "--step", "add").out
    both = meshctl("ca", "-o", "pem").out
    assert both.startswith(before)
    rest = meshctl("ca", "rotate")
    assert [line.partition(":")[0] for line in rest.out.splitlines()] == ["sign", "drop"]
    after = meshctl("ca", "-o", "pem").out
    assert after.count("BEGIN") == 1
    assert after != before
    assert after in both
