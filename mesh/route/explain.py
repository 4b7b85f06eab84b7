"""Why a request takes the route that it takes: all matches in their order of precedence, each clause held against it.

Who takes the request is what `Router.match` says; the order and the clauses are worked out apart. For people who ask,
not for traffic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mesh.message import CREDENTIALS, Request
from mesh.route.candidates import Matched
from mesh.route.matching import View, compile_clauses, compile_match, of_headers, of_parameters
from mesh.route.pattern import check_pattern
from mesh.route.router import Router, rank, routes_for
from mesh.traffic import Compare, Route, RouteMatch, RouteRule, ValueMatch

_SHOWN = 200
"""Characters of a value."""


@dataclass(frozen=True, slots=True)
class MatchClause:
    """One clause of a match, held against the request."""

    name: str
    """`path`, `method`, `header <name>` or `parameter <name>`."""
    compare: str
    """As `mesh.traffic.Compare` has it."""
    wanted: str
    value: str
    """The request's; empty if it has none. Of headers that hold credentials only that there is one."""
    met: bool
    problem: str = ""
    """Why it matches nothing."""


@dataclass(frozen=True, slots=True)
class MatchStep:
    """One match of one rule of a route."""

    route: str
    """`<kind>/<namespace>/<name>`."""
    rule: int
    rule_name: str
    match: int
    taken: bool
    """Whether the request goes this way: the first step all of whose clauses are met."""
    clauses: tuple[MatchClause, ...]

    @property
    def matched(self) -> bool:
        """Whether the request meets all of it."""
        return all(clause.met for clause in self.clauses)


@dataclass(frozen=True, slots=True)
class RouteExplanation:
    """Which way a request goes, and why."""

    matched: Matched | None
    """None if no route takes it (404), or there is none for these clients."""
    steps: tuple[MatchStep, ...]
    """The most specific first."""
    aside: tuple[tuple[str, str], ...]
    """Routes attached to the port that do not hold for these clients, each with the reason."""

    @property
    def taken(self) -> MatchStep | None:
        """The step that takes it."""
        return next((step for step in self.steps if step.taken), None)


def explain_route(
    routes: Iterable[Route], client_namespace: str, service_namespace: str, request: Request
) -> RouteExplanation:
    """Say why, of the routes attached to a service's port. The request's path is normalised."""
    attached = list(routes)
    held = routes_for(attached, service_namespace, client_namespace)
    router = Router.of(attached, client_namespace, service_namespace)
    matched = router.match(request) if router is not None else None
    view = View(request)
    steps: list[MatchStep] = []
    for route, rule, match in _ordered(held):
        clauses = tuple(_clauses(rule_matches(route.rules[rule])[match], view))
        taken = all(clause.met for clause in clauses) and not any(step.taken for step in steps)
        steps.append(MatchStep(route.key, rule, route.rules[rule].name, match, taken, clauses))
    aside = tuple((route.key, _why_aside(route, held, service_namespace)) for route in attached if route not in held)
    return RouteExplanation(matched, tuple(steps), aside)


def rule_matches(rule: RouteRule) -> tuple[RouteMatch, ...]:
    """Those of a rule; one that matches everything if it says none."""
    return rule.matches or (RouteMatch(),)


def _ordered(held: list[Route]) -> list[tuple[Route, int, int]]:
    grpc = any(route.kind == "GRPCRoute" for route in held)
    every = [
        ((_place(match, grpc), *rank(route, match), of_rule, of_match), (route, of_rule, of_match))
        for route in held
        for of_rule, rule in enumerate(route.rules)
        for of_match, match in enumerate(rule_matches(rule))
    ]
    return [one for _, one in sorted(every, key=lambda entry: entry[0])]


def _place(match: RouteMatch, grpc: bool) -> int:
    """By the kind of path, as `mesh.route.router` orders them."""
    if match.compare is Compare.EXACT:
        return 0
    if match.compare is Compare.REGEX:
        return 2 if grpc else 1
    if not match.path.rstrip("/"):
        return 3
    return 1 if grpc else 2


def _clauses(match: RouteMatch, view: View) -> Iterator[MatchClause]:
    everything = match.compare is Compare.PREFIX and not match.path.rstrip("/")
    on_path = everything or compile_match(RouteMatch(match.path, match.compare))(view.request)
    problem = check_pattern(match.path) if match.compare is Compare.REGEX else ""
    yield MatchClause("path", match.compare.value, match.path, _shown(view.path), on_path, problem)
    if match.method:
        met = _met(RouteMatch(method=match.method), view)
        yield MatchClause("method", Compare.EXACT.value, match.method, _shown(view.request.method), met)
    for clause in reversed(of_headers(match.headers)):  # as they were written
        name = clause.name.lower().encode()
        value = view.headers.get(name)
        shown = b"(hidden)" if value and name in CREDENTIALS else value
        yield _value_clause("header", clause, shown, _met(RouteMatch(headers=(clause,)), view))
    for clause in reversed(of_parameters(match.query)):
        value = view.parameters.get(clause.name.encode())
        yield _value_clause("parameter", clause, value, _met(RouteMatch(query=(clause,)), view))


def _value_clause(part: str, clause: ValueMatch, value: bytes | None, met: bool) -> MatchClause:
    problem = check_pattern(clause.value) if clause.compare is Compare.REGEX else ""
    return MatchClause(f"{part} {clause.name}", clause.compare.value, clause.value, _shown(value or b""), met, problem)


def _met(match: RouteMatch, view: View) -> bool:
    test = compile_clauses(match)
    return test is None or test(view)


def _why_aside(route: Route, held: list[Route], service_namespace: str) -> str:
    if held and route.namespace == held[0].namespace:
        return "GRPCRoutes of the service hold alone where there are any"
    if route.namespace == service_namespace:
        own = held[0].namespace
        return f"namespace {own} has routes of its own for this service: those alone hold for its clients"
    return f"it holds for clients in namespace {route.namespace} only"


def _shown(value: bytes) -> str:
    text = value.decode("latin-1")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
