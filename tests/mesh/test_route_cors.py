"""CORS filters, beside Gateway API's conformance test HTTPRouteCORS, the matrix of GEP-1767, and hostile origins."""

from __future__ import annotations

import pytest

from mesh.message import Request, Response
from mesh.route import cors_headers, preflight_response, set_cors
from mesh.traffic import Cors

LISTED = Cors(
    allow_origins=("https://www.foo.com", "https://*.bar.com"),
    allow_methods=("GET", "OPTIONS"),
    allow_headers=("x-header-1", "x-header-2"),
    expose_headers=("x-header-3", "x-header-4"),
    allow_credentials=True,
    max_age=3600,
)
ANY_METHOD = Cors(allow_origins=("https://www.foo.com",), allow_methods=("*",))
ANY_ORIGIN = Cors(allow_origins=("*",), allow_methods=("PUT",))
ANYTHING = Cors(allow_origins=("*",), allow_methods=("*",), allow_headers=("*",), expose_headers=("*",))
ANYTHING_TRUSTED = Cors(("*",), ("*",), ("*",), ("*",), allow_credentials=True)


def preflight(cors: Cors, origin: str, method: str = "GET", headers: str = "") -> dict[str, str]:
    request = Request(b"OPTIONS", b"h", b"/", [(b"origin", origin.encode())])
    request.headers.append((b"access-control-request-method", method.encode()))
    if headers:
        request.headers.append((b"access-control-request-headers", headers.encode()))
    response = preflight_response(request, cors)
    assert response is not None
    assert response.status == 204
    return told(response)


def answer(cors: Cors, origin: str | None, *fields: tuple[bytes, bytes]) -> dict[str, str]:
    headers = [] if origin is None else [(b"origin", origin.encode())]
    response = Response(200, [(b"access-control-allow-origin", b"https://backend.says"), (b"x", b"y")])
    set_cors(response, cors_headers(Request(b"GET", b"h", b"/", [*headers, *fields]), cors))
    assert response.header(b"x") == b"y"
    return told(response)


def told(response: Response) -> dict[str, str]:
    found = {name.decode(): value.decode() for name, value in response.headers if name != b"x"}
    assert len(found) == len([name for name, _ in response.headers if name != b"x"])
    return {name.removeprefix("access-control-"): value for name, value in found.items()}


@pytest.mark.parametrize("origin", ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"])
def test_a_preflight_of_an_allowed_origin_is_answered_in_full(origin: str) -> None:
    assert preflight(LISTED, origin, headers="x-header-1, x-header-2") == {
        "allow-origin": origin,
        "allow-methods": "GET, OPTIONS",
        "allow-headers": "x-header-1, x-header-2",
        "expose-headers": "x-header-3, x-header-4",
        "max-age": "3600",
        "allow-credentials": "true",
        "vary": "Origin",
    }


@pytest.mark.parametrize(
    "origin",
    [
        "https://foobar.com",
        "http://www.foo.com",
        "https://www.foo.com:8443",
        "https://www.foo.com.evil.example",
        "https://bar.com",
        "https://.bar.com",
        "https://evil.example/.bar.com",
        "https://evil.example:1.bar.com",
        "https://evil.example#.bar.com",
        "https://evil@www.bar.com",
        "https://www.bar.com:8443",
        "null",
        "",
        "*",
    ],
)
def test_another_origin_is_told_nothing(origin: str) -> None:
    assert preflight(LISTED, origin) == {"vary": "Origin"}
    assert answer(LISTED, origin) == {"vary": "Origin"}


@pytest.mark.parametrize("origin", ["https://www.foo.com:443", "HTTPS://WWW.FOO.COM"])
def test_an_origin_is_the_same_with_its_schemes_port_and_in_any_case(origin: str) -> None:
    assert preflight(LISTED, origin)["allow-origin"] == origin
    assert preflight(Cors(allow_origins=("https://www.foo.com:443",)), "https://www.foo.com")


def test_a_wildcard_may_have_a_port_or_stand_for_every_host_of_a_scheme() -> None:
    cors = Cors(allow_origins=("https://*.a.org:8443", "http://*"))

    assert "allow-origin" in preflight(cors, "https://x.a.org:8443")
    assert "allow-origin" not in preflight(cors, "https://x.a.org")
    assert "allow-origin" in preflight(cors, "http://anything.example")
    assert "allow-origin" not in preflight(cors, "http://anything.example:8080")


@pytest.mark.parametrize("origin", ["https://www.foo.com", "https://www.bar.com"])
def test_an_answer_to_an_allowed_origin_says_so_in_place_of_what_the_backend_said(origin: str) -> None:
    assert answer(LISTED, origin) == {
        "allow-origin": origin,
        "allow-credentials": "true",
        "expose-headers": "x-header-3, x-header-4",
        "vary": "Origin",
    }


def test_any_method_is_answered_with_the_one_asked_for() -> None:
    said = preflight(ANY_METHOD, "https://www.foo.com", "POST")

    assert (said["allow-origin"], said["allow-methods"]) == ("https://www.foo.com", "POST")
    assert "allow-credentials" not in said
    assert "allow-headers" not in said
    assert said["max-age"] == "5"


@pytest.mark.parametrize("origin", ["https://foobar.com", "https://foobar.com:12345"])
def test_any_origin_without_credentials_is_a_star(origin: str) -> None:
    assert preflight(ANY_ORIGIN, origin, "PUT") == {"allow-origin": "*", "allow-methods": "PUT", "max-age": "5"}
    assert answer(ANY_ORIGIN, origin) == {"allow-origin": "*"}


def test_with_credentials_no_star_is_ever_told() -> None:
    origin = "https://other.foo.com"
    preflighted = preflight(ANYTHING_TRUSTED, origin, "PUT", "x-header-1, x-header-2")
    answered = answer(ANYTHING_TRUSTED, origin)

    assert preflighted["allow-origin"] == answered["allow-origin"] == origin
    assert preflighted["allow-methods"] == "PUT"
    assert preflighted["allow-headers"] == "x-header-1, x-header-2"
    assert answered["allow-credentials"] == "true"
    assert "*" not in {*preflighted.values(), *answered.values()}


@pytest.mark.parametrize("field", [b"cookie", b"authorization"])
def test_a_request_with_credentials_is_told_nothing_where_they_are_not_allowed(field: bytes) -> None:
    assert answer(ANYTHING, "https://a.org", (field, b"x")) == {}
    assert answer(ANYTHING, "https://a.org")["expose-headers"] == "*"


def test_what_is_of_no_other_origin_is_told_nothing_but_to_keep_answers_apart() -> None:
    assert answer(LISTED, None) == {"vary": "Origin"}


@pytest.mark.parametrize("missing", [b"origin", b"access-control-request-method"])
def test_other_requests_are_no_preflights(missing: bytes) -> None:
    fields = [(b"origin", b"https://www.foo.com"), (b"access-control-request-method", b"GET")]

    assert preflight_response(Request(b"GET", b"h", b"/", fields), LISTED) is None
    fields = [field for field in fields if field[0] != missing]
    assert preflight_response(Request(b"OPTIONS", b"h", b"/", fields), LISTED) is None
