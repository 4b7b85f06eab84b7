"""The HTTP API over its real unix socket, as docs/reference/http-api.md describes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.controller.client import Credential, connected, join, workload
from tests.controller.conftest import Running

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {tier: front}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: nodemesh.dev/v1alpha1
kind: Workload
metadata: {name: old, namespace: shop, labels: {app: web}}
spec: {address: 10.77.9.9}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: shop}
spec: {}
"""


@pytest.fixture
async def api(controller: Running) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(controller.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://controller", timeout=10) as client:
        yield client


def files(text: str = MANIFESTS) -> dict[str, Any]:
    return {"files": [{"name": "m.yaml", "text": text}]}


async def test_only_the_owner_can_open_the_socket(controller: Running) -> None:
    assert controller.socket.stat().st_mode & 0o777 == 0o600


async def test_applied_resources_are_listed_shown_and_deleted(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/apply", json=files())
    assert answer.status_code == 200
    assert [(r["line"], r["kind"], r["result"]) for r in answer.json()["results"]] == [
        (2, "Service", "created"),
        (7, "Workload", "created"),
        (12, "AuthorizationPolicy", "created"),
    ]
    (service,) = (await api.get("/v1/services")).json()["items"]  # at once, not at the next publication
    assert service["hostname"] == "web.shop.svc.cluster.local"
    assert service["endpoints"] == [{"address": "10.77.9.9", "workload": "shop/old", "ports": [8080]}]
    for kind in ("services", "Service", "SERVICES"):
        (item,) = (
            await api.get(f"/v1/resources/{kind}", params={"namespace": "shop", "selector": "tier=front"})
        ).json()["items"]
        assert {"uid", "resourceVersion", "creationTimestamp", "generation"} <= item["metadata"].keys()
        assert item["spec"]["clusterIP"] in service["addresses"]
    for query in ({"namespace": "other"}, {"selector": "tier!=front"}, {"selector": "!tier"}):
        assert (await api.get("/v1/resources/services", params=query)).json() == {"items": []}
    assert (await api.get("/v1/resources/services", params={"selector": "a=b=c"})).status_code == 400
    one = "/v1/resources/authorizationpolicies/shop/nothing"
    assert (await api.get(one)).json()["metadata"]["name"] == "nothing"
    assert (await api.delete(one)).status_code == 200
    assert (await api.get(one)).status_code == (await api.delete(one)).status_code == 404
    results = (await api.post("/v1/delete", json=files())).json()["results"]
    assert [r["result"] for r in results] == ["deleted", "deleted", "not found"]


async def test_rejected_files_are_answered_with_every_problem(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/apply", json=files(MANIFESTS.replace("spec: {}", "spec: {rulez: []}")))
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem.keys() == {"file", "line", "column", "path", "message", "remedy"}
    assert (problem["file"], problem["line"], problem["path"]) == ("m.yaml", 15, "spec.rulez")
    assert "rules" in problem["remedy"]
    assert (await api.get("/v1/resources/services")).json() == {"items": []}


async def test_a_dry_run_changes_nothing(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/apply", params={"dryRun": "true"}, json=files())
    assert {r["result"] for r in answer.json()["results"]} == {"created"}
    assert (await api.get("/v1/resources/services")).json() == {"items": []}
    assert (await api.post("/v1/apply", params={"dryRun": "perhaps"}, json=files())).status_code == 400


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"not json", b"{}", b'{"files": [1]}', b'{"files": [{"name": "x"}]}', b"[" * 100_000]
)
async def test_a_bad_request_is_answered_with_400(api: httpx.AsyncClient, body: bytes) -> None:
    answer = await api.post("/v1/apply", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/resources/pods"),
        ("GET", "/nowhere"),
        ("DELETE", "/v1/nodes/none"),
        ("DELETE", "/v1/tokens/none"),
    ],
)
async def test_what_is_not_there_is_404_in_the_same_form(api: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await api.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "remedy"}


async def test_nodes_and_workloads_are_seen_and_a_node_can_be_forgotten(
    controller: Running, api: httpx.AsyncClient
) -> None:
    credential = await controller.join("node-a", "shop/*")
    async with connected(controller.port, credential) as node:
        await node.enrol(workload("web-1", "10.77.1.2", app="web"))
        (row,) = (await api.get("/v1/nodes")).json()["items"]
        assert row.keys() == {
            *("name", "connected", "since", "last_seen", "address", "version"),
            *("revision", "acked_revision", "last_nack", "workloads", "certificate_expires", "certificate_life"),
        }
        assert (row["name"], row["connected"], row["address"], row["workloads"]) == ("node-a", True, "127.0.0.1", 1)
        assert row["revision"] == row["acked_revision"]
        (shown,) = (await api.get("/v1/workloads")).json()["items"]
        assert (shown["uid"], shown["meshed"], shown["labels"]) == ("shop/web-1", True, {"app": "web"})
        assert shown["identity"] == "spiffe://cluster.local/ns/shop/sa/web"
        assert (await api.delete("/v1/nodes/node-a")).status_code == 200
        await node.closed.wait()
    assert (await api.get("/v1/nodes")).json() == (await api.get("/v1/workloads")).json() == {"items": []}


async def test_a_token_from_the_api_lets_a_node_in_and_is_shown_once(
    controller: Running, api: httpx.AsyncClient
) -> None:
    made = (
        await api.post("/v1/tokens", json={"allow": ["shop/*"], "node": "node-a", "ttl_seconds": 60, "uses": 1})
    ).json()
    assert made.keys() == {"token", "id", "expires"}
    listed = await api.get("/v1/tokens")
    assert made["token"].rpartition(".")[2] not in listed.text
    assert isinstance(await join(controller.port, made["token"], "node-a"), Credential)
    assert (await api.get("/v1/tokens")).json()["items"][0]["uses"] == 0
    assert (await api.delete(f"/v1/tokens/{made['id']}")).status_code == 200
    assert (await api.get("/v1/tokens")).json() == {"items": []}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"allow": "shop/*"},
        {"allow": [1]},
        {"allow": ["x"]},
        {"allow": ["a/b"], "uses": 0},
        {"allow": ["a/b"], "uses": True},
        {"allow": ["a/b"], "ttl_seconds": "1h"},
        {"allow": ["a/b"], "ttl": 1},
    ],
)
async def test_a_bad_request_for_a_token_is_refused(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await api.post("/v1/tokens", json=body)).status_code == 400


async def test_what_holds_for_the_whole_mesh_is_told(api: httpx.AsyncClient) -> None:
    config = (await api.get("/v1/config")).json()
    assert (config["trust_domain"], config["path_normalization"], config["providers"]) == ("cluster.local", "BASE", [])


async def test_policy_check_answers_for_each_endpoint(api: httpx.AsyncClient) -> None:
    await api.post("/v1/apply", json=files())
    ask = {"from": "shop/client", "to": "shop/web:80"}
    (answer,) = (await api.get("/v1/policy-check", params=ask)).json()["items"]
    assert answer.keys() == {
        *("workload", "port", "allowed", "policy", "rule", "reason", "mtls_mode", "dry_run", "service", "note", "why")
    }
    request = {"method": "PUT", "path": "/x/../a", "headers": "x-team: red\nx: y", "claims": '{"iss": "i"}'}
    asked = (await api.get("/v1/policy-check", params={**ask, **request})).json()
    assert (asked["items"][0]["service"], asked["route"]) == ("shop/web:80", None)
    for bad in ({"headers": "nonsense"}, {"claims": "{"}, {"claims": "[]"}, {"path": "x"}):
        assert (await api.get("/v1/policy-check", params={**ask, **bad})).status_code == 400
    assert (await api.get("/v1/policy-check", params={"from": "-"})).status_code == 400
    posted = await api.post("/v1/policy-check", json={**ask, "token": "a.b.c"})
    assert posted.json()["items"][0]["workload"] == "shop/old"
    for wrong in ({"token": 1}, {"token": "a.b.c", "claims": "{}"}):
        assert (await api.post("/v1/policy-check", json={**ask, **wrong})).status_code == 400
    assert (await api.get("/v1/policy-check", params={**ask, "to": "shop/none:80"})).status_code == 404


async def test_the_root_is_shown_without_its_key(controller: Running, api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/ca")
    (root,) = answer.json()["roots"]
    assert root.keys() == {"subject", "serial", "sha256", "not_before", "not_after", "pem"}
    assert root["sha256"] == controller.daemon.authority.root_sha256
    assert "PRIVATE" not in answer.text


async def test_health_and_metrics_are_on_tcp_and_nothing_else_is(controller: Running) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{controller.monitoring}") as tcp:
        for path in ("/healthz", "/readyz"):
            assert (await tcp.get(path)).status_code == 200
        assert "nodemesh_controller_nodes_connected 0.0" in (await tcp.get("/metrics")).text
        for path in ("/v1/tokens", "/v1/ca", "/v1/nodes"):
            assert (await tcp.get(path)).status_code == 404
        assert (await tcp.post("/v1/tokens", json={"allow": ["*/*"]})).status_code == 404
