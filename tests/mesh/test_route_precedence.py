"""Which rule takes a request: the router beside a model that tries every match, one after the other."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.message import Request
from mesh.route import Matched, Router
from mesh.traffic import Backend, Compare, Route, RouteMatch, RouteRule, ValueMatch

Found = tuple[str, int, int]
"""A route's key, and the indexes of rule and match."""

# -- the model ---------------------------------------------------------------------------------------------------------


def holding(routes: list[Route], client: str, service: str) -> list[Route]:
    consumer = [route for route in routes if client != service and route.namespace == client]
    producer = [route for route in routes if route.namespace == service]
    group = consumer if consumer else producer
    kind = "GRPCRoute" if "GRPCRoute" in [route.kind for route in group] else "HTTPRoute"
    return [route for route in group if route.kind == kind]


def value_matches(clause: ValueMatch, values: list[str], joined_by: str) -> bool:
    if not values:
        return False
    value = joined_by.join(values) if joined_by else values[0]
    if clause.compare is Compare.REGEX:
        return re.fullmatch(clause.value, value) is not None
    return value == clause.value


def meets(match: RouteMatch, request: Request) -> bool:
    path, _, query = request.path.decode().partition("?")
    if match.compare is Compare.EXACT:
        on_path = path == match.path
    elif match.compare is Compare.REGEX:
        on_path = re.fullmatch(match.path, path) is not None
    else:
        wanted = [element for element in match.path.split("/") if element]
        on_path = path.split("/")[1 : len(wanted) + 1] == wanted
    if not on_path or match.method not in ("", request.method.decode()):
        return False
    for header in match.headers:
        values = [value.decode() for name, value in request.headers if name.decode() == header.name]
        if not value_matches(header, values, ","):
            return False
    asked = parse_qsl(query, keep_blank_values=True)
    return all(value_matches(clause, [v for n, v in asked if n == clause.name], "") for clause in match.query)


def preference(match: RouteMatch) -> tuple[int, ...]:
    """Of an HTTPRoute; larger is better."""
    exact, pattern = match.compare is Compare.EXACT, match.compare is Compare.REGEX
    characters = len(match.path) if exact or pattern else len(match.path.rstrip("/"))
    return (exact, pattern, characters, match.method != "", len(match.headers), len(match.query))


def grpc_preference(match: RouteMatch) -> tuple[int, ...]:
    service, method = "", ""
    if match.compare is Compare.REGEX:
        method = match.path.rpartition("/")[2]
    else:
        _, service, method = (match.path + "/").split("/")[:3]
    return (len(service), len(method), len(match.headers))


def expected(routes: list[Route], client: str, service: str, request: Request) -> Found | None:
    best: tuple[tuple[int, ...], int, str, Found] | None = None
    for route in holding(routes, client, service):
        rank = grpc_preference if route.kind == "GRPCRoute" else preference
        for rule_index, rule in enumerate(route.rules):
            for match_index, match in enumerate(rule.matches):
                if not meets(match, request):
                    continue
                name = f"{route.namespace}/{route.name}"
                this = (rank(match), route.created, name, (route.key, rule_index, match_index))
                if best is None or this[0] > best[0] or (this[0] == best[0] and this[1:] < best[1:]):
                    best = this
    return best[3] if best else None


def named(routes: list[Route], matched: Matched | None) -> Found | None:
    if matched is None:
        return None
    rule = next(i for i, one in enumerate(matched.route.rules) if one is matched.rule)
    return matched.route.key, rule, next(i for i, one in enumerate(matched.rule.matches) if one is matched.match)


# -- what is tried -----------------------------------------------------------------------------------------------------

ELEMENTS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3)
PATHS = st.builds(
    lambda elements, slash: "/" + "/".join(elements) + slash * bool(elements), ELEMENTS, st.sampled_from(["", "/"])
)
PATTERNS = st.sampled_from(
    ["/a/.*", "/[ab]", "/a|/b/a", ".*", "/a/b?/.*", "(?i)/A/B", "/a/[^/]+", "/ab*", "/a/(a|b)/?", "/b/"]
)
VALUES = st.one_of(
    st.builds(ValueMatch, st.sampled_from(["x", "y"]), st.sampled_from(["1", "2", "1,2"])),
    st.builds(ValueMatch, st.sampled_from(["x", "y"]), st.sampled_from(["[12]", "2?", ".*"]), st.just(Compare.REGEX)),
)
SOME_CLAUSES = st.lists(VALUES, max_size=2, unique_by=lambda clause: clause.name).map(tuple)
CLAUSES = st.one_of(st.just(()), st.just(()), SOME_CLAUSES)
PATHS_MATCHED = st.one_of(
    st.tuples(PATHS, st.sampled_from([Compare.EXACT, Compare.PREFIX])), st.tuples(PATTERNS, st.just(Compare.REGEX))
)
METHODS = st.sampled_from(["", "", "GET", "POST"])
MATCHES = st.builds(
    lambda path, method, headers, query: RouteMatch(path[0], path[1], method, headers, query),
    PATHS_MATCHED,
    METHODS,
    CLAUSES,
    CLAUSES,
)
GRPC_PATHS = st.sampled_from([
    ("/s/m", Compare.EXACT),
    ("/s/long", Compare.EXACT),
    ("/long/m", Compare.EXACT),
    ("/s", Compare.PREFIX),
    ("/long", Compare.PREFIX),
    ("/", Compare.PREFIX),
    ("/[^/]+/m", Compare.REGEX),
    ("/[^/]+/long", Compare.REGEX),
])  # fmt: skip
GRPC_MATCHES = st.builds(lambda path, headers: RouteMatch(path[0], path[1], headers=headers), GRPC_PATHS, CLAUSES)


def routes_of(matches: st.SearchStrategy[RouteMatch], kinds: list[str]) -> st.SearchStrategy[list[Route]]:
    rules = st.builds(RouteRule, st.lists(matches, min_size=1, max_size=4).map(tuple))
    route = st.builds(
        Route,
        st.sampled_from(kinds),
        st.sampled_from(["p", "q", "r"]),
        st.sampled_from(["shop", "shop", "shop", "client", "third"]),
        st.just(()),
        st.lists(rules, min_size=1, max_size=4).map(tuple),
        st.integers(0, 1),
    )
    return st.lists(route, min_size=1, max_size=5, unique_by=lambda route: route.key)


FIELDS = st.lists(st.tuples(st.sampled_from([b"x", b"y", b"z"]), st.sampled_from([b"1", b"2", b"3"])), max_size=4)
QUERIES = st.lists(st.sampled_from(["x=1", "x=2", "y=1", "y=%32", "x", "", "z=1"]), max_size=4).map("&".join)


def requests(paths: st.SearchStrategy[str]) -> st.SearchStrategy[Request]:
    return st.builds(
        lambda method, path, query, fields: Request(method, b"shop", (path + query).encode(), fields),
        st.sampled_from([b"GET", b"GET", b"POST", b"PUT"]),
        paths,
        QUERIES.map(lambda query: "?" + query if query else ""),
        FIELDS,
    )


REQUESTS = requests(st.one_of(PATHS, PATHS, st.sampled_from(["//a", "/a/b/ab/a/b", "/c"])))
CALLS = requests(st.sampled_from(["/s/m", "/s/long", "/long/m", "/long/long", "/other/m", "/s", "/s/m/"]))


CLIENTS = st.sampled_from(["shop", "client", "elsewhere"])


@settings(deadline=None)
@given(routes_of(MATCHES, ["HTTPRoute"]), st.lists(REQUESTS, min_size=8, max_size=16), CLIENTS)
def test_the_router_takes_what_a_model_trying_every_match_takes(
    routes: list[Route], asked: list[Request], client: str
) -> None:
    router = Router.of(routes, client, "shop")

    assert (router is None) == (not holding(routes, client, "shop"))
    for request in asked:
        found = router.match(request) if router else None
        assert named(routes, found) == expected(routes, client, "shop", request)


@settings(deadline=None)
@given(routes_of(GRPC_MATCHES, ["GRPCRoute", "GRPCRoute", "HTTPRoute"]), st.lists(CALLS, min_size=8), CLIENTS)
def test_grpc_routes_go_by_the_length_of_service_and_method(
    routes: list[Route], asked: list[Request], client: str
) -> None:
    router = Router.of(routes, client, "shop")

    for request in asked:
        found = router.match(request) if router else None
        assert named(routes, found) == expected(routes, client, "shop", request)


@settings(deadline=None)
@given(
    st.lists(st.builds(RouteMatch, headers=SOME_CLAUSES, query=SOME_CLAUSES), min_size=9, max_size=40),
    st.lists(REQUESTS, min_size=8),
)
def test_many_matches_of_one_path_are_found_in_the_same_order(matches: list[RouteMatch], asked: list[Request]) -> None:
    routes = [Route("HTTPRoute", "r", "shop", (), (RouteRule(tuple(matches)),))]
    router = Router(routes)

    for request in asked:
        assert named(routes, router.match(request)) == expected(routes, "shop", "shop", request)


# -- cases -------------------------------------------------------------------------------------------------------------


def route(
    *rules: RouteRule, namespace: str = "shop", name: str = "r", created: int = 0, kind: str = "HTTPRoute"
) -> Route:
    return Route(kind, name, namespace, (), rules, created)


def rule(name: str, *matches: RouteMatch) -> RouteRule:
    return RouteRule(matches or (RouteMatch(),), (Backend(f"shop/{name}", 80),), name)


def taken(
    routes: list[Route], path: str, *fields: tuple[bytes, bytes], method: bytes = b"GET", client: str = "shop"
) -> str | None:
    router = Router.of(routes, client, "shop")
    assert router is not None
    matched = router.match(Request(method, b"shop", path.encode(), list(fields)))
    return matched.rule.name if matched else None


@pytest.mark.parametrize(
    ("path", "backend"),
    [  # the conformance test HTTPRoutePathMatchOrder
        ("/match/exact/one", "v3"),
        ("/match/exact", "v2"),
        ("/match", "v1"),
        ("/match/prefix/one/any", "v2"),
        ("/match/prefix/any", "v1"),
        ("/match/any", "v3"),
        ("/matched", None),
    ],
)
def test_an_exact_path_comes_before_the_longest_prefix(path: str, backend: str | None) -> None:
    exact, prefix = Compare.EXACT, Compare.PREFIX
    order = [
        ("v1", "/match", exact),
        ("v2", "/match/exact", exact),
        ("v3", "/match/exact/one", exact),
        ("v3", "/match/", prefix),
        ("v1", "/match/prefix/", prefix),
        ("v2", "/match/prefix/one", prefix),
    ]
    routes = [route(*[rule(name, RouteMatch(path, compare)) for name, path, compare in order])]

    assert taken(routes, path) == backend


@pytest.mark.parametrize(
    ("path", "fields", "backend"),
    [  # the conformance test HTTPRouteQueryParamMatching, as a mesh's
        ("/?animal=whale", [], "v1"),
        ("/?animal=dolphin", [], "v2"),
        ("/?animal=whale&otherparam=irrelevant", [], "v1"),
        ("/?animal=dolphin&color=yellow", [], "v2"),
        ("/?color=blue", [], None),
        ("/?animal=dog", [], None),
        ("/?animal=whaledolphin", [], None),
        ("/", [], None),
        ("/path1?animal=whale", [], "path1"),
        ("/?animal=whale", [(b"version", b"one")], "one"),
        ("/path3?animal=shark", [], "either"),
        ("/path4?animal=kraken", [(b"version", b"three")], "either"),
        ("/?animal=shark", [], None),
        ("/path4?animal=kraken", [], None),
        ("/path5?animal=hydra", [], "path5"),
    ],
)
def test_query_parameters_narrow_what_a_rule_takes(
    path: str, fields: list[tuple[bytes, bytes]], backend: str | None
) -> None:
    def animal(name: str) -> tuple[ValueMatch, ...]:
        return (ValueMatch("animal", name),)

    version = (ValueMatch("version", "one"),)
    routes = [
        route(
            rule("v1", RouteMatch(query=animal("whale"))),
            rule("v2", RouteMatch(query=animal("dolphin"))),
            rule("path1", RouteMatch("/path1", query=animal("whale"))),
            rule("one", RouteMatch(headers=version, query=animal("whale"))),
            rule(
                "either",
                RouteMatch("/path3", query=animal("shark")),
                RouteMatch("/path4", headers=(ValueMatch("version", "three"),), query=animal("kraken")),
            ),
            rule("path5", RouteMatch("/path5")),
            rule("hydra", RouteMatch(query=animal("hydra"))),
        )
    ]

    assert taken(routes, path, *fields) == backend


@pytest.mark.parametrize(
    ("path", "version", "backend"),
    [
        ("/", b"", "v1"),
        ("/example", b"one", "v1"),
        ("/v2", b"", "v2"),
        ("/v2/example", b"", "v2"),
        ("/", b"two", "v2"),
        ("/v2example", b"", "v1"),
    ],
)
def test_routes_are_merged_across_resources(path: str, version: bytes, backend: str) -> None:
    """The conformance test HTTPRouteMatchingAcrossRoutes."""

    def of(version: str) -> RouteMatch:
        return RouteMatch(headers=(ValueMatch("version", version),))

    routes = [
        route(rule("v1", RouteMatch(), of("one")), name="1"),
        route(rule("v2", RouteMatch("/v2"), of("two")), name="2"),
    ]

    assert taken(routes, path, *([(b"version", version)] if version else [])) == backend


def test_of_two_that_match_equally_well_the_older_then_the_first_by_name_holds() -> None:
    young, old, also_old = (
        route(rule("young"), name="a", created=2),
        route(rule("old"), name="c"),
        route(rule("also"), name="b"),
    )

    assert taken([young, old], "/") == "old"
    assert taken([young, old, also_old], "/") == "also"


def test_of_one_route_the_first_rule_holds() -> None:
    assert taken([route(rule("first"), rule("second"))], "/") == "first"


def test_a_consumer_route_holds_for_its_own_namespace_alone_and_instead_of_the_producers() -> None:
    """As the conformance test MeshConsumerRoute has it; nothing of the producer's is left for its clients."""
    producer = route(rule("producer"))
    consumer = route(rule("consumer", RouteMatch("/a")), namespace="client")

    assert taken([producer, consumer], "/a", client="client") == "consumer"
    assert taken([producer, consumer], "/b", client="client") is None
    assert taken([producer, consumer], "/a", client="other") == "producer"
    assert taken([producer, consumer], "/a", client="shop") == "producer"


def test_there_is_no_router_where_only_others_have_routes() -> None:
    assert Router.of([route(rule("consumer"), namespace="client")], "other", "shop") is None
    assert Router.of([], "client", "shop") is None


def test_grpc_routes_hold_alone_where_there_are_any() -> None:
    routes = [route(rule("http")), route(rule("grpc", RouteMatch("/s")), kind="GRPCRoute")]

    assert taken(routes, "/s/m") == "grpc"
    assert taken(routes, "/t/m") is None


def test_a_pattern_carves_something_out_of_a_prefix() -> None:
    routes = [
        route(
            rule("prefix", RouteMatch("/api/v1/users")),
            rule("pattern", RouteMatch("/api/v[0-9]/users/[0-9]+", Compare.REGEX)),
        )
    ]

    assert taken(routes, "/api/v1/users/7") == "pattern"
    assert taken(routes, "/api/v1/users/7/friends") == "prefix"  # a pattern is for the whole path


def test_a_pattern_that_re2_does_not_know_takes_nothing() -> None:
    routes = [
        route(
            rule(
                "bad",
                RouteMatch(r"/(?=a).*", Compare.REGEX),
                RouteMatch("/x", headers=(ValueMatch("h", "(", Compare.REGEX),)),
            ),
            rule("rest"),
        )
    ]

    assert taken(routes, "/a") == "rest"
    assert taken(routes, "/x", (b"h", b"(")) == "rest"


def test_a_rule_without_matches_takes_all() -> None:
    assert taken([route(RouteRule((), name="all"))], "/any?thing") == "all"


@pytest.mark.parametrize("path", ["*", "", "/" * 60_000, "/a" * 30_000, "/?" + "&" * 60_000])
def test_odd_targets_are_taken_by_what_takes_all(path: str) -> None:
    routes = [route(rule("deep", RouteMatch("/a/b/c", query=(ValueMatch("q", "1"),))), rule("all"))]

    assert taken(routes, path) == "all"


def test_header_names_of_a_match_are_of_any_case_and_repeated_headers_are_one_list() -> None:
    routes = [
        route(
            rule("list", RouteMatch(headers=(ValueMatch("X-List", "a,b"),))),
            rule("jar", RouteMatch(headers=(ValueMatch("cookie", "a=1; b=2"),))),
        )
    ]

    assert taken(routes, "/", (b"x-list", b"a"), (b"x-list", b"b")) == "list"
    assert taken(routes, "/", (b"x-list", b"a")) is None
    assert taken(routes, "/", (b"cookie", b"a=1"), (b"cookie", b"b=2")) == "jar"


def test_of_two_clauses_for_one_header_or_parameter_the_first_counts() -> None:
    headers = (ValueMatch("x", "1"), ValueMatch("X", "2"))
    query = (ValueMatch("q", "1"), ValueMatch("q", "2"))
    two = RouteMatch(headers=headers)
    routes = [
        route(
            rule("two", two),
            rule("query", RouteMatch("/q", query=query)),
            rule("one", RouteMatch(headers=(ValueMatch("x", "1"),), query=(ValueMatch("q", "1"),))),
        )
    ]

    assert taken(routes, "/", (b"x", b"1")) == "two"
    assert taken(routes, "/", (b"x", b"2")) is None
    assert taken(routes, "/?q=1", (b"x", b"1")) == "one"  # as many headers, and a parameter
    assert taken(routes, "/q?q=1&q=2") == "query"
    assert taken(routes, "/q?q=2") is None


def test_host_and_upgrade_are_matched_like_headers() -> None:
    routes = [
        route(
            rule("host", RouteMatch(headers=(ValueMatch("Host", "shop"),))),
            rule("socket", RouteMatch("/ws", headers=(ValueMatch("upgrade", "websocket"),))),
        )
    ]
    router = Router(routes)

    assert taken(routes, "/") == "host"
    assert router.match(Request(b"GET", b"other", b"/")) is None
    matched = router.match(Request(b"GET", b"other", b"/ws", upgrade=b"websocket"))
    assert matched is not None
    assert matched.rule.name == "socket"


def test_the_path_element_is_matched_as_a_whole_and_with_its_case() -> None:
    routes = [route(rule("abc", RouteMatch("/abc")), rule("exact", RouteMatch("/x", Compare.EXACT)))]

    assert [taken(routes, path) for path in ("/abc", "/abc/", "/abc/def", "/abcd", "/Abc")] == [
        "abc",
        "abc",
        "abc",
        None,
        None,
    ]
    assert [taken(routes, path) for path in ("/x", "/x?q", "/x/", "/X", "/xy")] == ["exact", "exact", None, None, None]


def test_a_method_comes_before_headers_and_headers_before_parameters() -> None:
    routes = [
        route(
            rule("query", RouteMatch(query=(ValueMatch("a", "1"), ValueMatch("b", "1")))),
            rule("header", RouteMatch(headers=(ValueMatch("x", "1"),))),
            rule("method", RouteMatch(method="PUT")),
        )
    ]

    assert taken(routes, "/?a=1&b=1", (b"x", b"1"), method=b"PUT") == "method"
    assert taken(routes, "/?a=1&b=1", (b"x", b"1")) == "header"
    assert taken(routes, "/?a=1&b=1") == "query"
