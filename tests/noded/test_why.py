"""`nodectl why`'s answers, from what workers remember and the snapshot."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import msgpack

from mesh.message import Request
from mesh.model import Action, Condition, Endpoint, MeshConfig, Operation, Policy, Rule, Service, ServicePort, Workload
from mesh.present.why import version_lines
from mesh.snapshot import Snapshot
from mesh.sync import Update
from mesh.traffic import Backend, HeaderEdit, Parent, Route, RouteMatch, RouteRule, TrafficPolicy, ValueMatch
from noded.control.why import explain, shown, together
from noded.data.alike import EACH, KINDS, Alike
from noded.data.http.recent import Recent

CLIENT = "spiffe://cluster.local/ns/shop/sa/client"
LABELS = {"app": "web"}


def mesh(*policies: Policy, routes: tuple[Route, ...] = (), traffic: tuple[TrafficPolicy, ...] = ()) -> Snapshot:
    web = Workload("shop/web-1", "web-1", "shop", "web", "node-a", ("10.77.0.2",), True)
    service = Service(
        "web", "shop", ("10.96.0.1",), (ServicePort("http", 80),), (Endpoint("10.77.0.2", "shop/web-1", (8080,)),)
    )
    update = Update(
        epoch="e",
        base=0,
        revision=1,
        full=True,
        config=MeshConfig(),
        has_policies=True,
        workloads=(web,),
        services=(service,),
        policies=policies,
        routes=routes,
        traffic=traffic,
    )
    return Snapshot.empty().apply(update)


def connection(**more: Any) -> dict[str, Any]:
    return {
        "id": "0-1", "worker": 0, "direction": "inbound", "workload": "shop/web-1", "source": "10.77.0.9:40000",
        "source_identity": CLIENT, "destination": "10.77.0.2:8080", "destination_identity": "",
        "target": "10.77.0.2:8080", "service": "", "http": False, **more,
    }  # fmt: skip


def request(path: str = "/admin", **more: Any) -> dict[str, Any]:
    return {
        **connection(), "id": "0-r1", "connection": "0-1", "kind": "request", "at": 1.0, "http": True, "method": "GET",
        "authority": "web", "path": path, "headers": [], "claims": None, "whole": True, "code": 403, "flags": "RBAC",
        "reason": "", "route": "", "rule": -1, "edited": False, "backend": "", **more,
    }  # fmt: skip


READ = Policy("read", "shop", Action.ALLOW, (Rule(operations=(Operation(paths=("/public*",)),)),), LABELS)


def test_a_denied_request_is_told_which_clause_it_missed_and_what_would_do() -> None:
    answer = explain(request(), mesh(READ), LABELS)
    assert (answer["verdict"]["allowed"], answer["verdict"]["nearest"]) == (False, {"policy": "shop/read", "rule": 0})
    assert answer["verdict"]["flips"][0]["changes"][0]["to"] == "/public"
    assert answer["notes"] == []


def test_policies_that_changed_since_are_told_of() -> None:
    assert "changed since" in explain(request("/public"), mesh(READ), LABELS)["notes"][0]
    refused = explain(request(code=401, flags="-"), mesh(READ), LABELS)
    assert "before the policies were asked" in refused["notes"][0]


def test_a_request_that_a_custom_policy_stopped_is_not_said_to_be_allowed_without_a_word() -> None:
    (note,) = explain(request("/public", flags="UAEX"), mesh(READ), LABELS)["notes"]
    assert "CUSTOM" in note


def test_a_request_s_claims_and_headers_count() -> None:
    rule = Rule(conditions=(Condition("request.headers[x]", ("1",)), Condition("request.auth.claims[g]", ("a",))))
    policies = mesh(Policy("p", "shop", Action.ALLOW, (rule,)))
    assert explain(request(headers=[["x", "1"]], claims='{"g": ["a"]}'), policies, LABELS)["verdict"]["allowed"]
    assert not explain(request(headers=[["x", "1"]]), policies, LABELS)["verdict"]["allowed"]


def test_credentials_and_what_tokens_say_are_not_shown() -> None:
    row = request(headers=[["authorization", "Bearer secret"], ["x", "1"]], claims='{"sub": "secret"}')
    assert shown(row)["headers"] == [["authorization", "(hidden)"], ["x", "1"]]
    assert "secret" not in repr(explain(row, mesh(READ), LABELS))


def test_of_what_is_not_known_whole_or_not_here_any_more_that_is_said() -> None:
    assert "too large" in explain(request(whole=False), mesh(READ), LABELS)["notes"][0]
    assert "left the mesh" in explain(request(), mesh(READ), None)["notes"][0]
    nowhere = connection(direction="outbound", destination=":0", target="")
    for row in (connection(target=""), nowhere):
        assert "before it was known where to" in explain(row, mesh(READ), LABELS)["notes"][0]


def test_a_connection_is_explained_as_such() -> None:
    denied = connection(kind="connection", at=1.0, policy="", flags="RBAC", reason="")
    answer = explain(denied, mesh(READ), LABELS)
    (clause,) = answer["verdict"]["steps"][0]["rules"][0]["missed"]
    assert "TCP" in clause["problem"]
    http = explain(connection(http=True), mesh(READ), LABELS)
    assert (http["verdict"], "each of which is judged" in http["notes"][0]) == (None, True)
    plaintext = connection(direction="passthrough", source_identity="", target="[fd00::1]:80")
    assert explain(plaintext, mesh(), LABELS)["verdict"]["allowed"]


def test_an_outbound_connection_is_told_where_it_leads() -> None:
    answer = explain(connection(direction="outbound", destination="10.96.0.1:80"), mesh(), LABELS)
    assert answer["target"] == {
        "kind": "tunnel", "reason": "the workload is in the mesh", "flags": "-", "service": "shop/web", "endpoints": 1,
        "workload": "",
    }  # fmt: skip
    nowhere = explain(connection(direction="outbound", destination="10.96.0.1:81"), mesh(), LABELS)
    assert nowhere["target"]["flags"] == "NR"


def test_what_is_split_by_version_is_told_how() -> None:
    policy = TrafficPolicy("p", "shop", "shop/web", versions={"v1": 9, "v2": 1})
    connected = connection(direction="outbound", destination="10.96.0.1:80")
    asked = outbound("/", route="", rule=-1, code=503, flags="UH")
    to_itself = RouteRule(backends=(Backend("shop/web", 80), Backend("shop/none", 80)))
    ways: list[tuple[dict[str, Any], tuple[Route, ...]]]
    ways = [(connected, ()), (asked, ()), (asked, (route(to_itself),))]
    for row, routes in ways:
        told = explain(row, mesh(routes=routes, traffic=(policy,)), LABELS)["versions"]
        assert [(one["service"], one["version"], one["share"]) for one in told] == [
            ("shop/web:80", "v1", 0.0),
            ("shop/web:80", "v2", 0.0),
        ]
        assert explain(row, mesh(routes=routes), LABELS)["versions"] == []
    assert list(version_lines([{**told[0], "share": 0.125, "endpoints": 1}, told[1]])) == [
        "shop/web:80 is split by TrafficPolicy shop/p",
        "  version v1: 12.5%, 1 endpoint",
        "  version v2: 0%, no endpoint",
    ]


def route(*rules: RouteRule) -> Route:
    return Route("HTTPRoute", "web", "shop", (Parent("shop/web", 80),), rules)


def outbound(path: str, **more: Any) -> dict[str, Any]:
    return request(path, direction="outbound", service="shop/web:80", **more)


def test_an_outbound_request_is_told_which_rule_took_it_and_why_others_did_not() -> None:
    canary = RouteRule((RouteMatch("/cart", headers=(ValueMatch("x-canary", "yes"),)),), (Backend("shop/v2", 80),))
    snapshot = mesh(routes=(route(canary, RouteRule((RouteMatch("/cart"),), (Backend("shop/web", 80),))),))
    answer = explain(outbound("/cart", route="HTTPRoute/shop/web", rule=1, flags="-"), snapshot, LABELS)
    assert (answer["route"]["rule"], answer["verdict"]) == (1, None)
    assert answer["route"]["steps"][0]["clauses"][1]["met"] is False
    command = "meshctl policy check --from shop/client --to shop/web:80 --method GET --path /cart --host web"
    assert answer["notes"][0].endswith(command)
    lost = explain(outbound("/other", code=404, flags="NR"), snapshot, LABELS)
    assert (lost["route"]["route"], lost["notes"]) == ("", [])


def test_a_request_that_was_edited_or_routed_otherwise_then_is_told_so() -> None:
    edits = RouteRule(request_headers=HeaderEdit(remove=("x",)), backends=(Backend("shop/web", 80),))
    then = {"code": 503, "flags": "UH", "route": "HTTPRoute/shop/old", "rule": 3}
    assert "changed since" in explain(outbound("/", **then), mesh(routes=(route(edits),)), LABELS)["notes"][0]
    edited = explain(outbound("/", edited=True, **then), mesh(routes=(route(edits),)), LABELS)
    assert "edits are in what is remembered" in edited["notes"][0]


def test_a_token_s_odd_claims_break_nothing() -> None:
    flow = SimpleNamespace(uid="shop/web", peer_identity=None, target="10.77.0.2", target_port=8080)
    session = cast(Any, SimpleNamespace(flow=flow, who=connection()))
    asked = Request(b"GET", b"web", b"/")
    odd: dict[str, Any] = {"n": 2**80, "s": "\ud800", "\udfff": [1.5]}
    ended = SimpleNamespace(request=asked, claims=odd, flags="RBAC", reason="")
    recent = Recent()
    recent.inbound("1-r1", session, cast(Any, ended), 403, None)
    (row,) = msgpack.unpackb(msgpack.packb(recent.rows()))
    rule = Rule(conditions=(Condition("request.auth.claims[s]", ("a",)), Condition("request.auth.claims[n]", ("a",))))
    answer = explain(row, mesh(Policy("p", "shop", Action.ALLOW, (rule,))), LABELS)
    clauses = answer["verdict"]["steps"][0]["rules"][0]["clauses"]
    assert [clause["value"] for clause in clauses] == ["?", str(2**80)]
    json.dumps(answer, ensure_ascii=False).encode()
    for _ in range(100_000):
        odd = {"n": odd}
    ended.claims = odd
    recent.inbound("1-r2", session, cast(Any, ended), 403, None)
    assert [row["whole"] for row in recent.rows()] == [False, True]


def failed(number: int, worker: int = 0, alike: int = 0, **more: Any) -> dict[str, Any]:
    row = request(**{"id": f"{worker}-r{number}", "at": float(number), "flags": "RBAC", "reason": "no", **more})
    return {**row, "worker": worker, "alike": alike, "count": 100, "first": 0.5 + worker}


def test_a_flood_is_told_once_with_its_last_its_count_and_since_when() -> None:
    other = {"method": "PUT", "alike": 1, "count": 1}
    rows = [failed(9), failed(8, path="/x"), failed(7, worker=1), {**failed(3), **other}, failed(4, reason="why")]
    told = together(rows)
    assert [(row["id"], row["count"], row["first"]) for row in told] == [
        ("0-r9", 200, 0.5),
        ("0-r4", 100, 0.5),
        ("0-r3", 1, 0.5),
    ]
    assert not any("alike" in row for row in told)


def test_a_flood_leaves_room_for_what_else_went_ill() -> None:
    made: Alike[str] = Alike()
    made.add("rare", "r", 1.0)
    for number in range(1000):
        made.add("flood", f"f{number}", 2.0)
    rows = made.rows(lambda one: {"one": one})
    assert [row["one"] for row in rows] == [*(f"f{999 - n}" for n in range(EACH)), "r"]
    assert [(row["alike"], row["count"], row["first"]) for row in rows[-2:]] == [(0, 1000, 2.0), (1, 1, 1.0)]
    for number in range(KINDS):
        made.add(number, "x", 3.0)
    assert len(made.rows(lambda one: {"one": one})) == KINDS
