"""From a request to the rule that takes it, with Gateway API's precedence, in time that does not grow with the routes.

Whose routes (https://gateway-api.sigs.k8s.io/geps/gep-1294/#multiple-routes-for-a-service): if the client's namespace
has routes for the service, those alone; else those of the service's namespace, alone; never those of a third. Of the
kinds, GRPCRoutes hold alone where there are any (the same, "Route types").

Of several matches (https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule) the best is the one with an exact
path; with a pattern for the path, the longest; with the longest prefix, but for a last slash; then with a method; with
more headers; with more query parameters; of the older route; of the route with the smaller `<namespace>/<name>`; the
first in its route. Where patterns stand is left open there: before prefixes, since one writes them to carve something
out. A GRPCRoute counts the characters of the service, then those of the method: its `/service` prefixes come before its
patterns (any service's `/method`), and those before what matches everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.message import Request
from mesh.route.matching import Test, View, compile_clauses, first_of_each
from mesh.route.pattern import BadPattern, compile_pattern
from mesh.traffic import Compare, Route, RouteMatch, RouteRule


@dataclass(frozen=True, slots=True)
class Matched:
    """What takes a request."""

    route: Route
    rule: RouteRule
    match: RouteMatch
    """The one of the rule's matches that was met: prefix edits need it."""


_Candidate = tuple[Test | None, Matched]
"""Its path matches already. None: nothing else is asked."""
_Ranked = tuple[tuple[int | str, ...], Matched]


def routes_for(routes: Iterable[Route], service_namespace: str, client_namespace: str) -> list[Route]:
    """Of the routes attached to a service's port, those that hold for clients of a namespace."""
    attached = list(routes)
    own = [route for route in attached if route.namespace == client_namespace]
    held = own or [route for route in attached if route.namespace == service_namespace]
    return [route for route in held if route.kind == "GRPCRoute"] or held


class Router:
    """One service port's routes, as the clients of one namespace meet them."""

    __slots__ = ("_depth", "_exact", "_grpc", "_patterns", "_prefixes")

    def __init__(self, routes: Iterable[Route]) -> None:
        """Of routes that all hold, of one kind; see `of`."""
        ranked: list[_Ranked] = [
            ((*_rank(route, match), of_rule, of_match), Matched(route, rule, match))
            for route in routes
            for of_rule, rule in enumerate(route.rules)
            for of_match, match in enumerate(rule.matches)
        ]
        ranked.sort(key=lambda one: one[0])
        self._grpc = any(found.route.kind == "GRPCRoute" for _, found in ranked)
        self._exact: dict[bytes, list[_Candidate]] = {}
        self._prefixes: dict[bytes, list[_Candidate]] = {}
        """By prefix without its last slash."""
        self._patterns: list[tuple[Callable[[bytes], bool], Test | None, Matched]] = []
        for _, found in ranked:
            match = found.match
            candidate = (compile_clauses(match), found)
            if match.compare is Compare.EXACT:
                self._exact.setdefault(match.path.encode(), []).append(candidate)
            elif match.compare is Compare.PREFIX:
                self._prefixes.setdefault(match.path.encode().rstrip(b"/"), []).append(candidate)
            else:
                try:
                    self._patterns.append((compile_pattern(match.path)[0], *candidate))
                except BadPattern:
                    continue  # as in mesh.route.matching
        self._depth = max((prefix.count(b"/") for prefix in self._prefixes), default=0)

    @classmethod
    def of(cls, routes: Iterable[Route], client_namespace: str, service_namespace: str) -> Router | None:
        """Compile the routes attached to a service's port for clients of a namespace; None if none holds for them."""
        held = routes_for(routes, service_namespace, client_namespace)
        return cls(held) if held else None

    def match(self, request: Request) -> Matched | None:
        """What takes a request, whose path is normalised; None if nothing does: answer 404."""
        path = request.path
        mark = path.find(b"?")
        if mark >= 0:
            path = path[:mark]
        view = View(request)
        exact = self._exact.get(path)
        if exact is not None and (found := _first(exact, view)) is not None:
            return found
        if self._patterns and not self._grpc and (found := self._by_pattern(path, view)) is not None:
            return found
        if self._depth:
            prefix = _cut(path, self._depth)
            while prefix:
                candidates = self._prefixes.get(prefix)
                if candidates is not None and (found := _first(candidates, view)) is not None:
                    return found
                prefix = prefix[: max(prefix.rfind(b"/"), 0)]
        if self._patterns and self._grpc and (found := self._by_pattern(path, view)) is not None:
            return found
        everything = self._prefixes.get(b"")
        return None if everything is None else _first(everything, view)

    def _by_pattern(self, path: bytes, view: View) -> Matched | None:
        for matches, test, found in self._patterns:
            if matches(path) and (test is None or test(view)):
                return found
        return None


def _first(candidates: list[_Candidate], view: View) -> Matched | None:
    for test, found in candidates:
        if test is None or test(view):
            return found
    return None


def _cut(path: bytes, depth: int) -> bytes:
    """Without what is below that many elements: then a path of 10,000 elements costs no more than another."""
    elements = path.split(b"/", depth + 1)
    return path if len(elements) <= depth + 1 else path[: -len(elements[-1]) - 1]


def _rank(route: Route, match: RouteMatch) -> tuple[int | str, ...]:
    """Smaller is better. Lengths tell prefixes of one request apart, which are all of one dictionary's chain."""
    return (
        -len(match.path.rstrip("/") if match.compare is Compare.PREFIX else match.path),
        0 if match.method else 1,
        -len(first_of_each(match.headers)),
        -len(first_of_each(match.query)),
        route.created,
        f"{route.namespace}/{route.name}",
    )
