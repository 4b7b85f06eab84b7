from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.analyze import (
    CODES,
    MODE_LABEL,
    Finding,
    Inventory,
    ParentUse,
    Pods,
    Port,
    Ref,
    RouteUse,
    ServiceUse,
    analyze,
    satisfiable,
)
from mesh.authz.matching import Facts, compile_rule
from mesh.cidr import parse_address
from mesh.model import Action, Condition, JwtRule, MtlsMode, Operation, PeerAuth, Policy, RequestAuth, Rule, Source
from mesh.traffic import (
    Backend,
    Compare,
    Mirror,
    Parent,
    Redirect,
    RetryPolicy,
    Route,
    RouteMatch,
    RouteRule,
    TrafficPolicy,
    ValueMatch,
)
from tests.docs.pages import DOCS, anchors, spans, table

ALLOW, DENY, STRICT = Action.ALLOW, Action.DENY, MtlsMode.STRICT
CLIENT = "cluster.local/ns/shop/sa/client"


def pods(name: str = "web", namespace: str = "shop", **more: Any) -> Pods:
    return Pods(Ref("Pod", namespace, name), {"app": name}, "default", {8080: "http"}, **more)


def service(target: int | str = 8080, port: int = 80, app: str = "web", exposed: str = "") -> ServiceUse:
    return ServiceUse(Ref("Service", "shop", "web"), {"app": app}, (Port(0, port, target),), exposed)


def speaking(name: str, protocol: str, target: int | str = 8080) -> ServiceUse:
    return ServiceUse(Ref("Service", "shop", name), {"app": "web"}, (Port(0, 80, target, protocol=protocol),))


def policy(*rules: Rule, action: Action = ALLOW, app: str = "web", namespace: str = "shop") -> Policy:
    return Policy("p", namespace, action, rules, {"app": app} if app else {})


def peer_auth(name: str = "pa", mode: MtlsMode = STRICT, namespace: str = "shop", **more: Any) -> PeerAuth:
    return PeerAuth(name, namespace, mode, **more)


def rule(source: Source | None = None, operation: Operation | None = None, *conditions: Condition) -> Rule:
    return Rule((source,) if source else (), (operation,) if operation else (), conditions)


WEB = Backend("shop/web", 80)


def routed(*rules: RouteRule, name: str = "r", created: int = 0, **more: Any) -> RouteUse:
    """A route for the service web, or attached to nothing and with a reason."""
    attached = Parent("shop/web", more.pop("port", 0))
    parent = replace(ParentUse(0, "shop/web", attached), **more)
    route = Route("HTTPRoute", name, "shop", (attached,), rules, created)
    return RouteUse(Ref("HTTPRoute", "shop", name), route if parent.attached else None, (parent,))


def to(*backends: Backend, path: str = "/", compare: Compare = Compare.PREFIX, **more: Any) -> RouteRule:
    return RouteRule((RouteMatch(path, compare),), backends or (WEB,), **more)


def traffic(name: str = "t", service_name: str = "web", **more: Any) -> TrafficPolicy:
    return TrafficPolicy(name, "shop", f"shop/{service_name}", **more)


GOOD_KEY = """{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"""
"""Of RFC 8037, A.2."""
BROKEN = '{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"AA","y":"AA"}]}'


def tokens(jwks: str = "", app: str = "web", namespace: str = "shop") -> RequestAuth:
    return RequestAuth("ra", namespace, (JwtRule("https://issuer", jwks),), {"app": app})


def asking(provider: str, **providers: tuple[str, int]) -> Inventory:
    """A CUSTOM policy, and whom the controller's configuration has."""
    custom = replace(policy(rule(), action=Action.CUSTOM), provider=provider)
    return replace(WORLD, policies=(custom,), providers=providers)


WORLD = Inventory(
    pods=(pods(), pods("db")),
    services=(service(),),
    namespaces={"shop": {MODE_LABEL: "enabled"}, "nodemesh-system": {}},
    accounts=frozenset({"shop/client", "shop/default"}),
    trust_domain="cluster.local",
    complete=True,
)


def found(inventory: Inventory) -> list[str]:
    return [finding.code for finding in analyze(inventory)]


def with_rule(each: Rule, action: Action = ALLOW) -> Inventory:
    return replace(WORLD, policies=(policy(each, action=action),))


def over_tcp(each: Rule, action: Action = ALLOW, *protocols: str) -> Inventory:
    """With a service whose ports speak these."""
    ports = tuple(Port(n, 80 + n, 8080 + n, "", each) for n, each in enumerate(protocols or ("tcp",)))
    uses = ServiceUse(Ref("Service", "shop", "web"), {"app": "web"}, ports, exposed="type NodePort")
    listening = replace(pods(), ports={port.target: "" for port in ports if isinstance(port.target, int)})
    return replace(with_rule(each, action), pods=(listening,), services=(uses,))


def with_pods(*more: Pods) -> Inventory:
    return replace(WORLD, pods=(*WORLD.pods, *more))


def with_routes(*routes: RouteUse, protocol: str = "http") -> Inventory:
    web = replace(service(), ports=(Port(0, 80, 8080, "p", protocol), Port(1, 81, 8080, "q", protocol)))
    return replace(WORLD, services=(web,), routes=routes)


GOOD = with_rule(rule(Source(principals=(CLIENT,)), Operation(ports=(8080,))))

CASES: list[tuple[str, Inventory]] = [
    ("NM0101", replace(WORLD, policies=(policy(rule(Source(namespaces=("shop",))), app="wbe"),))),
    ("NM0102", with_rule(rule(Source(principals=(CLIENT,), not_namespaces=("shop",))))),
    ("NM0102", with_rule(rule(Source(principals=(CLIENT,), namespaces=("nodemesh-system",))), DENY)),
    ("NM0102", with_rule(rule(Source(ip_blocks=("10.1.0.0/16",), not_ip_blocks=("10.0.0.0/8",))))),
    ("NM0102", with_rule(rule(None, Operation(ports=(8080,), not_ports=(8080,))))),
    ("NM0102", with_rule(rule(None, Operation(ports=(8080,)), Condition("destination.port", ("9090",))), DENY)),
    ("NM0102", with_rule(rule(None, None, Condition("destination.ip", ("10.0.0.0/8",), ("10.0.0.0/8",))))),
    ("NM0102", with_rule(rule(Source(not_principals=("*",), principals=("*",))))),
    ("NM0103", with_rule(rule(Source(namespaces=("shpo",))))),
    ("NM0103", replace(WORLD, policies=(policy(rule(Source(namespaces=("shop",))), namespace="gone", app=""),))),
    ("NM0103", with_rule(rule(None, None, Condition("source.namespace", ("shpo",))))),
    ("NM0103", replace(WORLD, peer_auths=(peer_auth(namespace="gone"),))),
    ("NM0104", with_rule(rule(Source(principals=("other.example/ns/shop/sa/client",))))),
    ("NM0105", over_tcp(rule(None, Operation(methods=("GET",))))),
    ("NM0105", over_tcp(rule(None, None, Condition("request.headers[a]", ("b",))))),
    ("NM0105", with_rule(rule(None, None, Condition("connection.sni", ("b",))))),
    ("NM0106", replace(WORLD, policies=(policy(),))),
    ("NM0107", over_tcp(rule(Source(request_principals=("*",))), DENY)),
    ("NM0107", over_tcp(rule(None, Operation(paths=("/a",))), DENY, "http", "tcp")),
    ("NM0108", with_rule(rule(Source(principals=("cluster.local/ns/shop/sa/clinet",))))),
    ("NM0108", with_rule(rule(Source(service_accounts=("shop/clinet",))))),
    ("NM0109", with_rule(rule(None, Operation(ports=(80,))))),
    ("NM0110", asking("opa")),
    ("NM0110", asking("opa", oauth=("shop/web", 80))),
    ("NM0111", asking("opa", opa=("shop/opa", 80))),
    ("NM0111", asking("opa", opa=("shop/web", 81))),
    ("NM0201", replace(WORLD, peer_auths=(peer_auth(selector={"app": "wbe"}),))),
    ("NM0202", replace(WORLD, peer_auths=(peer_auth(port_modes={8080: STRICT}),))),
    ("NM0203", replace(WORLD, services=(service(exposed="type NodePort"),), peer_auths=(peer_auth(),))),
    ("NM0203", replace(WORLD, plaintext={"shop/db": "other/x"}, peer_auths=(peer_auth(),))),
    ("NM0204", replace(WORLD, peer_auths=(peer_auth("a"), peer_auth("b")))),
    ("NM0205", replace(WORLD, peer_auths=(peer_auth(namespace="nodemesh-system", selector={"app": "web"}),))),
    ("NM0206", replace(WORLD, peer_auths=(peer_auth(mode=MtlsMode.DISABLE),))),
    ("NM0301", replace(WORLD, services=(service(app="wbe"),))),
    ("NM0302", replace(WORLD, services=(service(9090),))),
    ("NM0303", replace(WORLD, services=(service("grpc"),))),
    ("NM0304", replace(WORLD, services=(speaking("web", "http"), speaking("a", "tcp")))),
    ("NM0304", replace(WORLD, services=(speaking("web", "tcp"), speaking("x", "grpc", target="http")))),
    ("NM0401", replace(WORLD, namespaces={"shop": {MODE_LABEL: "enable"}})),
    ("NM0401", with_pods(Pods(Ref("Pod", "shop", "x"), {MODE_LABEL: "true"}, "default", {}))),
    ("NM0402", with_pods(Pods(Ref("Pod", "shop", "x"), {MODE_LABEL: "enabled"}, "default", {}, host_network=True))),
    ("NM0402", with_pods(Pods(Ref("Pod", "nodemesh-system", "x"), {MODE_LABEL: "enabled"}, "default", {}))),
    ("NM0501", with_routes(routed(to(WEB, Backend("shop/wbe", 80, invalid="BackendNotFound"))))),
    ("NM0501", with_routes(routed(to(Backend("shop/web", 8080, invalid="BackendNotFound"))))),
    ("NM0501", with_routes(routed(to(mirrors=(Mirror(Backend("shop/x", 80, invalid="BackendNotFound")),))))),
    ("NM0502", with_routes(routed(to(Backend("other/api", 80, invalid="RefNotPermitted"))))),
    ("NM0503", with_routes(routed(to(Backend("shop/bucket", 0, invalid="InvalidKind"))))),
    ("NM0504", with_routes(routed(to(replace(WEB, weight=0), replace(WEB, weight=0))))),
    ("NM0505", with_routes(routed(RouteRule()))),
    ("NM0506", with_routes(routed(to(), attached=None, reason="NoMatchingParent", message="there is none"))),
    ("NM0507", with_routes(routed(to(Backend("other/unknown", 80))), protocol="tcp")),
    ("NM0507", with_routes(routed(to(Backend("other/unknown", 80)), port=81), protocol="tcp")),
    ("NM0508", with_routes(routed(to(path="/a"), to(path="/b"), to(path="/a/")))),
    ("NM0508", with_routes(routed(to(), created=1), routed(to(), name="later", created=2))),
    ("NM0508", with_routes(routed(to(), created=1), routed(to(), name="later", created=2, port=80))),
    ("NM0509", with_routes(routed(to(), attached=None, reason="Conflicted", message="there is a GRPCRoute"))),
    ("NM0601", replace(WORLD, traffic=(traffic(service_name="wbe"),))),
    ("NM0602", replace(WORLD, traffic=(traffic("a", created=1), traffic("b", created=2)))),
    ("NM0603", replace(with_routes(protocol="tcp"), traffic=(traffic(retries=RetryPolicy()),))),
    ("NM0604", replace(WORLD, traffic=(traffic(versions={"latest": 90, "v2": 10}),))),
    ("NM0604", replace(WORLD, traffic=(traffic(versions={"latest": 0, "v2": 10}),))),
    ("NM0103", replace(WORLD, request_auths=(tokens(namespace="gone"),))),
    ("NM0701", replace(WORLD, request_auths=(tokens(app="wbe"),))),
    ("NM0701", replace(WORLD, request_auths=(tokens(app="wbe", namespace="nodemesh-system"),))),
    ("NM0702", replace(WORLD, request_auths=(tokens(BROKEN),))),
    ("NM0703", replace(WORLD, request_auths=(tokens(),), key_problems={"shop/ra": "no answer"})),
]


def test_what_is_right_gives_no_finding() -> None:
    assert found(GOOD) == []
    assert found(WORLD) == []
    assert found(Inventory()) == []
    several = (to(path="/a"), to(path="/a", compare=Compare.EXACT), to(path="/a/b"), to())
    headers = RouteRule((RouteMatch("/a", headers=(ValueMatch("x", "1"),)),), (WEB,))
    assert found(asking("opa", opa=("shop/web", 80))) == []
    assert found(replace(asking("opa"), providers=None)) == []
    assert found(replace(asking("opa", opa=("x/y", 1)), complete=False)) == []
    assert found(replace(WORLD, request_auths=(tokens(), tokens(app="db", namespace="nodemesh-system")))) == []
    assert found(replace(WORLD, request_auths=(tokens(GOOD_KEY),))) == []
    moved = RouteRule(redirect=Redirect())
    assert found(with_routes(routed(*several, headers))) == []
    assert found(with_routes(routed(moved, port=81), routed(to(), name="every", created=1))) == []
    assert found(replace(with_routes(), traffic=(traffic(retries=RetryPolicy()),))) == []
    split = (traffic(versions={"latest": 9, "v2": 1, "v3": 0}),)
    newer = replace(pods("web-2"), labels={"app": "web", "app.kubernetes.io/version": "v2", "version": "v3"})
    assert found(replace(with_pods(newer), traffic=split)) == []
    assert found(replace(WORLD, services=(replace(service(), selector=None),), traffic=split)) == []
    assert found(replace(WORLD, pods=(), services=(service(),), complete=False, traffic=split)) == []


@pytest.mark.parametrize(("code", "inventory"), CASES)
def test_a_mistake_gives_its_code_and_no_other(code: str, inventory: Inventory) -> None:
    findings = analyze(inventory)
    assert [finding.code for finding in findings] == [code]
    assert findings[0].message
    assert findings[0].remedy


def test_every_code_has_a_case_here_or_is_about_what_is_not_even_valid() -> None:
    assert {code for code, _ in CASES} == set(CODES) - {"NM0001"}


def test_the_page_explains_every_code() -> None:
    page = DOCS / "reference/analyze.md"
    rows = {
        spans(row[0])[0]: (row[1], row[2]) for row in table(page, "# Findings of `meshctl analyze`") if len(row) == 3
    }
    assert rows == {code: (severity.value, title) for code, (severity, title) in CODES.items()}
    for code in CODES:
        link = Finding(code, Ref("Pod", "", ""), (), "", "").documentation
        path, _, anchor = link.partition("#")
        assert DOCS.parent / path == page
        assert anchor in anchors(page)


@pytest.mark.parametrize(
    "inventory",
    [
        replace(WORLD, pods=(), complete=False, policies=(policy(rule(Source(namespaces=("shop",)))),)),
        replace(
            GOOD,
            namespaces=None,
            accounts=None,
            trust_domain=None,
            policies=(policy(rule(Source(principals=("x/ns/y/sa/z",)))),),
        ),
        replace(WORLD, pods=(), services=(service(),), complete=False),
    ],
    ids=["selector", "names", "service"],
)
def test_what_is_not_known_is_not_missed(inventory: Inventory) -> None:
    assert found(inventory) == []


@pytest.mark.parametrize(
    ("operation", "action", "protocols"),
    [
        (Operation(methods=("GET",)), ALLOW, ("http",)),
        (Operation(methods=("GET",)), ALLOW, ("tcp", "http")),
        (Operation(methods=("GET",)), ALLOW, ("",)),
        (Operation(methods=("GET",), ports=(8081,)), DENY, ("tcp", "grpc")),
        (Operation(methods=("GET",), not_ports=(8080,)), DENY, ("tcp", "")),
    ],
)
def test_http_clauses_are_right_where_requests_are_seen(
    operation: Operation, action: Action, protocols: tuple[str, ...]
) -> None:
    assert found(over_tcp(rule(None, operation), action, *protocols)) == []


def test_where_no_named_version_has_a_workload_it_is_said_what_becomes_of_requests() -> None:
    (some,) = analyze(replace(WORLD, traffic=(traffic(versions={"latest": 90, "v2": 10}),)))
    assert (some.path, some.remedy) == (("spec", "versions", "v2"), "there are: latest")
    assert "goes to the others" in some.message
    (none,) = analyze(replace(WORLD, traffic=(traffic(versions={"v2": 10}),)))
    assert "answered 503" in none.message


def test_a_finding_names_the_place() -> None:
    inventory = with_rule(Rule((Source(namespaces=("shop",)), Source(namespaces=("shop", "shpo")))))
    (finding,) = analyze(inventory)
    assert finding.path == ("spec", "rules", 0, "from", 1, "source", "namespaces", 1)
    assert finding.object == Ref("AuthorizationPolicy", "shop", "p")


def test_a_policy_of_the_root_namespace_selects_in_all() -> None:
    everywhere = policy(rule(Source(namespaces=("shop",))), namespace="nodemesh-system", app="db")
    assert found(replace(WORLD, policies=(everywhere,))) == []
    assert found(replace(WORLD, policies=(replace(everywhere, selector={"app": "x"}),))) == ["NM0101"]


def test_of_two_peer_authentications_the_younger_is_pointed_at() -> None:
    both = (peer_auth("old", created=1, selector={"app": "web"}), peer_auth("new", created=2, selector={"tier": "1"}))
    shared = Pods(Ref("Pod", "shop", "both"), {"app": "web", "tier": "1"}, "default", {})
    (finding,) = analyze(replace(WORLD, pods=(*WORLD.pods, shared), peer_auths=both))
    assert (finding.code, finding.object.name) == ("NM0204", "new")
    assert "shop/both" in finding.message
    apart = Pods(Ref("Pod", "shop", "apart"), {"tier": "1"}, "default", {})
    assert found(replace(WORLD, pods=(*WORLD.pods, apart), peer_auths=both)) == []


def test_a_permissive_port_may_be_used_from_outside() -> None:
    exposed = replace(WORLD, services=(service(exposed="type LoadBalancer"),))
    excepted = peer_auth(selector={"app": "web"}, port_modes={8080: MtlsMode.PERMISSIVE})
    assert found(replace(exposed, peer_auths=(excepted,))) == []


def test_a_service_port_that_a_workload_listens_on_as_well_is_no_mistake() -> None:
    listens = Pods(Ref("Pod", "shop", "web"), {"app": "web"}, "default", {8080: "", 80: ""})
    inventory = with_rule(rule(None, Operation(ports=(80,))))
    assert found(replace(inventory, pods=(listens,))) == []


def test_wildcards_are_not_judged() -> None:
    assert (
        found(with_rule(rule(Source(principals=("cluster.local/ns/a*",), not_principals=("cluster.local/ns/ab*",)))))
        == []
    )


_PORTS = st.lists(st.integers(1, 6), max_size=3).map(tuple)
_BLOCKS = st.lists(
    st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/17", "10.1.2.3", "0.0.0.0/0", "fd00::/8"]),
    max_size=3,
).map(tuple)
_PRINCIPALS = st.lists(
    st.sampled_from(["*", CLIENT, "cluster.local/ns/shop/sa/web", "cluster.local/ns/other/sa/web", "x/ns/shop/sa/web"]),
    max_size=2,
).map(tuple)
_SPACES = st.lists(st.sampled_from(["shop", "other", "*"]), max_size=2).map(tuple)
_SOURCES = st.builds(
    Source,
    principals=_PRINCIPALS,
    not_principals=_PRINCIPALS,
    namespaces=_SPACES,
    not_namespaces=_SPACES,
    ip_blocks=_BLOCKS,
    not_ip_blocks=_BLOCKS,
)
_PEERS = st.sampled_from(
    [(None, None, None)]
    + [
        (f"{t}/ns/{n}/sa/{a}", n, f"{n}/{a}")
        for t in ("cluster.local", "x")
        for n in ("shop", "other", "third")
        for a in ("client", "web")
    ]
)
_ADDRESSES = st.sampled_from(["10.1.2.3", "10.1.200.1", "10.2.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"])


@settings(max_examples=300, deadline=None)
@given(_SOURCES, st.builds(Operation, ports=_PORTS, not_ports=_PORTS), _PEERS, _ADDRESSES, st.integers(1, 8))
def test_a_rule_that_some_connection_matches_is_not_called_contradictory(
    source: Source, operation: Operation, peer: tuple[str | None, str | None, str | None], address: str, port: int
) -> None:
    where = parse_address(address)
    matches = compile_rule(Rule((source,), (operation,)), DENY)
    assert matches is not None
    if matches(Facts(*peer, where, where, port)):
        assert not satisfiable.identity_contradicts(source, (), "cluster.local")
        assert not satisfiable.source_address_contradicts(source, ())
        assert not satisfiable.port_contradicts(operation, ())
