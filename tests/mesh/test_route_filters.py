"""What a rule does to a request and its answer, beside the cases of Gateway API's conformance tests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.message import Headers, Request
from mesh.route import (
    choose_backend,
    compile_headers,
    compile_match,
    edit_headers,
    limits,
    mirrors,
    redirect_response,
    refused_edits,
    rewrite_request,
)
from mesh.traffic import (
    Backend,
    Compare,
    HeaderEdit,
    Mirror,
    PathEdit,
    Redirect,
    Retry,
    RetryPolicy,
    Rewrite,
    RouteMatch,
    RouteRule,
    TrafficPolicy,
    ValueMatch,
)

# -- RequestHeaderModifier, ResponseHeaderModifier ---------------------------------------------------------------------

SET = HeaderEdit(set=(("X-Header-Set", "set-overwrites-values"),))
ADD = HeaderEdit(add=(("X-Header-Add", "add-appends-values"),))
REMOVE = HeaderEdit(remove=("X-Header-Remove",))
MULTIPLE = HeaderEdit(
    set=(("X-Header-Set-1", "header-set-1"), ("X-Header-Set-2", "header-set-2")),
    add=(("X-Header-Add-1", "header-add-1"), ("X-Header-Add-2", "header-add-2"), ("X-Header-Add-3", "header-add-3")),
    remove=("X-Header-Remove-1", "X-Header-Remove-2"),
)


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [  # the conformance tests HTTPRouteRequestHeaderModifier and HTTPRouteResponseHeaderModifier
        (SET, {"some-other-header": "val"}, {"some-other-header": "val", "x-header-set": "set-overwrites-values"}),
        (SET, {"x-header-set": "some-other-value"}, {"x-header-set": "set-overwrites-values"}),
        (ADD, {"some-other-header": "val"}, {"some-other-header": "val", "x-header-add": "add-appends-values"}),
        (ADD, {"x-header-add": "some-other-value"}, {"x-header-add": "some-other-value,add-appends-values"}),
        (REMOVE, {"x-header-remove": "val"}, {}),
        (REMOVE, {}, {}),
        (
            MULTIPLE,
            {
                "x-header-set-2": "set-val-2",
                "x-header-add-2": "add-val-2",
                "x-header-remove-2": "remove-val-2",
                "another-header": "another-header-val",
            },
            {
                "x-header-set-1": "header-set-1",
                "x-header-set-2": "header-set-2",
                "x-header-add-1": "header-add-1",
                "x-header-add-2": "add-val-2,header-add-2",
                "x-header-add-3": "header-add-3",
                "another-header": "another-header-val",
            },
        ),
    ],
)
def test_headers_are_removed_set_and_added(edit: HeaderEdit, before: dict[str, str], after: dict[str, str]) -> None:
    headers = [(name.encode(), value.encode()) for name, value in before.items()]

    edit_headers(headers, edit)

    assert sorted(headers) == sorted((name.encode(), value.encode()) for name, value in after.items())


def test_set_replaces_every_line_and_add_joins_the_last() -> None:
    headers: Headers = [(b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", b"2"), (b"cookie", b"x=1")]

    edit_headers(headers, HeaderEdit(set=(("a", "3"),), add=(("b", "3"), ("cookie", "y=2"))))

    assert headers == [(b"b", b"1"), (b"b", b"2,3"), (b"cookie", b"x=1; y=2"), (b"a", b"3")]


def test_a_cookie_that_is_added_has_a_line_of_its_own() -> None:
    headers: Headers = [(b"set-cookie", b"a=1; expires=Thu, 01 Jan 2026 00:00:00 GMT")]

    edit_headers(headers, HeaderEdit(add=(("set-cookie", "b=2"),)))

    assert headers[1:] == [(b"set-cookie", b"b=2")]


def test_of_several_edits_for_one_name_the_first_counts() -> None:
    headers: Headers = []

    edit_headers(headers, HeaderEdit(set=(("A", "1"), ("a", "2")), add=(("a", "3"), ("b", "1"), ("B", "2"))))

    assert headers == [(b"a", b"1"), (b"b", b"1")]


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Transfer-Encoding", "connection", "te", "upgrade", "trailer", ":path", "a b", ""],
)
def test_what_frames_a_message_is_left_alone_and_refused(name: str) -> None:
    headers: Headers = [(b"content-length", b"3"), (b"x", b"y")]
    edit = HeaderEdit(set=((name, "7"),), add=((name, "7"),), remove=(name,))

    edit_headers(headers, edit)

    assert headers == [(b"content-length", b"3"), (b"x", b"y")]
    assert set(refused_edits(edit)) == {name}
    assert refused_edits(MULTIPLE) == ()


def test_a_value_that_would_end_its_line_is_refused() -> None:
    edit = HeaderEdit(set=(("x", "1\r\ny: 2"),))
    headers: Headers = [(b"x", b"0")]

    edit_headers(headers, edit)

    assert headers == [(b"x", b"0")]
    assert refused_edits(edit) == ("x",)


# -- URLRewrite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "prefix", "replacement", "modified"),
    [  # the table of HTTPPathModifier.replacePrefixMatch
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        # and HTTPRouteRewritePath
        ("/prefix/one/two", "/prefix/one", "/one", "/one/two"),
        ("/strip-prefix/three", "/strip-prefix", "/", "/three"),
        ("/strip-prefix", "/strip-prefix", "/", "/"),
        ("/any", "/", "/all", "/all/any"),
        ("/", "/", "/all", "/all/"),
    ],
)
def test_a_prefix_is_replaced_by_whole_elements_and_the_query_kept(
    path: str, prefix: str, replacement: str, modified: str
) -> None:
    for query in ("", "?a=/foo&b"):
        request = Request(b"GET", b"shop", (path + query).encode())

        rewrite_request(request, Rewrite("", PathEdit.PREFIX, replacement), RouteMatch(prefix))

        assert request.path.decode() == modified + query
        assert request.authority == b"shop"


def test_the_full_path_and_the_authority_are_replaced() -> None:
    request = Request(b"GET", b"rewrite.example:80", b"/full/one/two?q=1")

    rewrite_request(request, Rewrite("one.example.org", PathEdit.FULL, "/one"), RouteMatch("/full/one"))

    assert (request.authority, request.path) == (b"one.example.org", b"/one?q=1")


def test_only_what_is_stated_is_rewritten() -> None:
    request = Request(b"GET", b"a", b"/x?y")

    rewrite_request(request, Rewrite(hostname="b"), RouteMatch("/x"))
    assert (request.authority, request.path) == (b"b", b"/x?y")
    rewrite_request(request, Rewrite(path_edit=PathEdit.PREFIX, path="/z"), RouteMatch("/x", Compare.EXACT))
    assert (request.authority, request.path) == (b"b", b"/x?y")  # validation refuses it: there is no prefix


def test_a_target_without_a_path_stays() -> None:
    request = Request(b"OPTIONS", b"a", b"*")

    rewrite_request(request, Rewrite(path_edit=PathEdit.FULL, path="/z"), RouteMatch())

    assert request.path == b"*"


# -- RequestRedirect ---------------------------------------------------------------------------------------------------


def located(
    redirect: Redirect, path: str, match: str = "/", *, scheme: bytes = b"http", port: int = 80, host: bytes = b"echo"
) -> str:
    response = redirect_response(Request(b"GET", host, path.encode()), redirect, scheme, port, RouteMatch(match))
    assert response.status == redirect.status
    assert response.header(b"content-length") == b"0"
    location = response.header(b"location")
    assert location is not None
    return location.decode()


@pytest.mark.parametrize(
    ("redirect", "scheme", "port", "location"),
    [  # the conformance test HTTPRouteRedirectPortAndScheme
        (Redirect(), b"http", 80, "http://example.org/p"),
        (Redirect(port=80), b"http", 80, "http://example.org/p"),
        (Redirect(port=8080), b"http", 80, "http://example.org:8080/p"),
        (Redirect(scheme="https"), b"http", 80, "https://example.org/p"),
        (Redirect(scheme="https", port=443), b"http", 80, "https://example.org/p"),
        (Redirect(scheme="https", port=8443), b"http", 80, "https://example.org:8443/p"),
        (Redirect(), b"http", 8080, "http://example.org:8080/p"),
        (Redirect(port=80), b"http", 8080, "http://example.org/p"),
        (Redirect(scheme="https"), b"http", 8080, "https://example.org/p"),
        (Redirect(), b"https", 443, "https://example.org/p"),
        (Redirect(port=8443), b"https", 443, "https://example.org:8443/p"),
        (Redirect(scheme="http"), b"https", 443, "http://example.org/p"),
        (Redirect(scheme="http", port=80), b"https", 443, "http://example.org/p"),
        (Redirect(scheme="http", port=8080), b"https", 443, "http://example.org:8080/p"),
        (Redirect(port=443), b"http", 80, "http://example.org:443/p"),
    ],
)
def test_a_redirect_has_its_schemes_port_and_leaves_out_the_well_known(
    redirect: Redirect, scheme: bytes, port: int, location: str
) -> None:
    assert located(redirect, "/p", scheme=scheme, port=port, host=b"example.org") == location


PREFIX: dict[str, Any] = {"path_edit": PathEdit.PREFIX, "path": "/replacement-prefix"}


@pytest.mark.parametrize(
    ("path", "prefix", "redirect", "location"),
    [  # the conformance tests HTTPRouteRedirectPath and HTTPRouteRedirectHostAndStatus, as a mesh's
        ("/original-prefix/lemon", "/original-prefix", Redirect(**PREFIX), "echo/replacement-prefix/lemon"),
        ("/full/path/original", "/full", Redirect(path_edit=PathEdit.FULL, path="/replaced"), "echo/replaced"),
        ("/path-and-host", "/path-and-host", Redirect(hostname="a.org", **PREFIX), "a.org/replacement-prefix"),
        ("/path-and-status", "/path-and-status", Redirect(status=301, **PREFIX), "echo/replacement-prefix"),
        ("/hostname-redirect", "/hostname-redirect", Redirect(hostname="a.org"), "a.org/hostname-redirect"),
        ("/host-and-status?q=1", "/", Redirect(hostname="a.org", status=308), "a.org/host-and-status?q=1"),
    ],
)
def test_a_redirect_changes_what_it_states(path: str, prefix: str, redirect: Redirect, location: str) -> None:
    assert located(redirect, path, prefix) == "http://" + location


def test_the_port_of_the_authority_gives_way_to_the_services() -> None:
    assert located(Redirect(), "/", host=b"echo:8080", port=9090) == "http://echo:9090/"
    assert located(Redirect(), "/", host=b"[fd00::1]:8080") == "http://[fd00::1]/"
    assert located(Redirect(scheme="https"), "/", host=b"[fd00::1]", port=8080) == "https://[fd00::1]/"


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example/x"])
def test_without_an_authority_no_path_becomes_another_host(path: str) -> None:
    assert located(Redirect(), path, host=b"") == "/evil.example/x"
    assert located(Redirect(), path) == "http://echo" + path


# -- backends and mirrors ----------------------------------------------------------------------------------------------


def rule(*weights: int, invalid: tuple[int, ...] = ()) -> RouteRule:
    return RouteRule(
        backends=tuple(
            Backend(f"shop/v{i}", 80, weight, invalid="BackendNotFound" if i in invalid else "")
            for i, weight in enumerate(weights)
        )
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_each_backend_has_its_weights_share_of_the_rolls(weights: list[int]) -> None:
    total, of = sum(weights), rule(*weights)

    chosen = [choose_backend(of, (step + 0.5) / total) for step in range(total)]

    assert [chosen.count(backend) for backend in of.backends] == weights


@settings(deadline=None)
@given(st.lists(st.integers(0, 1_000_000), max_size=16), st.floats(0, 1, exclude_max=True))
def test_no_backend_without_a_weight_is_chosen(weights: list[int], roll: float) -> None:
    chosen = choose_backend(rule(*weights), roll)

    assert (chosen is None) == (sum(weights) == 0)
    assert chosen is None or chosen.weight > 0


def test_an_invalid_backend_keeps_its_share() -> None:
    chosen = [choose_backend(rule(1, 1, invalid=(1,)), roll / 10) for roll in range(10)]

    assert [backend.invalid if backend else None for backend in chosen] == [""] * 5 + ["BackendNotFound"] * 5


def test_a_rule_without_backends_has_none() -> None:
    """The conformance test HTTPRouteOmittedBackendRefs: 500."""
    assert choose_backend(RouteRule(), 0.5) is None


def test_each_mirror_gets_its_share() -> None:
    """The conformance test HTTPRouteRequestPercentageMirror."""
    some, all_, none = (Mirror(Backend(f"shop/{share}", 80), share) for share in (2_000, 10_000, 0))
    of = RouteRule(mirrors=(some, all_, none))

    sent = [mirrors(of, step / 100) for step in range(100)]

    assert [sum(mirror in one for one in sent) for mirror in (some, all_, none)] == [20, 100, 0]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_rules_word_comes_before_its_services() -> None:
    policy = TrafficPolicy("p", "shop", "shop/a", timeout=9.0, retries=RetryPolicy(attempts=5, per_try_timeout=2.0))

    said = limits(RouteRule(timeout=3.0, backend_timeout=1.0, retry=Retry(1, (500,), 0.1)), policy)
    assert (said.timeout, said.try_timeout) == (3.0, 1.0)
    assert said.retries is not None
    assert (said.retries.attempts, said.retries.codes, said.retries.backoff) == (1, (500,), 0.1)

    unsaid = limits(RouteRule(), policy)
    assert (unsaid.timeout, unsaid.try_timeout, unsaid.retries) == (9.0, 2.0, policy.retries)
    assert limits(None, policy) == unsaid


def test_a_rule_may_say_that_there_is_no_limit_whatever_its_service_says() -> None:
    policy = TrafficPolicy("p", "shop", "shop/a", timeout=9.0, retries=RetryPolicy(per_try_timeout=2.0))
    none = limits(RouteRule(timeout=-1.0, backend_timeout=-1.0), policy)
    assert (none.timeout, none.try_timeout) == (0.0, 0.0)


def test_a_try_takes_no_longer_than_the_whole() -> None:
    policy = TrafficPolicy("p", "shop", "shop/a", retries=RetryPolicy(per_try_timeout=2.0))

    assert limits(RouteRule(timeout=0.5), policy).try_timeout == 0.5


def test_without_a_word_there_are_no_limits_and_no_retries() -> None:
    nothing = limits(None, None)

    assert (nothing.timeout, nothing.try_timeout, nothing.retries) == (0.0, 0.0, None)


# -- matches outside routes --------------------------------------------------------------------------------------------


def test_a_match_alone_is_a_test_of_requests() -> None:
    matches = compile_match(RouteMatch("/a", method="GET", headers=(ValueMatch("x", "1"),)))

    assert matches(Request(b"GET", b"h", b"/a/b?c", [(b"x", b"1")]))
    assert not matches(Request(b"GET", b"h", b"/ab", [(b"x", b"1")]))
    assert not matches(Request(b"GET", b"h", b"/a", []))
    assert not matches(Request(b"PUT", b"h", b"/a", [(b"x", b"1")]))
    assert compile_match(RouteMatch())(Request(b"PUT", b"h", b"/any"))
    assert compile_match(RouteMatch("/a", Compare.EXACT))(Request(b"PUT", b"h", b"/a?b"))
    assert not compile_match(RouteMatch("/a", Compare.EXACT))(Request(b"PUT", b"h", b"/a/"))
    assert compile_match(RouteMatch("/a|/b", Compare.REGEX))(Request(b"PUT", b"h", b"/b"))


def test_header_clauses_alone_are_a_test_of_requests() -> None:
    request = Request(b"GET", b"h", b"/", [(b"x", b"1")])

    assert compile_headers(())(request)
    assert compile_headers((ValueMatch("x", "1"),))(request)
    assert not compile_headers((ValueMatch("x", "1"), ValueMatch("y", ".*", Compare.REGEX)))(request)
