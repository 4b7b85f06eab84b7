from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.cli import main
from tests.unix_api import Api, Result, invoke, serving

POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/shop/sa/client
        - other.example/ns/shop/sa/client
"""
WORKLOADS = """\
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web, namespace: shop, labels: {app: not-the-pods}}
  spec:
    template:
      metadata: {labels: {app: web}}
      spec: {containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
  spec:
    selector: {app: web}
    ports:
    - {name: http, port: 80, targetPort: http}
    - {name: more, port: 81, targetPort: grpc}
    - {name: dns, port: 53, targetPort: dns, protocol: UDP}
"""
ENROLLED = {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "service_account": "web", "meshed": True}

Meshctl = Callable[..., Result]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    answers: dict[str, Any] = {
        "GET /v1/resources/services": {"items": []},
        "GET /v1/resources/workloads": {"items": []},
        "GET /v1/resources/authorizationpolicies": {"items": []},
        "GET /v1/resources/peerauthentications": {"items": []},
        "GET /v1/resources/requestauthentications": {"items": []},
        "GET /v1/resources/httproutes": {"items": []},
        "GET /v1/resources/grpcroutes": {"items": []},
        "GET /v1/resources/referencegrants": {"items": []},
        "GET /v1/resources/trafficpolicies": {"items": []},
        "GET /v1/workloads": {"items": [ENROLLED]},
        "GET /v1/edges": {"items": []},
        "GET /v1/config": {"trust_domain": "cluster.local", "providers": []},
    }
    with serving(tmp_path / "controller.sock", answers) as found:
        yield found


@pytest.fixture
def meshctl(tmp_path: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> Meshctl:
    return lambda *args: invoke(main, capsys, "--socket", str(tmp_path / "controller.sock"), *args)


def written(folder: Path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder / f"{name}.yaml") for name in texts]


def test_a_finding_is_shown_with_file_line_code_and_remedy(meshctl: Meshctl, tmp_path: Path) -> None:
    (file,) = written(tmp_path, policy=POLICY)
    result = meshctl("analyze", file, "--trust-domain", "cluster.local")
    assert result.status == 1
    where, remedy = result.out.splitlines()
    assert where.startswith(f"{file}:11:11: error NM0104: AuthorizationPolicy shop/web: spec.rules[0].from[0].source.")
    assert remedy == "    write cluster.local/ns/shop/sa/client"
    assert result.err == "1 object: 1 error, 0 warnings\n"


def test_files_alone_are_taken_for_all_there_is_and_nobody_is_asked(meshctl: Meshctl, tmp_path: Path, api: Api) -> None:
    result = meshctl("analyze", *written(tmp_path, policy=POLICY, workloads=WORKLOADS))
    assert [line for line in result.out.splitlines() if not line.startswith(" ")] == [
        f"{tmp_path}/workloads.yaml:18:30: error NM0303: Service shop/web: spec.ports[1].targetPort: "
        "no workload it selects has a port named 'grpc'"
    ]
    assert api.requests == []


def test_warnings_alone_exit_0(meshctl: Meshctl, tmp_path: Path) -> None:
    result = meshctl(
        "analyze",
        *written(
            tmp_path,
            policy=POLICY.replace("{app: web}", "{app: wbe}"),
            more=WORKLOADS[: WORKLOADS.index("- apiVersion: v1")],
        ),
    )
    assert "warning NM0101" in result.out
    assert result.status == 0


def test_json_has_every_field(meshctl: Meshctl, tmp_path: Path) -> None:
    (file,) = written(tmp_path, policy=POLICY)
    result = meshctl("analyze", file, "--trust-domain", "cluster.local", "-o", "json")
    (item,) = json.loads(result.out)["items"]
    assert {k: v for k, v in item.items() if k not in ("message", "remedy")} == {
        "code": "NM0104",
        "severity": "error",
        "kind": "AuthorizationPolicy",
        "namespace": "shop",
        "name": "web",
        "file": file,
        "line": 11,
        "column": 11,
        "path": "spec.rules[0].from[0].source.principals[1]",
        "documentation": "docs/reference/analyze.md#nm0104",
    }


def test_what_is_not_valid_is_a_finding_with_its_line(meshctl: Meshctl, tmp_path: Path) -> None:
    files = written(tmp_path, policy=POLICY.replace("rules", "rulez"), broken="a: [")
    result = meshctl("analyze", *files)
    assert f"{files[0]}:6:3: error NM0001: AuthorizationPolicy shop/web: spec.rulez: unknown field" in result.out
    assert f"{files[1]}:2:1: error NM0001: not valid YAML" in result.out
    assert result.status == 1


def test_live_looks_at_what_the_controller_has(meshctl: Meshctl, api: Api) -> None:
    assert meshctl("analyze", "--live").status == 0
    metadata = {"name": "p", "namespace": "shop", "creationTimestamp": "2024-01-01T00:00:00Z", "uid": "u"}
    stored = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": {}}
    api.answers["GET /v1/resources/authorizationpolicies"] = {"items": [stored]}
    assert "warning NM0106: AuthorizationPolicy shop/p" in meshctl("analyze", "--live").out
    assert meshctl("analyze", "--live", "-n", "other").out == ""


def test_live_knows_who_was_seen_in_plaintext(meshctl: Meshctl, api: Api) -> None:
    strict = {"kind": "PeerAuthentication", "metadata": {"name": "pa", "namespace": "shop"}}
    api.answers["GET /v1/resources/peerauthentications"] = {"items": [strict | {"spec": {"mtls": {"mode": "STRICT"}}}]}
    assert meshctl("analyze", "--live").out == ""
    api.answers["GET /v1/edges"] = {
        "items": [
            {
                "reporter": "destination",
                "security": "none",
                "opened": 1,
                "source": {"workload": "unknown"},
                "destination": {"workload": "web", "namespace": "shop"},
            }
        ]
    }
    assert "NM0203" in meshctl("analyze", "--live").out


def test_a_file_beside_live_counts_as_applied(meshctl: Meshctl, tmp_path: Path) -> None:
    (file,) = written(tmp_path, policy=POLICY)
    result = meshctl("analyze", file, "--live")
    assert f"{file}:11:11: error NM0104" in result.out  # the trust domain is the controller's
    assert "NM0101" not in result.out  # a workload that is enrolled has the label
    (file,) = written(tmp_path, policy=POLICY.replace("{app: web}", "{app: wbe}"))
    assert "NM0101" in meshctl("analyze", file, "--live").out


def test_nothing_to_analyse_is_a_usage_error(meshctl: Meshctl) -> None:
    assert meshctl("analyze").status == 2


ROUTES = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: tcp-admin, port: 81}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs:
  - {group: "", kind: Service, name: web}
  - {group: "", kind: Service, name: web, port: 81}
  - {group: "", kind: Service, name: wbe}
  rules:
  - matches: [{path: {value: /a}}]
    backendRefs:
    - {name: web, port: 80}
    - {name: web-v2, port: 80}
    - {name: api, namespace: other, port: 80}
  - matches: [{path: {value: /b}}]
    backendRefs: [{name: web, port: 80, weight: 0}]
  - matches: [{path: {value: /a}}]
    backendRefs: [{name: web, port: 80}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: t, namespace: shop}
spec: {targetRef: {name: wbe}}
"""
GATEWAYS = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge, namespace: shop}
spec:
  parentRefs: [{name: edge}]
  rules: [{filters: [{type: ExtensionRef, extensionRef: {group: x, kind: y, name: z}}]}]
"""


def test_routes_and_traffic_policies_are_looked_at(meshctl: Meshctl, tmp_path: Path) -> None:
    (file,) = written(tmp_path, routes=ROUTES)
    result = meshctl("analyze", file, "-o", "json")
    assert result.status == 1
    assert {(row["line"], row["code"]) for row in json.loads(result.out)["items"]} == {
        (12, "NM0507"),
        (13, "NM0506"),
        (18, "NM0501"),
        (21, "NM0504"),
        (22, "NM0508"),
        (28, "NM0601"),
    }
    assert "did you mean shop/web?" in result.out


def test_a_route_of_a_gateway_is_not_looked_at(meshctl: Meshctl, tmp_path: Path) -> None:
    (file,) = written(tmp_path, gateways=GATEWAYS)
    assert meshctl("analyze", file).out == ""


def test_with_live_a_grant_is_missed_and_a_service_elsewhere(meshctl: Meshctl, api: Api, tmp_path: Path) -> None:
    there = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]}}
    services = [{**there, "metadata": {"name": name, "namespace": ns}} for name, ns in (("web", "shop"), ("api", "x"))]
    api.answers["GET /v1/resources/services"] = {"items": services}
    text = ROUTES.partition("---")[2].partition("---")[0].replace("namespace: other", "namespace: x")
    (file,) = written(tmp_path, routes=text)
    codes = {row["code"] for row in json.loads(meshctl("analyze", file, "--live", "-o", "json").out)["items"]}
    assert {"NM0501", "NM0502"} <= codes


TOKENS = """\
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: ra, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
  - issuer: https://issuer
    jwks: '{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"AA","y":"AA"}]}'
"""
ASKING = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: custom, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: opa}
  rules: [{}]
"""


def test_keys_that_cannot_be_used_are_pointed_at_in_the_file(meshctl: Meshctl, tmp_path: Path) -> None:
    (file,) = written(tmp_path, tokens=TOKENS)
    out = meshctl("analyze", file).out
    assert f"{file}:8:5: error NM0702: RequestAuthentication shop/ra: spec.jwtRules[0].jwks: " in out
    assert "key 'a'" in out


def test_live_knows_whom_custom_policies_can_ask_and_which_keys_were_fetched(
    meshctl: Meshctl, api: Api, tmp_path: Path
) -> None:
    (file,) = written(tmp_path, policy=ASKING)
    assert meshctl("analyze", file).out == ""
    assert f"{file}:6:14: error NM0110: AuthorizationPolicy shop/custom" in meshctl("analyze", file, "--live").out
    opa = {"name": "opa", "service": "shop/opa", "port": 9000}
    api.answers["GET /v1/config"] = {"trust_domain": "cluster.local", "providers": [opa]}
    assert "error NM0111" in meshctl("analyze", file, "--live").out
    service = {"kind": "Service", "metadata": {"name": "opa", "namespace": "shop"}, "spec": {"ports": [{"port": 9000}]}}
    api.answers["GET /v1/resources/services"] = {"items": [service]}
    assert meshctl("analyze", file, "--live").out == ""
    condition = {"type": "KeysFetched", "status": "False", "message": "no answer"}
    auth = {
        "kind": "RequestAuthentication",
        "metadata": {"name": "ra", "namespace": "shop"},
        "spec": {"jwtRules": [{"issuer": "https://issuer"}]},
        "status": {"conditions": [condition]},
    }
    api.answers["GET /v1/resources/requestauthentications"] = {"items": [auth]}
    result = meshctl("analyze", "--live")
    assert "warning NM0703: RequestAuthentication shop/ra: spec.jwtRules: no answer" in result.out
    assert result.status == 0
