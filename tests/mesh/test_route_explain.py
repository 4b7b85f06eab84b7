"""Explanations of routes: they are never at odds with the router."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.message import Request
from mesh.route import Router
from mesh.route.explain import RouteExplanation, explain_route
from mesh.traffic import Backend, Compare, Route, RouteMatch, RouteRule, ValueMatch
from tests.mesh.test_route_precedence import (
    CALLS,
    CLIENTS,
    GRPC_MATCHES,
    MATCHES,
    REQUESTS,
    Found,
    named,
    routes_of,
)


def taken(found: RouteExplanation) -> Found | None:
    step = found.taken
    return (step.route, step.rule, step.match) if step is not None else None


@settings(deadline=None)
@given(
    st.one_of(routes_of(MATCHES, ["HTTPRoute"]), routes_of(GRPC_MATCHES, ["GRPCRoute", "GRPCRoute", "HTTPRoute"])),
    st.lists(st.one_of(REQUESTS, CALLS), min_size=4, max_size=8),
    CLIENTS,
)
def test_the_step_that_takes_a_request_is_what_the_router_takes(
    routes: list[Route], asked: list[Request], client: str
) -> None:
    router = Router.of(routes, client, "shop")
    for request in asked:
        found = explain_route(routes, client, "shop", request)
        enforced = router.match(request) if router is not None else None
        assert found.matched == enforced
        assert taken(found) == named(routes, enforced)
        before = found.steps[: found.steps.index(found.taken)] if found.taken else found.steps
        assert not any(step.matched for step in before)
        assert len(found.aside) + len({step.route for step in found.steps if step.clauses}) <= len(routes)


def route(name: str, *rules: RouteRule, namespace: str = "shop", kind: str = "HTTPRoute") -> Route:
    return Route(kind, name, namespace, (), rules)


def rule(*matches: RouteMatch, to: str = "shop/web") -> RouteRule:
    return RouteRule(matches, (Backend(to, 80),))


def test_what_is_more_specific_says_which_clause_it_missed() -> None:
    canary = rule(RouteMatch("/cart", headers=(ValueMatch("x-canary", "yes"),)), to="shop/web-v2")
    routes = [route("web", canary, rule(RouteMatch("/"))), route("other", rule(), namespace="bank")]
    found = explain_route(routes, "shop", "shop", Request(b"GET", b"web", b"/cart/1?x=2"))
    assert taken(found) == ("HTTPRoute/shop/web", 1, 0)
    first = found.steps[0]
    assert [(c.name, c.wanted, c.value, c.met) for c in first.clauses] == [
        ("path", "/cart", "/cart/1", True),
        ("header x-canary", "yes", "", False),
    ]
    assert found.aside == (("HTTPRoute/bank/other", "it holds for clients in namespace bank only"),)


def test_routes_that_do_not_hold_are_set_aside_with_the_reason() -> None:
    shop, bank = route("web", rule()), route("mine", rule(), namespace="bank")
    assert "routes of its own" in explain_route([shop, bank], "bank", "shop", Request(b"GET", b"", b"/")).aside[0][1]
    grpc = route("calls", rule(RouteMatch("/a.B/c", Compare.EXACT)), kind="GRPCRoute")
    found = explain_route([shop, grpc], "shop", "shop", Request(b"GET", b"", b"/"))
    assert found.aside == (("HTTPRoute/shop/web", "GRPCRoutes of the service hold alone where there are any"),)
    assert found.taken is None
    assert explain_route([bank], "shop", "shop", Request(b"GET", b"", b"/")).steps == ()


def test_credentials_are_not_shown_and_bad_patterns_are() -> None:
    clauses = (ValueMatch("Authorization", "Basic x"), ValueMatch("x", "(", Compare.REGEX))
    request = Request(b"GET", b"", b"/", [(b"authorization", b"Basic secret"), (b"x", b"1")])
    step = explain_route([route("r", rule(RouteMatch(headers=clauses)))], "shop", "shop", request).steps[0]
    assert [clause.value for clause in step.clauses] == ["/", "(hidden)", "1"]
    assert step.clauses[2].problem
    assert not step.clauses[2].met
