"""nodectl's commands about requests, against canned answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.model import Endpoint, MeshConfig, Service, ServicePort, Workload
from mesh.snapshot import Snapshot
from mesh.sync import Update
from mesh.traffic import TrafficPolicy
from noded.control.cli import main
from noded.control.view import endpoints
from tests.unix_api import Api, Request, Result, bash_completes, invoke, serving

ROW = {
    "id": "0-r3",
    "worker": 0,
    "time": "2026-11-20T15:47:06.318Z",
    "workload": "shop/client",
    "method": "GET",
    "authority": "web.shop",
    "path": "/a",
    "response_code": 503,
    "response_flags": "UF,URX",
    "duration": 12,
    "upstream_host": "10.77.2.2:8080",
    "request_id": None,
}
ENDPOINT = {
    "service": "shop/web",
    "port": 80,
    "address": "10.77.2.2",
    "target_port": 8080,
    "workload": "shop/web",
    "local": False,
    "active": 2,
    "ejected_seconds": 0.0,
    "ewma_ms": 4.0,
    "consecutive_errors": 0,
}
ROUTE = {
    "kind": "HTTPRoute",
    "namespace": "shop",
    "name": "web",
    "parents": [{"service": "shop/web", "port": 80}],
    "rules": [
        {"matches": [{"path": "/", "method": ""}], "backends": [{"service": "shop/web", "port": 80}]},
        {
            "matches": [
                {
                    "path": "/v2",
                    "compare": "Exact",
                    "method": "GET",
                    "headers": [{"name": "x-beta", "value": "y.*", "compare": "RegularExpression"}],
                    "query": [{"name": "page", "value": "2", "compare": "Exact"}],
                }
            ],
            "backends": [{"service": "shop/web-v2", "port": 80, "invalid": "BackendNotFound"}],
        },
    ],
}


class Nodectl:
    def __init__(self, path: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.api, self._capsys = str(path), api, capsys

    def __call__(self, *args: str) -> Result:
        return invoke(main, self._capsys, "--socket", self.path, *args)


@pytest.fixture
def nodectl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Nodectl]:
    answers: dict[str, Any] = {
        "GET /requests": {"items": [ROW], "after": "0-77.3"},
        "GET /endpoints": {"items": endpoints([{**ENDPOINT, "worker": 0}], Snapshot.empty(), ())},
        "GET /mesh/routes": {"items": [ROUTE]},
        "GET /mesh/services": {"items": [{"namespace": "shop", "name": "web"}]},
    }
    with serving(tmp_path / "noded.sock", answers) as api:
        yield Nodectl(tmp_path / "noded.sock", api, capsys)


def test_of_grpc_both_statuses_are_shown(nodectl: Nodectl) -> None:
    rows = [{**ROW, "response_code": 200, "grpc_status": 14}, {**ROW, "response_code": 200, "grpc_status": None}]
    nodectl.api.answers["GET /requests"] = {"items": rows, "after": ""}
    assert [line.split()[6] for line in nodectl("requests", "--no-headers").out.splitlines()] == ["200/14", "200"]


def test_nothing_found_is_told_apart_from_nothing_there(nodectl: Nodectl) -> None:
    nodectl.api.answers.update({"GET /requests": {"items": [], "after": ""}, "GET /endpoints": {"items": []}})
    assert nodectl("requests").err.startswith("No request of late.")
    assert nodectl("requests", "--code", "404").err.startswith("No such request of late.")
    assert nodectl("endpoints").err == "No service has an endpoint that requests can be sent to.\n"
    result = nodectl("endpoints", "--service", "shop/web")
    assert result.err == "shop/web has no endpoint that requests can be sent to.\n"


@pytest.mark.parametrize("name", ["web", "/web", "shop/"])
@pytest.mark.parametrize("option", ["requests --workload", "connections --workload", "endpoints --service"])
def test_a_name_without_its_namespace_is_refused(nodectl: Nodectl, option: str, name: str) -> None:
    result = nodectl(*option.split(), name)
    assert result.status == 2
    assert f"'{name}' is not NAMESPACE/NAME" in result.err
    assert not nodectl.api.requests


def test_requests_are_a_table_of_those_asked_for(nodectl: Nodectl) -> None:
    row = nodectl("requests", "--path", "/a*", "--code", "5xx", "--method", "get", "--no-headers").out.split()
    assert row[0] == "0-r3"
    assert row[2:10] == ["shop/client", "GET", "web.shop", "/a", "503", "UF,URX", "12", "10.77.2.2:8080"]
    assert nodectl.api.requests[-1].query == {"path": "/a*", "code": "5xx", "method": "GET"}


def test_watching_goes_on_from_what_was_seen_and_ends_on_interrupt(nodectl: Nodectl) -> None:
    asked: list[dict[str, str]] = []

    def answer(request: Request) -> Any:
        asked.append(request.query)
        if len(asked) == 3:
            return 503, {"error": {"message": "gone", "remedy": ""}}
        return {"items": [{**ROW, "id": f"0-77.{len(asked)}"}], "after": f"0-77.{len(asked)}"}

    nodectl.api.answers["GET /requests"] = answer
    result = nodectl("requests", "--watch", "--interval", "0.1", "-o", "json")
    assert [json.loads(line)["id"] for line in result.out.splitlines()] == ["0-77.1", "0-77.2"]
    assert asked == [{}, {"after": "0-77.1"}, {"after": "0-77.2"}]


def test_endpoints_of_several_workers_are_one(nodectl: Nodectl) -> None:
    rows = [{**ENDPOINT, "worker": 0}, {**ENDPOINT, "worker": 1, "ewma_ms": 0.0, "ejected_seconds": 7.0}]
    nodectl.api.answers["GET /endpoints"] = {"items": endpoints(rows, Snapshot.empty(), ())}
    row = nodectl("endpoints", "--service", "shop/web", "--no-headers").out.split()
    assert row == ["shop/web", "80", "10.77.2.2:8080", "shop/web", "-", "-", "ejected", "4", "4.0ms", "0"]
    assert nodectl.api.requests[-1].query == {"service": "shop/web"}


def test_endpoints_that_nobody_has_used_are_shown_as_such(nodectl: Nodectl) -> None:
    ports = (ServicePort("", 80), ServicePort("tcp-db", 90), ServicePort("grpc", 91))
    known = Service("web", "shop", (), ports, (Endpoint("10.77.2.2", "shop/web", (8080, 9090, 0)),))
    other = Service("api", "shop", (), ports[:1], (Endpoint("10.77.2.3", "shop/api", (8080,)),))
    snapshot = Snapshot.empty().apply(Update("e", 1, 0, True, MeshConfig(), services=(known, other), has_policies=True))
    nodectl.api.answers["GET /endpoints"] = {"items": endpoints([{**ENDPOINT, "worker": 0}], snapshot, ["shop/api"])}
    rows = [line.split() for line in nodectl("endpoints", "--no-headers", "-o", "wide").out.splitlines()]
    assert [row[:5] for row in rows] == [
        ["shop/api", "80", "10.77.2.3:8080", "shop/api", "-"],
        ["shop/web", "80", "10.77.2.2:8080", "shop/web", "-"],
    ]
    assert [(row[6], row[-1]) for row in rows] == [("unused", "yes"), ("healthy", "no")]
    assert [row["service"] for row in endpoints([{**ENDPOINT, "worker": 0}], snapshot, (), "shop/api")] == ["shop/api"]


def test_endpoints_show_their_version_and_its_share(nodectl: Nodectl) -> None:
    pods = [("shop/web", "v1", "10.77.2.2"), ("shop/web-2", "v2", "10.77.2.3"), ("shop/web-3", "v3", "10.77.2.4")]
    workloads = [Workload(uid, uid[5:], "shop", "web", "node-a", (at,), True, "web", v) for uid, v, at in pods]
    backends = [Endpoint(at, uid, (8080,)) for uid, _version, at in pods]
    web = Service("web", "shop", (), (ServicePort("", 80),), tuple(backends))
    policy = TrafficPolicy("web", "shop", "shop/web", versions={"v1": 90, "v2": 10})
    update = Update("e", 1, 0, True, MeshConfig(), tuple(workloads), (web,), has_policies=True, traffic=(policy,))
    rows = [{**ENDPOINT, "worker": 0, "version_share": 1.0}]  # as that worker has it, the other version is out
    nodectl.api.answers["GET /endpoints"] = {"items": endpoints(rows, Snapshot.empty().apply(update), ())}
    shown = [line.split()[3:7] for line in nodectl("endpoints", "--no-headers").out.splitlines()]
    assert shown == [
        ["shop/web", "v1", "100%", "healthy"],
        ["shop/web-2", "v2", "10%", "unused"],
        ["shop/web-3", "v3", "0%", "unused"],
    ]


def test_routes_show_where_they_lead(nodectl: Nodectl) -> None:
    row = nodectl("routes", "--no-headers", "-o", "wide").out
    assert row.split()[:5] == ["HTTPRoute", "shop", "web", "shop/web:80", "2"]
    assert "shop/web:80,shop/web-v2:80 (BackendNotFound)" in row.replace(", ", ",")
    assert "GET =/v2 ?page=2 x-beta~y.*" in row


def test_names_of_services_are_completed(nodectl: Nodectl, tmp_path: Path) -> None:
    words = ["--socket", nodectl.path, "endpoints", "--service", "sh"]
    assert bash_completes("noded.control.cli", "nodectl", words, tmp_path) == ["shop/web"]
