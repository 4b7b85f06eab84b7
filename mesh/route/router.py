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

from collections.abc import Iterable, Iterator
from operator import itemgetter

from mesh.message import Request
from mesh.route.candidates import Candidate, Candidates, Matched
from mesh.route.limits import limits
from mesh.route.matching import Test, View, compile_clauses, of_headers, of_parameters
from mesh.route.pattern import BadPattern, Pattern, compile_pattern
from mesh.traffic import Compare, Route, RouteMatch, TrafficPolicy

_Places = dict[bytes, list[Candidate]]


def routes_for(routes: Iterable[Route], service_namespace: str, client_namespace: str) -> list[Route]:
    """Of the routes attached to a service's port, those that hold for clients of a namespace."""
    attached = list(routes)
    own = [route for route in attached if route.namespace == client_namespace]
    held = own or [route for route in attached if route.namespace == service_namespace]
    return [route for route in held if route.kind == "GRPCRoute"] or held


class Router:
    """One service port's routes, as the clients of one namespace meet them."""

    __slots__ = ("_exact", "_grpc", "_patterns", "_prefixes")

    def __init__(self, routes: Iterable[Route], policy: TrafficPolicy | None = None) -> None:
        """Of routes that all hold, of one kind; see `of`."""
        ranked = [
            ((*rank(route, match), of_rule, of_match), Matched(route, rule, match, limited))
            for route in routes
            for of_rule, rule in enumerate(route.rules)
            for limited in (limits(rule, policy),)
            for of_match, match in enumerate(rule.matches or (RouteMatch(),))
        ]
        ranked.sort(key=lambda one: one[0])
        self._grpc = any(found.route.kind == "GRPCRoute" for _, found in ranked)
        exact: _Places = {}
        prefixes: _Places = {}
        patterns: _Places = {}
        for order, (_, found) in enumerate(ranked):
            match, test = found.match, compile_clauses(found.match)
            path = match.path.encode()
            if match.compare is Compare.EXACT:
                exact.setdefault(path, []).append((order, test, found))
            elif match.compare is Compare.PREFIX:
                prefixes.setdefault(path.rstrip(b"/"), []).append((order, test, found))
            else:
                try:
                    pattern = compile_pattern(match.path)
                except BadPattern:
                    continue  # as in mesh.route.matching
                place = pattern.start[: max(pattern.start.rfind(b"/"), 0)]
                patterns.setdefault(place, []).append((order, _with_path(pattern, test), found))
        self._exact = {path: Candidates(found) for path, found in exact.items()}
        self._prefixes = _Tree(prefixes)
        self._patterns = _Tree(patterns) if patterns else None

    @classmethod
    def of(
        cls,
        routes: Iterable[Route],
        client_namespace: str,
        service_namespace: str,
        policy: TrafficPolicy | None = None,
    ) -> Router | None:
        """Compile the routes attached to a service's port for clients of a namespace; None if none holds for them.

        `policy` is the service's.
        """
        held = routes_for(routes, service_namespace, client_namespace)
        return cls(held, policy) if held else None

    def match(self, request: Request) -> Matched | None:
        """What takes a request, whose path is normalised; None if nothing does: answer 404."""
        view = View(request)
        candidates = self._exact.get(view.path)
        if candidates is not None and (found := candidates.first(view)) is not None:
            return found[2]
        prefixes, patterns = self._prefixes, self._patterns
        if patterns is None:
            found = prefixes.below(view) or prefixes.root(view)
        elif self._grpc:
            found = prefixes.below(view) or patterns.best(view) or prefixes.root(view)
        else:
            found = patterns.best(view) or prefixes.below(view) or prefixes.root(view)
        return None if found is None else found[2]


class _Tree:
    """Candidates by the whole elements that a path starts with."""

    __slots__ = ("_depth", "_places", "_root")

    def __init__(self, places: _Places) -> None:
        """By prefix, without a last slash."""
        self._places = {prefix: Candidates(found) for prefix, found in places.items() if prefix}
        self._root = Candidates(places.get(b"", ()))
        self._depth = max((prefix.count(b"/") for prefix in self._places), default=0)

    def below(self, view: View) -> Candidate | None:
        """The best of those with the longest prefix that has one, but for those that are for all paths."""
        for candidates in self._chain(view.path):
            if (found := candidates.first(view)) is not None:
                return found
        return None

    def root(self, view: View) -> Candidate | None:
        """The best of those that are for all paths."""
        return self._root.first(view)

    def best(self, view: View) -> Candidate | None:
        """The best of all, however long their prefix."""
        found = [candidates.first(view) for candidates in (*self._chain(view.path), self._root)]
        return min((one for one in found if one is not None), key=itemgetter(0), default=None)

    def _chain(self, path: bytes) -> Iterator[Candidates]:
        if not self._depth:
            return
        # Without what is below the deepest prefix: then a path of 10,000 elements costs no more than another.
        elements = path.split(b"/", self._depth + 1)
        if len(elements) > self._depth + 1:
            path = path[: -len(elements[-1]) - 1]
        while path:
            if (candidates := self._places.get(path)) is not None:
                yield candidates
            path = path[: max(path.rfind(b"/"), 0)]


def _with_path(pattern: Pattern, test: Test | None) -> Test:
    return lambda view: view.meets(pattern, view.path) and (test is None or test(view))


def rank(route: Route, match: RouteMatch) -> tuple[int | str, ...]:
    """Smaller is better. Lengths tell prefixes of one request apart, which are all of one dictionary's chain."""
    return (
        -len(match.path.rstrip("/") if match.compare is Compare.PREFIX else match.path),
        0 if match.method else 1,
        -len(of_headers(match.headers)),
        -len(of_parameters(match.query)),
        route.created,
        f"{route.namespace}/{route.name}",
    )
