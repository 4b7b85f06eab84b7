"""Explanations of verdicts: they are never at odds with what is enforced."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.authz import Authorizer, Denial, Peer, Permit
from mesh.authz.explain import Case, PolicyStep, explain
from mesh.authz.flips import Change, flips
from mesh.identity import Identity
from mesh.message import Request
from mesh.model import Action, Condition, MtlsMode, Operation, PeerAuth, Policy, Rule, Source
from tests.mesh import samples
from tests.mesh.samples import one_of, tuples
from tests.mesh.test_authz_requests import WEB, authorizer, get, policy, to, when

_methods = tuples(one_of("GET", "P*", "*"))
_paths = tuples(one_of("/a", "/a/*", "*/b", "/{*}/b", "/a/{**}", "*", "/{bad"))
_hosts = tuples(one_of("web", "*.shop", "WEB*"))
_people = tuples(one_of("https://i/me", "https://i/*", "*"))
_blocks = tuples(one_of("10.77.0.0/24", "nonsense", "0.0.0.0/0"))
_values = tuples(one_of("1", "2*", "*", "a,b"))

_sources = st.builds(
    Source,
    principals=tuples(one_of("cluster.local/ns/shop/sa/web", "td/*", "*"), 1),
    not_namespaces=tuples(one_of("other", "sh*"), 1),
    request_principals=_people,
    not_request_principals=tuples(one_of("*", "https://i/me"), 1),
    remote_ip_blocks=_blocks,
)
_operations = st.builds(
    Operation,
    ports=tuples(one_of(8080, 80), 1),
    hosts=_hosts,
    methods=_methods,
    not_methods=tuples(one_of("GET", "PUT"), 1),
    paths=_paths,
    not_paths=tuples(one_of("/a/*", "/b"), 1),
)
_conditions = st.builds(
    Condition,
    one_of("request.headers[X-A]", "request.auth.claims[o][u]", "request.auth.audiences", "remote.ip", "made.up"),
    _values,
    tuples(one_of("1", "3"), 1),
)
_rules = st.builds(
    Rule,
    tuples(st.one_of(_sources, samples.sources)),
    tuples(st.one_of(_operations, samples.operations)),
    tuples(st.one_of(_conditions, samples.conditions), 1),
)
_policies = st.lists(
    st.builds(
        Policy, one_of("a", "b", "c", "d"), one_of("shop"), st.sampled_from(Action), tuples(_rules, 3), one_of({}),
        one_of(False, False, True), one_of("p", "q"),
    ),
    max_size=4,
    unique_by=lambda made: made.name,
)  # fmt: skip
_peers = st.builds(
    Peer,
    st.none() | samples.identities,
    st.sampled_from(samples.ADDRESSES),
    st.sampled_from(samples.ADDRESSES),
    st.sampled_from(samples.PORTS),
)
_requests = st.builds(
    Request,
    one_of(b"GET", b"PUT", b"POST"),
    one_of(b"web", b"WEB.shop", b"other"),
    one_of(b"/", b"/a", b"/a/b?c=d", b"/x/b", b"/b"),
    st.lists(st.tuples(one_of(b"x-a", b"x"), one_of(b"1", b"2", b"a", b"b")), max_size=2),
)
_claims = st.none() | st.fixed_dictionaries(
    {"iss": one_of("https://i"), "sub": one_of("me", "you")},
    optional={"aud": one_of("1", ["2x", 3]), "o": one_of({"u": "1"}, "1")},
)


def judged(policies: list[Policy], strict: bool) -> Authorizer:
    return authorizer(*policies, strict=strict)


def by_steps(steps: tuple[PolicyStep, ...], *denying: str) -> tuple[bool, str, int]:
    """The verdict that the steps amount to, by Istio's order."""
    enforced = [step for step in steps if not step.dry_run and step.action in (*denying, "ALLOW")]
    for step in enforced:
        if step.matched >= 0:
            return step.action == "ALLOW", step.policy, step.matched
    return not any(step.action == "ALLOW" for step in enforced), "", -1


@given(_policies, st.booleans(), _peers, _requests, _claims)
def test_what_is_explained_is_what_is_enforced(
    policies: list[Policy], strict: bool, peer: Peer, request: Request, claims: dict[str, Any] | None
) -> None:
    one = judged(policies, strict)
    enforced = one.check_request(peer, request, claims)
    found = explain(one, Case.of(peer, request, claims))
    assert found.verdict == enforced
    assert found.allowed is isinstance(enforced, Permit)
    assert found.asks == one.asks(peer, request, claims)
    if not (strict and peer.identity is None):
        assert by_steps(found.steps, "DENY") == (found.allowed, enforced.policy, enforced.rule)
        assert [step.policy for step in found.steps if step.decided] == ([enforced.policy] if enforced.policy else [])
    for step in found.steps:
        for rule in step.rules:
            assert rule.matched is not bool(rule.missed)


@given(_policies, st.booleans(), _peers)
def test_connections_are_explained_as_they_are_checked(policies: list[Policy], strict: bool, peer: Peer) -> None:
    one = judged(policies, strict)
    enforced = one.check(peer)
    found = explain(one, Case.of(peer, None, None))
    assert found.verdict == enforced
    if not (strict and peer.identity is None):
        assert by_steps(found.steps, "CUSTOM", "DENY") == (found.allowed, enforced.policy, enforced.rule)


def applied(changes: tuple[Change, ...], peer: Peer, request: Request, claims: Any) -> tuple[Peer, Request, Any]:
    """The same changes, made to a request by another way than the search's."""
    for change in changes:
        to_ = change.to
        if change.what == "identity":
            peer = peer._replace(identity=Identity.parse(f"spiffe://{to_}") if to_ else None)
        elif change.what == "source address":
            peer = peer._replace(source_ip=to_)
        elif change.what == "method":
            request.method = to_.encode()
        elif change.what == "path":
            request.path = to_.encode()
        elif change.what == "host":
            request.authority = to_.encode()
        else:
            name = change.what.removeprefix("header ").encode()
            request.headers = [one for one in request.headers if one[0] != name]
            if to_:
                request.headers.append((name, to_.encode()))
    return peer, request, claims


@given(_policies, st.booleans(), _peers, _requests)
def test_the_changes_named_do_turn_the_verdict_round(
    policies: list[Policy], strict: bool, peer: Peer, request: Request
) -> None:
    one = judged(policies, strict)
    before = one.check_request(peer, request)
    for flip in flips(one, Case.of(peer, request, None)):
        assert flip.changes
        if any(change.what == "token" for change in flip.changes):
            continue
        made = Request(request.method, request.authority, request.path, list(request.headers))
        after = one.check_request(*applied(flip.changes, peer, made, None))
        assert isinstance(after, Permit) is not isinstance(before, Permit)
        assert after == flip.verdict


def told(one: Authorizer, request: Request, peer: Peer = WEB, claims: Any = None) -> list[set[tuple[str, str]]]:
    found = flips(one, Case.of(peer, request, claims))
    return [{(change.what, change.to) for change in flip.changes} for flip in found]


def test_a_path_that_is_not_allowed_is_named_with_what_would_be() -> None:
    one = authorizer(policy(Rule(operations=(Operation(methods=("GET",), paths=("/public*",)),)), name="read"))
    found = explain(one, Case.of(WEB, get("/admin/x"), None))
    assert not found.allowed
    assert found.nearest is not None
    step, rule = found.nearest
    assert (step.policy, rule.rule) == ("shop/read", 0)
    assert [(c.place, c.name, c.wanted, c.value, c.met) for c in rule.missed] == [
        ("to[0]", "paths", ("/public*",), "/admin/x", False)
    ]
    assert [(c.name, c.value, c.met) for c in rule.clauses] == [("methods", "GET", True), ("paths", "/admin/x", False)]
    assert told(one, get("/admin/x")) == [{("path", "/public")}]
    assert told(one, get("/admin/x", method="PUT")) == [{("path", "/public"), ("method", "GET")}]


def test_a_host_that_is_named_can_be_asked_for() -> None:
    for pattern, named in (("*.shop", "any.shop"), ("api:*", "api:80"), ("api*", "api")):
        assert told(authorizer(policy(to(hosts=(pattern,)))), get()) == [{("host", named)}]


def test_of_several_ways_the_one_with_fewest_changes_is_named() -> None:
    far = Rule((Source(namespaces=("other",)),), (Operation(paths=("/b",), methods=("PUT",)),))
    near = to(paths=("/a",), methods=("GET", "HEAD"))
    assert told(authorizer(policy(far, near)), get("/c")) == [{("path", "/a")}]


def test_a_denial_is_turned_round_only_by_what_every_policy_lets_pass() -> None:
    deny = policy(to(paths=("/admin*",)), action=Action.DENY, name="no-admin")
    allow = policy(to(methods=("GET",)), name="read")
    assert told(authorizer(deny, allow), get("/admin"))[0] == {("path", "/")}
    assert told(authorizer(deny, allow), get("/admin", method="PUT"))[0] == {("path", "/"), ("method", "GET")}
    nothing = policy(action=Action.ALLOW, name="nothing")
    assert told(authorizer(nothing), get()) == []


def test_a_permit_names_what_it_hangs_on() -> None:
    one = authorizer(policy(when("request.headers[x-team]", "red")))
    assert told(one, get(x_team="red")) == [{("header x-team", "")}]
    assert told(authorizer(), get()) == []
    assert told(authorizer(strict=True), get()) == [{("identity", "")}]


def test_claims_and_identities_can_be_what_is_missing() -> None:
    one = authorizer(policy(when("request.auth.claims[groups]", "admin")))
    assert told(one, get(), claims={"iss": "i", "sub": "s"}) == [{("token", "admin")}]
    one = authorizer(policy(Rule((Source(principals=("cluster.local/ns/shop/sa/*",)),))))
    other = WEB._replace(identity=Identity("cluster.local", "other", "web"))
    assert told(one, get(), other)[0] == {("identity", "cluster.local/ns/shop/sa/any")}


def test_credentials_are_not_shown() -> None:
    one = authorizer(policy(when("request.headers[Authorization]", "Bearer x*")))
    found = explain(one, Case.of(WEB, get(authorization="Bearer secret"), None))
    assert found.steps[0].rules[0].clauses[0].value == "(hidden)"
    assert "secret" not in repr(found)


def test_on_tcp_a_clause_on_requests_says_so() -> None:
    one = authorizer(policy(to(methods=("GET",))))
    found = explain(one, Case.of(WEB, None, None))
    assert isinstance(found.verdict, Denial)
    (clause,) = found.steps[0].rules[0].missed
    assert "TCP" in clause.problem
    assert flips(one, Case.of(WEB, None, None)) == ()


def test_strict_is_told_before_the_policies() -> None:
    one = Authorizer.of(
        (), (PeerAuth("strict", "shop", MtlsMode.STRICT),), namespace="shop", labels={}, root_namespace="r"
    )
    plain = WEB._replace(identity=None)
    found = explain(one, Case.of(plain, get(), None))
    assert (found.verdict.policy, found.mtls_mode) == ("shop/strict", "STRICT")
    (flip,) = flips(one, Case.of(plain, get(), None))
    assert (flip.changes[0].what, flip.changes[0].clause) == ("identity", "mutual TLS")


def test_who_is_asked_first_is_told_and_no_change_is_sought_in_what_may_say_anything() -> None:
    custom = Policy("ask", "shop", Action.CUSTOM, (to(paths=("/x",)),), provider="opa")
    audit = policy(to(paths=("/x",)), action=Action.AUDIT, name="log")
    one = authorizer(custom, audit, policy(to(methods=("GET",))))
    found = explain(one, Case.of(WEB, get("/x"), None))
    assert found.allowed
    assert [(ask.provider, ask.policy) for ask in found.asks] == [("opa", "shop/ask")]
    assert [step.action for step in found.steps] == ["CUSTOM", "ALLOW", "AUDIT"]
    assert told(one, get("/x")) == [{("method", "POST")}]
    connection = explain(one, Case.of(WEB, None, None))
    assert (connection.verdict.policy, connection.steps[0].decided) == ("shop/ask", True)
