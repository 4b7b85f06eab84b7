"""Routes and traffic policies as users write them, to the mesh's model; and what is said of each parent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from controller.schema.manifests import load
from controller.store import Resource
from controller.translate import TrafficTranslator, World, world
from mesh.traffic import (
    Backend,
    Balance,
    Compare,
    Cors,
    Fault,
    HashOn,
    HeaderEdit,
    LoadBalancing,
    Mirror,
    OutlierDetection,
    Parent,
    PathEdit,
    RateLimit,
    Redirect,
    Retry,
    RetryPolicy,
    Rewrite,
    RouteMatch,
    RouteRule,
    ValueMatch,
)

VERSIONS = {
    "Service": "v1",
    "ReferenceGrant": "gateway.networking.k8s.io/v1beta1",
    "TrafficPolicy": "nodemesh.dev/v1alpha1",
}


def resource(kind: str, name: str, spec: dict[str, Any], namespace: str = "shop", created: int = 0) -> Resource:
    """Checked as when it is applied."""
    version = VERSIONS.get(kind, "gateway.networking.k8s.io/v1")
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    (manifest,), problems = load([("f", yaml.safe_dump(body))])
    assert problems == []
    return Resource(*manifest.key, manifest.body, "uid", 1, 1, created)


def service(name: str, *ports: int, namespace: str = "shop") -> Resource:
    return resource("Service", name, {"ports": [{"name": f"p{p}", "port": p} for p in ports or (80,)]}, namespace)


def parent(name: str = "web", **more: Any) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": name, **more}


def route(*rules: dict[str, Any], kind: str = "HTTPRoute", name: str = "r", **more: Any) -> Resource:
    parents = more.pop("parents", [parent()])
    return resource(kind, name, {"parentRefs": parents, **({"rules": list(rules)} if rules else {})}, **more)


def build(*resources: Resource) -> World:
    return world(resources, {})


def rule_of(rule: dict[str, Any], kind: str = "HTTPRoute") -> RouteRule:
    made = build(service("web"), service("v2"), route(rule, kind=kind))
    (only,) = made.routes[f"{kind}/shop/r"].rules
    return only


def said(made: World, key: str = "HTTPRoute/shop/r") -> list[tuple[bool, str, bool, str]]:
    return [(s.accepted.true, s.accepted.reason, s.resolved.true, s.resolved.reason) for s in made.route_statuses[key]]


GOOD = (True, "Accepted", True, "ResolvedRefs")


def test_a_canary_is_two_backends_with_weights() -> None:
    made = build(service("web"), service("v2"), route({"backendRefs": [{"name": "web", "port": 80, "weight": 9}, V2]}))
    found = made.routes["HTTPRoute/shop/r"]
    assert found.parents == (Parent("shop/web"),)
    assert found.rules == (RouteRule((RouteMatch(),), (Backend("shop/web", 80, 9), Backend("shop/v2", 80, 1))),)
    assert said(made) == [GOOD]


V2 = {"name": "v2", "port": 80}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({}, RouteMatch("/", Compare.PREFIX)),
        ({"path": {"value": "/a"}}, RouteMatch("/a", Compare.PREFIX)),
        ({"path": {"type": "Exact", "value": "/a"}}, RouteMatch("/a", Compare.EXACT)),
        ({"path": {"type": "RegularExpression", "value": "/a.*"}}, RouteMatch("/a.*", Compare.REGEX)),
        ({"method": "GET"}, RouteMatch(method="GET")),
        (
            {"headers": [{"name": "X-A", "value": "B"}, {"name": "x", "value": "b+", "type": "RegularExpression"}]},
            RouteMatch(headers=(ValueMatch("x-a", "B"), ValueMatch("x", "b+", Compare.REGEX))),
        ),
        ({"queryParams": [{"name": "Q", "value": "1"}]}, RouteMatch(query=(ValueMatch("Q", "1"),))),
    ],
)
def test_http_matches(written: dict[str, Any], meant: RouteMatch) -> None:
    assert rule_of({"matches": [written]}).matches == (meant,)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({}, RouteMatch("/", Compare.PREFIX)),
        ({"method": {"service": "shop.Cart", "method": "Add"}}, RouteMatch("/shop.Cart/Add", Compare.EXACT)),
        ({"method": {"service": "shop.Cart"}}, RouteMatch("/shop.Cart", Compare.PREFIX)),
        ({"method": {"method": "Add"}}, RouteMatch("/[^/]+/Add", Compare.REGEX)),
        (
            {"method": {"type": "RegularExpression", "service": "a|b"}},
            RouteMatch("/(?:a|b)/[^/]+", Compare.REGEX),
        ),
        ({"headers": [{"name": "A", "value": "b"}]}, RouteMatch(headers=(ValueMatch("a", "b"),))),
    ],
)
def test_a_grpc_method_is_a_path(written: dict[str, Any], meant: RouteMatch) -> None:
    assert rule_of({"matches": [written]}, "GRPCRoute").matches == (meant,)


MODIFIER = {"set": [{"name": "X-A", "value": "1"}], "add": [{"name": "B", "value": "2"}], "remove": ["C"]}
EDIT = HeaderEdit((("x-a", "1"),), (("b", "2"),), ("c",))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"type": "RequestHeaderModifier", "requestHeaderModifier": MODIFIER}, {"request_headers": EDIT}),
        ({"type": "ResponseHeaderModifier", "responseHeaderModifier": MODIFIER}, {"response_headers": EDIT}),
        ({"type": "RequestRedirect", "requestRedirect": {}}, {"redirect": Redirect()}),
        (
            {
                "type": "RequestRedirect",
                "requestRedirect": {
                    "scheme": "https",
                    "hostname": "a.example",
                    "port": 8443,
                    "statusCode": 308,
                    "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"},
                },
            },
            {"redirect": Redirect("https", "a.example", 8443, 308, PathEdit.FULL, "/new")},
        ),
        (
            {
                "type": "URLRewrite",
                "urlRewrite": {
                    "hostname": "b.example",
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"},
                },
            },
            {"rewrite": Rewrite("b.example", PathEdit.PREFIX, "/")},
        ),
        (
            {"type": "RequestMirror", "requestMirror": {"backendRef": V2}},
            {"mirrors": (Mirror(Backend("shop/v2", 80)),)},
        ),
        (
            {"type": "RequestMirror", "requestMirror": {"backendRef": V2, "percent": 5}},
            {"mirrors": (Mirror(Backend("shop/v2", 80), 500),)},
        ),
        (
            {"type": "RequestMirror", "requestMirror": {"backendRef": V2, "fraction": {"numerator": 1}}},
            {"mirrors": (Mirror(Backend("shop/v2", 80), 100),)},
        ),
        (
            {"type": "CORS", "cors": {"allowOrigins": ["https://*.a.example"], "allowCredentials": True, "maxAge": 60}},
            {"cors": Cors(("https://*.a.example",), allow_credentials=True, max_age=60)},
        ),
    ],
)
def test_filters(written: dict[str, Any], meant: dict[str, Any]) -> None:
    assert rule_of({"filters": [written]}) == replace(RouteRule(), **meant)


def test_what_is_done_for_one_backend_only() -> None:
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": MODIFIER}]
    assert rule_of({"backendRefs": [{**V2, "filters": filters}]}).backends[0].request_headers == EDIT


def test_timeouts_retries_and_the_name() -> None:
    rule = {
        "name": "slow",
        "timeouts": {"request": "1m30s", "backendRequest": "2500ms"},
        "retry": {"attempts": 3, "codes": [500, 503], "backoff": "100ms"},
    }
    made = rule_of(rule)
    assert (made.name, made.timeout, made.backend_timeout) == ("slow", 90.0, 2.5)
    assert made.retry == Retry(3, (500, 503), 0.1)
    assert rule_of({"retry": {}}).retry == Retry(1)
    none = rule_of({"timeouts": {"request": "0s", "backendRequest": "0s"}})
    assert none.timeout < 0
    assert none.backend_timeout < 0


def test_a_route_without_rules_takes_everything_to_nowhere() -> None:
    assert build(service("web"), route()).routes["HTTPRoute/shop/r"].rules == (RouteRule(),)


@pytest.mark.parametrize(
    ("reference", "reason", "words"),
    [
        ({"name": "none", "port": 80}, "BackendNotFound", "there is no service shop/none"),
        ({"name": "web", "port": 81}, "BackendNotFound", "service shop/web has no port 81"),
        ({"name": "a", "group": "x.example", "kind": "Bucket"}, "InvalidKind", "x.example/Bucket shop/a is not a Serv"),
        ({"name": "api", "namespace": "other", "port": 80}, "RefNotPermitted", "no ReferenceGrant in other lets"),
        ({"name": "none", "namespace": "other", "port": 80}, "RefNotPermitted", "no ReferenceGrant in other lets"),
    ],
)
def test_a_reference_that_cannot_be_used_keeps_its_share_and_says_why(
    reference: dict[str, Any], reason: str, words: str
) -> None:
    rule = {"backendRefs": [{**reference, "weight": 3}, {"name": "web", "port": 80}]}
    made = build(service("web"), service("api", namespace="other"), route(rule))
    bad, good = made.routes["HTTPRoute/shop/r"].rules[0].backends
    assert (bad.weight, bad.invalid, good.invalid) == (3, reason, "")
    assert said(made) == [(True, "Accepted", False, reason)]
    assert words in made.route_statuses["HTTPRoute/shop/r"][0].resolved.message


def test_a_mirror_that_cannot_be_used_says_why_too() -> None:
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "none", "port": 80}}}
    made = build(service("web"), route({"filters": [mirror]}))
    assert made.routes["HTTPRoute/shop/r"].rules[0].mirrors[0].backend.invalid == "BackendNotFound"
    assert said(made) == [(True, "Accepted", False, "BackendNotFound")]


@pytest.mark.parametrize(
    ("kind", "source", "to", "allowed"),
    [
        ("HTTPRoute", "shop", {}, True),
        ("HTTPRoute", "shop", {"name": "api"}, True),
        ("HTTPRoute", "shop", {"name": "web"}, False),
        ("HTTPRoute", "else", {}, False),
        ("GRPCRoute", "shop", {}, False),
    ],
)
def test_a_grant_lets_routes_of_a_kind_and_namespace_use_a_service(
    kind: str, source: str, to: dict[str, Any], allowed: bool
) -> None:
    spec = {
        "from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": source}],
        "to": [{"group": "", "kind": "Service", **to}],
    }
    grant = resource("ReferenceGrant", "g", spec, "other")
    rule = {"backendRefs": [{"name": "api", "namespace": "other", "port": 80}]}
    made = build(service("web"), service("api", namespace="other"), grant, route(rule))
    assert made.routes["HTTPRoute/shop/r"].rules[0].backends[0].invalid == ("" if allowed else "RefNotPermitted")


def test_a_consumer_needs_no_grant_to_send_requests_where_they_go_anyway() -> None:
    there = {"name": "api", "namespace": "other"}
    rule = {"backendRefs": [{**there, "port": 80}], "timeouts": {"request": "1s"}}
    made = build(service("api", namespace="other"), route(rule, parents=[parent(**there)]))
    assert made.routes["HTTPRoute/shop/r"].namespace == "shop"
    assert made.routes["HTTPRoute/shop/r"].parents == (Parent("other/api"),)
    assert said(made) == [GOOD]


def test_a_parent_is_a_service_one_of_its_ports_or_one_named() -> None:
    parents = [parent(port=80), parent("api", sectionName="p81"), parent("db")]
    made = build(service("web", 80, 81), service("api", 80, 81), service("db"), route(parents=parents))
    assert made.routes["HTTPRoute/shop/r"].parents == (
        Parent("shop/web", 80),
        Parent("shop/api", 81),
        Parent("shop/db"),
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (parent("none"), "there is no service shop/none"),
        (parent(port=99), "service shop/web has no port 99; it has 80 (p80)"),
        (parent(sectionName="p80", port=81), "service shop/web has no port p80 81"),
    ],
)
def test_a_parent_that_is_not_there_is_not_accepted_and_the_others_are(wrong: dict[str, Any], words: str) -> None:
    made = build(service("web"), service("api"), route(parents=[wrong, parent("api")]))
    assert made.routes["HTTPRoute/shop/r"].parents == (Parent("shop/api"),)
    assert said(made) == [(False, "NoMatchingParent", True, "ResolvedRefs"), GOOD]
    assert words in made.route_statuses["HTTPRoute/shop/r"][0].accepted.message


def test_a_route_that_is_attached_to_nothing_is_not_told_to_nodes() -> None:
    made = build(route(parents=[parent("none")]))
    assert made.routes == {}
    assert said(made) == [(False, "NoMatchingParent", True, "ResolvedRefs")]


def test_other_parents_are_others_business() -> None:
    gateway = {"name": "edge"}
    made = build(service("web"), route(parents=[gateway]), route(parents=[gateway, parent()], name="both"))
    assert set(made.routes) == set(made.route_statuses) == {"HTTPRoute/shop/both"}
    assert [s.index for s in made.route_statuses["HTTPRoute/shop/both"]] == [1]


def test_a_grpc_route_goes_before_an_http_route_for_the_same_port() -> None:
    ports = service("web", 80, 81)
    grpc = route(kind="GRPCRoute", name="g", parents=[parent(port=81)])
    made = build(ports, grpc, route(name="all"), route(name="same", parents=[parent(port=81)]))
    assert made.routes["HTTPRoute/shop/all"].parents == (Parent("shop/web", 80),)
    assert said(made, "HTTPRoute/shop/all") == [GOOD]
    assert "HTTPRoute/shop/same" not in made.routes
    assert said(made, "HTTPRoute/shop/same") == [(False, "Conflicted", True, "ResolvedRefs")]
    consumer = route(name="c", parents=[parent(namespace="shop")], namespace="other")
    assert build(ports, grpc, consumer).routes["HTTPRoute/other/c"].parents == (Parent("shop/web"),)


def test_what_has_not_changed_is_the_same_object_and_what_it_depends_on_counts() -> None:
    traffic = TrafficTranslator()
    web, one, two = service("web"), route({"backendRefs": [V2]}, name="one"), route(name="two")
    policy = resource("TrafficPolicy", "p", {"targetRef": {"name": "web"}})
    before = world([web, one, two, policy], {}, traffic)
    after = world([web, one, two, policy, service("v2")], {}, traffic)
    assert after.routes["HTTPRoute/shop/two"] is before.routes["HTTPRoute/shop/two"]
    assert after.traffic["shop/p"] is before.traffic["shop/p"]
    assert before.routes["HTTPRoute/shop/one"].rules[0].backends[0].invalid == "BackendNotFound"
    assert after.routes["HTTPRoute/shop/one"].rules[0].backends[0].invalid == ""
    assert world([web], {}, traffic).routes == {}


def test_a_traffic_policy_in_full() -> None:
    spec = {
        "targetRef": {"name": "web"},
        "loadBalancing": {
            "policy": "Maglev",
            "hashOn": {"header": "X-User", "cookie": {"name": "s", "ttl": "1h"}},
            "slowStart": "30s",
            "preferLocal": True,
        },
        "circuitBreaker": {"maxConnections": 1, "maxRequests": 2, "maxPending": 3, "maxRequestsPerConnection": 4},
        "outlierDetection": {
            "consecutiveErrors": 0,
            "interval": "1s",
            "baseEjection": "2s",
            "maxEjection": "3s",
            "maxPercent": "12.5%",
            "successRate": {"deviations": 2, "minRequests": 10, "minEndpoints": 3},
        },
        "retries": {"attempts": 0, "codes": [500], "perTryTimeout": "1s", "backoff": "10ms", "methods": ["POST"]},
        "retryBudget": {"percent": 30, "minPerSecond": 0, "ttl": "5s"},
        "timeout": "10s",
        "fault": {
            "delay": {"duration": "250ms", "percent": 1},
            "abort": {"status": 503},
            "headers": [{"name": "X-Fault", "value": "yes"}],
        },
        "rateLimits": [
            {
                "name": "a",
                "requests": 10,
                "per": "1m",
                "burst": 5,
                "byHeader": "X-User",
                "matches": [{"method": "POST"}],
            },
            {"name": "b", "requests": 1, "scope": "Mesh"},
        ],
        "versions": {"v1": 90, "v2": 10},
    }
    made = build(resource("TrafficPolicy", "p", spec, created=7)).traffic["shop/p"]
    assert (made.service, made.created, made.timeout) == ("shop/web", 7, 10.0)
    assert made.load_balancing == LoadBalancing(Balance.MAGLEV, HashOn("x-user", "s", 3600.0), 30.0, True)
    assert made.circuit_breaker is not None
    assert made.circuit_breaker.max_requests_per_connection == 4
    assert made.outlier_detection == OutlierDetection(0, 1.0, 2.0, 3.0, 1250, 2.0, 10, 3)
    assert made.retries == RetryPolicy(0, (500,), 1.0, 0.01, 0.1, ("POST",))
    assert made.retry_budget is not None
    assert (made.retry_budget.ratio, made.retry_budget.min_per_second, made.retry_budget.ttl) == (3000, 0, 5.0)
    assert made.fault == Fault(0.25, 100, 503, 10_000, (ValueMatch("x-fault", "yes"),))
    assert made.rate_limits == (
        RateLimit("a", 10, 60.0, 5, False, "x-user", (RouteMatch(method="POST"),)),
        RateLimit("b", 1, shared=True),
    )
    assert made.versions == {"v1": 90, "v2": 10}


def test_faults_of_grpc_and_of_connections() -> None:
    def fault(**stated: Any) -> Fault | None:
        spec = {"targetRef": {"name": "web"}, "fault": stated}
        return build(resource("TrafficPolicy", "p", spec)).traffic["shop/p"].fault

    made = Fault(abort=504, abort_share=10_000, grpc_status=4, reset_share=100, bandwidth=1000, bandwidth_share=10_000)
    assert fault(abort={"grpcStatus": 4}, reset={"percent": 1}, bandwidth={"bytesPerSecond": 1000}) == made
    assert fault(abort={"grpcStatus": 2}) == Fault(abort=500, abort_share=10_000, grpc_status=2)
    assert fault(abort={"grpcStatus": 2, "status": 418}) == Fault(abort=418, abort_share=10_000, grpc_status=2)
    assert fault(reset={}) == Fault(reset_share=10_000)


def test_what_a_traffic_policy_leaves_out_has_the_models_defaults() -> None:
    parts = ("loadBalancing", "circuitBreaker", "outlierDetection", "retries", "retryBudget")
    bare = build(resource("TrafficPolicy", "p", {"targetRef": {"name": "web"}})).traffic["shop/p"]
    assert (bare.load_balancing, bare.retries, bare.outlier_detection) == (None, None, None)
    assert bare.versions == {}
    spec = {"targetRef": {"name": "web"}, **{part: {} for part in parts}}
    made = build(resource("TrafficPolicy", "p", spec)).traffic["shop/p"]
    assert (made.load_balancing, made.outlier_detection) == (LoadBalancing(), OutlierDetection())
    assert made.retries == RetryPolicy()
