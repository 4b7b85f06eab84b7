from __future__ import annotations

from typing import Any

import pytest

from controller.policy_check import Asked, CheckError, check
from controller.translate import World
from mesh.model import MeshConfig
from mesh.paths import Normalization
from tests.controller.test_translate import build, enrolled, manifest

CONFIG = MeshConfig()
SERVICE = manifest(
    "Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
)


def policy(name: str, source: dict[str, object], action: str = "ALLOW") -> str:
    return manifest("AuthorizationPolicy", name, {"action": action, "rules": [{"from": [{"source": source}]}]})


def of_requests(name: str, operation: dict[str, object], action: str = "ALLOW") -> str:
    return manifest("AuthorizationPolicy", name, {"action": action, "rules": [{"to": [{"operation": operation}]}]})


def route(name: str, *rules: dict[str, Any]) -> str:
    return manifest(
        "HTTPRoute", name, {"parentRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": rules}
    )


def mesh(*policies: str) -> World:
    outside = manifest("Workload", "old", {"address": "10.0.0.9"}, labels={"app": "web"})
    return build(SERVICE + outside + "".join(policies), enrolled("web-1", "10.77.0.1", app="web"))


def verdicts(world: World, source: str, address: str = "") -> dict[str, bool]:
    return {a.workload: a.allowed for a in check(world, CONFIG, source, "shop/web:80", address).answers}


def test_each_endpoint_is_judged_and_the_deciding_policy_named() -> None:
    world = mesh(policy("only-client", {"principals": ["cluster.local/ns/shop/sa/client"]}))
    inside, outside = check(world, CONFIG, "shop/client", "shop/web:http").answers
    assert (inside.workload, inside.port, inside.allowed) == ("shop/web-1", 8080, True)
    assert (inside.policy, inside.rule, inside.mtls_mode) == ("shop/only-client", 0, "PERMISSIVE")
    assert outside.workload == "shop/old"
    assert "no policy is enforced" in outside.reason
    denied = check(world, CONFIG, "shop/other", "shop/web:80").answers[0]
    assert not denied.allowed
    assert "shop/only-client" in denied.reason


def test_a_client_outside_the_mesh_has_no_identity_and_strict_keeps_it_out() -> None:
    strict = manifest("PeerAuthentication", "strict", {"mtls": {"mode": "STRICT"}})
    assert verdicts(mesh(), "-")["shop/web-1"]
    assert not verdicts(mesh(strict), "-")["shop/web-1"]
    assert verdicts(mesh(strict), "shop/client")["shop/web-1"]


def test_the_clients_address_counts() -> None:
    world = mesh(policy("no-net", {"ipBlocks": ["192.0.2.0/24"]}, "DENY"))
    assert not verdicts(world, "-", "192.0.2.7")["shop/web-1"]
    assert verdicts(world, "-", "198.51.100.7")["shop/web-1"]
    assert verdicts(world, "-")["shop/web-1"]


def test_what_a_rehearsed_policy_would_change_is_said() -> None:
    spec = {"action": "ALLOW", "rules": [{"from": [{"source": {"namespaces": ["bank"]}}]}]}
    rehearsed = manifest("AuthorizationPolicy", "only-bank", spec, annotations={"istio.io/dry-run": "true"})
    answer = check(mesh(rehearsed), CONFIG, "shop/client", "shop/web:80").answers[0]
    assert (answer.allowed, answer.dry_run) == (True, ("shop/only-bank would deny",))


@pytest.mark.parametrize(
    ("source", "target", "address", "missing"),
    [
        ("client", "shop/web:80", "", False),
        ("a/b/c", "shop/web:80", "", False),
        ("shop/client", "web:80", "", False),
        ("shop/client", "shop/web", "", False),
        ("shop/client", "shop/web:80", "nonsense", False),
        ("shop/client", "shop/none:80", "", True),
        ("shop/client", "shop/web:81", "", True),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_a_remedy(
    source: str, target: str, address: str, missing: bool
) -> None:
    with pytest.raises(CheckError) as caught:
        check(mesh(), CONFIG, source, target, address)
    assert caught.value.remedy
    assert caught.value.missing is missing


def test_a_request_is_judged_by_what_it_asks_and_told_what_would_do() -> None:
    world = mesh(of_requests("read", {"methods": ["GET"], "paths": ["/public*"]}))
    asked = Asked(path="/public/../admin?x=1")
    inside = check(world, CONFIG, "shop/client", "shop/web:80", asked=asked).answers[0]
    assert not inside.allowed
    why = inside.why
    assert why is not None
    assert (why["nearest"], why["steps"][0]["rules"][0]["missed"][0]["value"]) == (
        {"policy": "shop/read", "rule": 0},
        "/admin",
    )
    assert [(change["what"], change["to"]) for change in why["flips"][0]["changes"]] == [("path", "/public")]
    assert check(world, CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/public")).answers[0].allowed
    assert not check(world, CONFIG, "shop/client", "shop/web:80", asked=Asked("PUT", "/public")).answers[0].allowed


def test_paths_are_normalised_as_the_mesh_does() -> None:
    world = mesh(of_requests("no", {"paths": ["/a/b"]}, "DENY"))
    merging = MeshConfig(path_normalization=Normalization.MERGE_SLASHES)
    allowed = {
        config.path_normalization: check(world, config, "shop/c", "shop/web:80", asked=Asked(path="/a//b")).answers[0]
        for config in (CONFIG, merging)
    }
    assert allowed[Normalization.BASE].allowed
    assert not allowed[Normalization.MERGE_SLASHES].allowed


def test_a_connection_is_told_that_its_requests_would_be_judged() -> None:
    world = mesh(of_requests("read", {"methods": ["GET"]}))
    answer = check(world, CONFIG, "shop/client", "shop/web:80").answers[0]
    assert not answer.allowed
    assert "--method" in answer.note


def test_headers_and_claims_are_what_was_said() -> None:
    when = [{"key": "request.headers[x-team]", "values": ["red"]}, {"key": "request.auth.claims[g]", "values": ["a"]}]
    world = mesh(manifest("AuthorizationPolicy", "p", {"rules": [{"when": when}]}))
    asked = Asked(headers=(("X-Team", " red"),), claims={"g": ["a", "b"]})
    assert check(world, CONFIG, "shop/client", "shop/web:80", asked=asked).answers[0].allowed
    asked = Asked(headers=(("X-Team", "red"),))
    assert not check(world, CONFIG, "shop/client", "shop/web:80", asked=asked).answers[0].allowed


V2 = manifest("Service", "web-v2", {"selector": {"app": "v2"}, "ports": [{"port": 81, "targetPort": 8081}]})


def routed() -> World:
    canary: dict[str, Any] = {
        "matches": [{"path": {"value": "/cart"}, "headers": [{"name": "x-canary", "value": "yes"}]}],
        "filters": [
            {
                "type": "URLRewrite",
                "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}},
            }
        ],
        "backendRefs": [{"name": "web-v2", "port": 81}],
    }
    gone = {"matches": [{"path": {"value": "/gone"}}], "filters": [
        {"type": "RequestRedirect", "requestRedirect": {"statusCode": 301}}
    ]}  # fmt: skip
    rest = {"matches": [{"path": {"value": "/cart"}}], "backendRefs": [{"name": "web", "port": 80}]}
    policies = of_requests("no-new", {"paths": ["/new*"]}, "DENY")
    return build(
        SERVICE + V2 + route("canary", canary, gone, rest) + policies,
        enrolled("web-1", "10.77.0.1", app="web"),
        enrolled("v2-1", "10.77.0.2", app="v2"),
    )


def test_a_request_is_judged_where_its_route_leads_and_as_it_arrives_there() -> None:
    asked = Asked(path="/cart/1", headers=(("x-canary", "yes"),))
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=asked)
    assert found.route is not None
    assert (found.route["route"], found.route["rule"]) == ("HTTPRoute/shop/canary", 0)
    (answer,) = found.answers
    assert (answer.workload, answer.service, answer.port) == ("shop/v2-1", "shop/web-v2:81", 8081)
    assert (answer.allowed, answer.policy) == (False, "shop/no-new")


def test_the_more_specific_rule_says_why_it_does_not_take_the_request() -> None:
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/cart/1"))
    assert found.route is not None
    assert (found.route["rule"], [answer.workload for answer in found.answers]) == (2, ["shop/web-1"])
    missed = [clause["name"] for clause in found.route["steps"][0]["clauses"] if not clause["met"]]
    assert missed == ["header x-canary"]


def test_a_request_that_goes_nowhere_has_no_endpoints() -> None:
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/gone"))
    assert (found.answers, found.route and found.route["does"]) == ([], ["redirects with 301"])
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/other"))
    assert (found.answers, found.route and found.route["route"]) == ([], "")


def test_clients_outside_the_mesh_are_not_routed() -> None:
    found = check(routed(), CONFIG, "-", "shop/web:80", asked=Asked(path="/other"))
    assert (found.route, [answer.workload for answer in found.answers]) == (None, ["shop/web-1"])


def test_on_a_port_that_is_not_http_the_connection_is_judged() -> None:
    database = manifest("Service", "db", {"selector": {"app": "web"}, "ports": [{"name": "tcp", "port": 5432}]})
    world = build(database + of_requests("read", {"methods": ["GET"]}), enrolled("web-1", "10.77.0.1", app="web"))
    (answer,) = check(world, CONFIG, "shop/client", "shop/db:5432", asked=Asked()).answers
    assert not answer.allowed
    assert "declared as other than HTTP" in answer.note
