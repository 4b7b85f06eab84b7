"""What is taken for a token, and what it is taken to say."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import jwks, jwt
from mesh.jwt import BadToken
from mesh.message import Request
from mesh.model import JwtRule, RequestAuth
from mesh.request_auth import TokenRules, is_preflight

NOW = 1_800_000_000.0


def part(value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def token(claims: Any = None, header: Any = None, signature: bytes = b"c2ln") -> bytes:
    return b".".join([part({"alg": "RS256", "kid": "a"} if header is None else header), part(claims or {}), signature])


def test_a_token_says_what_is_in_it() -> None:
    said = {"iss": "i", "sub": "s", "aud": "a", "nbf": 1, "exp": 2.5, "scope": "read  write", "n": {"m": [1]}}
    read = jwt.read(token(said))
    assert (read.algorithm, read.key_id, read.issuer, read.audiences) == ("RS256", "a", "i", ("a",))
    assert (read.not_before, read.expires, read.claims) == (1, 2.5, said)
    assert read.facts == {**said, "scope": ["read", "write"]}
    assert jwt.payload(token(said)) == part(said)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "three|3 sections"),
        (b"a.b", "3 sections"),
        (token() + b".x", "3 sections"),
        (b"a" * 20_000 + b".b.c", "3 sections"),
        (b"!." + token().partition(b".")[2], "header is an invalid Base64url"),
        (b"a+b/." + token().partition(b".")[2], "header is an invalid Base64url"),
        (b"a." + token().partition(b".")[2], "header is an invalid Base64url"),
        (token(header=[]), "header is an invalid JSON"),
        (token(header=b'{"alg": NaN}'), "header is an invalid JSON"),
        (token(header={}), r"\[alg\] field is required"),
        (token(header={"alg": 1}), r"\[alg\] field is required"),
        (token(header={"alg": "none"}), "not supported"),
        (token(header={"alg": "None"}), "not supported"),
        (token(header={"alg": "HS256"}), "not supported"),
        (token(header={"alg": "ES256", "crit": ["b64"], "b64": False}), r"\[crit\]"),
        (token(header={"alg": "ES256", "kid": 7}), r"\[kid\] field is not a string"),
        (token(b"\xff\xfe"), "payload is an invalid JSON"),
        (token(b"[" * 3_000), "payload is an invalid JSON"),
        (token(b'{"exp":' + b"9" * 5_000 + b"}"), "payload is an invalid JSON"),
        (token(signature=b""), "signature is an invalid Base64url"),
        (token(signature=b"$"), "signature is an invalid Base64url"),
        (token({"iss": 1}), r"\[iss\] field is not a string"),
        (token({"sub": []}), r"\[sub\] field is not a string"),
        (token({"aud": [1]}), r"\[aud\] field is not a string or string list"),
        (token({"aud": {"a": 1}}), r"\[aud\] field"),
        (token({"exp": "soon"}), r"\[exp\] field is not an integer"),
        (token({"exp": True}), r"\[exp\] field is not an integer"),
        (token({"exp": -1}), r"\[exp\] field is not a positive integer"),
        (token({"exp": 0}), r"\[exp\] field is not a positive integer"),
        (token({"nbf": 1e300}), r"\[nbf\] field is not a positive integer"),
    ],
)
def test_what_is_no_token_says_why(text: bytes, reason: str) -> None:
    with pytest.raises(BadToken, match=reason):
        jwt.read(text)


@given(st.binary(max_size=200) | st.builds(lambda *parts: b".".join(parts), *[st.binary(max_size=60).map(part)] * 3))
def test_whatever_comes_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(BadToken):
        jwt.read(text)


@pytest.mark.parametrize(
    ("claims", "reason", "status"),
    [
        ({"iss": "other"}, "issuer is not configured", 401),
        ({}, "issuer is not configured", 401),
        ({"iss": "i", "exp": NOW - 61}, "expired", 401),
        ({"iss": "i", "nbf": NOW + 61}, "not yet valid", 401),
        ({"iss": "i"}, "Audiences", 403),
        ({"iss": "i", "aud": ["x"]}, "Audiences", 403),
        ({"iss": "i", "aud": ["x", "http://shop"], "exp": NOW - 59, "nbf": NOW + 59}, "", 0),
    ],
)
def test_a_token_is_for_its_issuer_its_audiences_and_its_time(claims: Any, reason: str, status: int) -> None:
    read = jwt.read(token(claims))
    if not reason:
        read.check("i", ("https://shop/",), NOW)
        return
    with pytest.raises(BadToken, match=reason) as raised:
        read.check("i", ("https://shop/",), NOW)
    assert raised.value.status == status


RSA = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no list 'keys'"),
        ({"keys": {}}, "no list 'keys'"),
        ({"keys": ["a"]}, "no object"),
        ({"keys": []}, "no public key"),
        ({"keys": [{"kty": ["RSA"]}, {"kty": "RSA", "n": 1, "e": "AQAB"}, {**RSA, "key_ops": 1}]}, "no public key"),
        ({"keys": [{**RSA, "use": "enc"}]}, "no public key"),
        ({"keys": [RSA, {"kty": "oct", "k": "c2VjcmV0"}]}, "shared secret"),
        ({"keys": [{**RSA, "d": "AQAB"}]}, "private key"),
        ({"keys": [RSA] * 33}, "33 keys"),
        ("x" * 200_000, "200000 bytes"),
    ],
)
def test_what_is_no_key_set_says_why(keys: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        jwks.read(keys if isinstance(keys, str) else json.dumps(keys))


def test_of_a_key_set_only_what_checking_needs_is_kept() -> None:
    more = {"x5c": ["…"], "x5t": "…", "use": "sig", "key_ops": ["verify"]}
    stated = [{**RSA, **more, "kid": "a", "alg": "RS256"}, {"kty": "EC", "crv": "P-256", "x": "AA"}, RSA]
    kept = jwks.read(json.dumps({"keys": stated}))
    assert kept == ({"kty": "RSA", "kid": "a", "alg": "RS256", "n": "AQAB", "e": "AQAB"}, RSA)
    assert jwks.read(jwks.write(kept)) == kept


def rules(*of: JwtRule, **selector: str) -> TokenRules | None:
    auth = RequestAuth("tokens", "shop", of, selector)
    return TokenRules.of((auth,), namespace="shop", labels={"app": "web"}, root_namespace="nodemesh-system")


def test_rules_have_one_order_however_they_came() -> None:
    places: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("b", "shop", {}),
        ("a", "shop", {"app": "web"}),
        ("a", "shop", {}),
        ("z", "nodemesh-system", {}),
    )
    auths = [
        RequestAuth(name, namespace, (JwtRule(f"{name}{n}", ""),), selector)
        for n, (name, namespace, selector) in enumerate(places)
    ]
    for n in range(len(auths)):
        given = auths[n:] + auths[:n]
        found = TokenRules.of(given, namespace="shop", labels={"app": "web"}, root_namespace="nodemesh-system")
        assert found is not None
        assert [rule.issuer for rule in found.rules] == ["z3", "a2", "a1", "b0"]


def test_rules_are_for_the_workloads_that_they_select() -> None:
    assert rules(JwtRule("i", "")) is not None
    assert rules(JwtRule("i", ""), app="web") is not None
    assert rules(JwtRule("i", ""), app="db") is None
    assert rules() is None


def test_tokens_are_looked_for_in_their_places_and_taken_out_of_them_alone() -> None:
    found = rules(JwtRule("i", ""))
    assert found is not None
    (rule,) = found.rules
    headers = [(b"authorization", b"Bearer x.y"), (b"authorization", b"Basic a"), (b"cookie", b"access_token=no")]
    request = Request(b"GET", b"web", b"/a?b&access_token=z%2Ew&access_token=", list(headers))
    assert rule.tokens(request) == [b"x.y", b"z.w", b""]
    rule.strip(request)
    assert (request.path, request.headers) == (b"/a?b", headers[1:])
    request = Request(b"GET", b"web", b"/a?access_token=z")
    rule.strip(request)
    assert request.path == b"/a"


def test_a_preflight_is_one_with_an_origin_and_a_method() -> None:
    both = [(b"origin", b"a"), (b"access-control-request-method", b"PUT")]
    assert is_preflight(Request(b"OPTIONS", b"web", b"/", both))
    assert not is_preflight(Request(b"GET", b"web", b"/", both))
    assert not is_preflight(Request(b"OPTIONS", b"web", b"/", both[:1]))
