"""Policies on requests, by Istio's documented semantics."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.authz import Authorizer, Denial, Peer, Permit
from mesh.authz.templates import paths
from mesh.identity import Identity
from mesh.message import Request
from mesh.model import Action, Condition, MtlsMode, Operation, PeerAuth, Policy, Rule, Source

WEB = Peer(Identity("cluster.local", "shop", "web"), "10.77.1.2", "10.77.2.2", 8080)
PLAIN = WEB._replace(identity=None)


def policy(*rules: Rule, action: Action = Action.ALLOW, name: str = "p", dry_run: bool = False) -> Policy:
    return Policy(name, "shop", action, rules, dry_run=dry_run)


def authorizer(*policies: Policy, strict: bool = False) -> Authorizer:
    peer_auths = (PeerAuth("strict", "shop", MtlsMode.STRICT),) if strict else ()
    return Authorizer.of(policies, peer_auths, namespace="shop", labels={}, root_namespace="nodemesh-system")


def get(path: str = "/", method: str = "GET", host: str = "web", **headers: str) -> Request:
    made = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(method.encode(), host.encode(), path.encode(), made)


def to(**operation: Any) -> Rule:
    return Rule(operations=(Operation(**operation),))


def when(key: str, *values: str, no: tuple[str, ...] = ()) -> Rule:
    return Rule(conditions=(Condition(key, values, no),))


@pytest.mark.parametrize(
    ("rule", "matching", "other"),
    [
        (to(methods=("GET",)), get(), get(method="POST")),
        (to(methods=("GET",)), get(), get(method="get")),
        (to(not_methods=("GET",)), get(method="PUT"), get()),
        (to(paths=("/a",)), get("/a?b=c"), get("/a/b")),
        (to(paths=("/a/*",)), get("/a/b"), get("/a")),
        (to(paths=("*/b",)), get("/x/b"), get("/x/c")),
        (to(paths=("/a/{*}/c",)), get("/a/b/c"), get("/a/b/b/c")),
        (to(paths=("/a/{**}",)), get("/a/b/c"), get("/b/a/")),
        (to(not_paths=("/private*",)), get("/public"), get("/private/x")),
        (to(hosts=("Web.Shop",)), get(host="web.shop"), get(host="web.shop:80")),
        (to(hosts=("web.shop:*",)), get(host="WEB.shop:80"), get(host="web.shop")),
        (to(not_hosts=("*.example",)), get(host="a.test"), get(host="a.example")),
        (when("request.headers[X-Team]", "red", "blue*"), get(x_team="blueish"), get(x_team="green")),
        (when("request.headers[x-team]", "red"), get(x_team="red"), get()),
        (when("request.headers[x-team]", no=("red",)), get(), get(x_team="red")),
        (Rule(operations=(Operation(methods=("GET",), ports=(8080,)),)), get(), get(method="PUT")),
    ],
)
def test_a_clause_takes_what_istio_says_and_nothing_else(rule: Rule, matching: Request, other: Request) -> None:
    allow, deny = authorizer(policy(rule)), authorizer(policy(rule, action=Action.DENY))
    assert isinstance(allow.check_request(WEB, matching), Permit)
    assert isinstance(allow.check_request(WEB, other), Denial)
    assert isinstance(deny.check_request(WEB, matching), Denial)
    assert isinstance(deny.check_request(WEB, other), Permit)


def test_of_a_header_that_comes_twice_either_value_matches_as_in_envoy() -> None:
    request = Request(b"GET", b"web", b"/", [(b"x-a", b"1"), (b"x-a", b"2")])
    for value in ("1", "2"):
        assert isinstance(authorizer(policy(when("request.headers[x-a]", value))).check_request(WEB, request), Permit)
        none = policy(when("request.headers[x-a]", no=(value,)))
        assert isinstance(authorizer(none).check_request(WEB, request), Denial)
    assert isinstance(authorizer(policy(when("request.headers[x-a]", "1,2"))).check_request(WEB, request), Denial)


def test_the_other_half_of_a_rule_still_counts() -> None:
    rule = Rule((Source(namespaces=("other",)),), (Operation(methods=("GET",)),))
    assert isinstance(authorizer(policy(rule)).check_request(WEB, get()), Denial)
    rule = Rule((Source(namespaces=("shop",)),), (Operation(methods=("GET",)),))
    assert isinstance(authorizer(policy(rule)).check_request(WEB, get()), Permit)
    assert isinstance(authorizer(policy(rule)).check_request(PLAIN, get()), Denial)


def test_the_verdict_names_policy_and_rule() -> None:
    rules = (to(ports=(1,)), to(methods=("PUT",)), to(paths=("/x",)))
    verdict = authorizer(policy(*rules, action=Action.DENY)).check_request(WEB, get("/x"))
    assert isinstance(verdict, Denial)
    assert (verdict.policy, verdict.rule) == ("shop/p", 2)


def test_strict_comes_before_all_else() -> None:
    verdict = authorizer(policy(Rule()), strict=True).check_request(PLAIN, get())
    assert isinstance(verdict, Denial)
    assert verdict.policy == "shop/strict"


def test_claims_are_matched_only_where_there_are_any() -> None:
    claims = {
        "iss": "https://issuer",
        "sub": "me",
        "aud": ["a", "b"],
        "azp": "app",
        "groups": ["admin"],
        "o": {"u": "x"},
    }
    for rule in (
        Rule((Source(request_principals=("https://issuer/me",)),)),
        when("request.auth.principal", "https://issuer/*"),
        when("request.auth.audiences", "b"),
        when("request.auth.presenter", "app"),
        when("request.auth.claims[groups]", "admin"),
        when("request.auth.claims[o][u]", "x"),
    ):
        allow = authorizer(policy(rule))
        assert isinstance(allow.check_request(WEB, get(), claims), Permit)
        assert isinstance(allow.check_request(WEB, get(), {"iss": "x", "sub": "y"}), Denial)
        assert isinstance(allow.check_request(WEB, get()), Denial)
    nobody = authorizer(policy(Rule((Source(not_request_principals=("*",)),)), action=Action.DENY))
    assert isinstance(nobody.check_request(WEB, get()), Denial)
    assert isinstance(nobody.check_request(WEB, get(), claims), Permit)


def test_verdicts_are_those_of_the_request_at_hand_whatever_came_before() -> None:
    one = authorizer(policy(to(paths=("/a",))), policy(when("request.headers[x]", "1"), name="q"))
    for _ in range(2):
        assert isinstance(one.check_request(WEB, get("/a")), Permit)
        assert isinstance(one.check_request(WEB, get("/b")), Denial)
        assert isinstance(one.check_request(WEB, get("/b", x="1")), Permit)
        assert isinstance(one.check_request(WEB, get("/b", x="2")), Denial)
    for number in range(3000):
        assert isinstance(one.check_request(WEB, get(f"/{number}")), Denial)


def test_a_dry_run_is_told_and_not_enforced() -> None:
    verdict = authorizer(policy(to(methods=("GET",)), action=Action.DENY, dry_run=True)).check_request(WEB, get())
    assert isinstance(verdict, Permit)
    assert verdict.dry_run == ("shop/p would deny",)


@pytest.mark.parametrize(
    ("template", "takes", "refuses"),
    [
        ("/{*}", ("/a",), ("/", "/a/b", "/a/")),
        ("/a/{*}/{*}", ("/a/b/c",), ("/a/b", "/a//c")),
        ("/{**}", ("/", "/a", "/a/b"), ("a",)),
        ("/a/{**}/z", ("/a//z", "/a/b/z", "/a/b/c/z"), ("/a", "/az", "/a/z", "/a/b")),
        ("/a/{*}/b/{**}", ("/a/x/b/", "/a/x/b/c/d"), ("/a/x/b", "/a//b/c", "/a/b/c")),
    ],
)
def test_templates(template: str, takes: tuple[str, ...], refuses: tuple[str, ...]) -> None:
    among = paths((template,))
    assert [path for path in takes if not among(path)] == []
    assert [path for path in refuses if among(path)] == []


@pytest.mark.parametrize("bad", ["/{a}", "/x{*}", "/{**}/{**}", "{*}", "/{**}/{*}", "/a*/{*}"])
def test_what_is_no_template_makes_its_rule_unreadable(bad: str) -> None:
    assert isinstance(authorizer(policy(to(paths=(bad,)))).check_request(WEB, get("/a")), Denial)
    assert isinstance(authorizer(policy(to(paths=(bad,)), action=Action.DENY)).check_request(WEB, get("/a")), Denial)
