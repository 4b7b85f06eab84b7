"""Signatures by every kind of key, and what is no signature."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from mesh import jwks
from mesh.model import JwtRule, RequestAuth
from noded.control.token_keys import TokenKeys

RSA, SMALL = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 1024)
P256, P384, P521 = (ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
ED = ed25519.Ed25519PrivateKey.generate()


def stated(key: Any, **more: str) -> dict[str, Any]:
    of: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else OKPAlgorithm
    of = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else of
    return {**json.loads(of.to_jwk(key.public_key())), **more}


def having(*keys: dict[str, Any]) -> tuple[TokenKeys, str]:
    text = jwks.write(jwks.read(json.dumps({"keys": keys})))
    made = TokenKeys()
    made.adopt([RequestAuth("a", "shop", (JwtRule("i", text), JwtRule("none", "")))])
    return made, jwks.name(text)


def signed(key: Any, algorithm: str, **header: str) -> bytes:
    return jwt.encode({"iss": "i"}, key, algorithm, header).encode()


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        *((RSA, f"{family}{bits}") for family in ("RS", "PS") for bits in (256, 384, 512)),
        (P256, "ES256"),
        (P384, "ES384"),
        (P521, "ES512"),
        (ED, "EdDSA"),
    ],
)
def test_a_signature_of_one_of_the_keys_is_one(key: Any, algorithm: str) -> None:
    keys, name = having(stated(P384, kid="other"), stated(key, kid="k"), stated(RSA))
    token = signed(key, algorithm, kid="k")
    assert keys.check(token, name) == ""
    assert keys.check(signed(key, algorithm), name) == ""
    head, payload, signature = token.split(b".")
    other = (b"B" if signature[:1] == b"A" else b"A") + signature[1:]
    for wrong in (other, signature[:-8], b"AAAA"):
        assert keys.check(b".".join([head, payload, wrong]), name) == "Jwt verification fails"
    assert keys.check(b".".join([head, b"e30", signature]), name) == "Jwt verification fails"


def test_the_token_names_the_key_and_the_key_its_algorithm() -> None:
    keys, name = having(stated(RSA, kid="a", alg="RS256"), stated(P256, kid="b"))
    missing = "Jwks doesn't have key to match kid or alg from Jwt"
    assert keys.check(signed(RSA, "RS256", kid="a"), name) == ""
    assert keys.check(signed(RSA, "RS256", kid="c"), name) == missing
    assert keys.check(signed(RSA, "RS256", kid="b"), name) == missing
    assert keys.check(signed(RSA, "RS512", kid="a"), name) == missing


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    keys, name = having(stated(RSA, kid="a"))
    for algorithm in ("HS256", "none"):
        token = signed("x" * 32 if algorithm != "none" else "", algorithm, kid="a")
        assert keys.check(token, name) == "Jwt header [alg] is not supported"


def test_keys_that_are_weak_or_broken_are_left_out() -> None:
    broken = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}
    keys, name = having(
        stated(SMALL, kid="a"), broken, {"kty": "OKP", "crv": "X25519", "x": "AA"}, stated(P256, kid="b")
    )
    assert keys.check(signed(SMALL, "RS256", kid="a"), name) != ""
    assert keys.check(signed(P256, "ES256", kid="b"), name) == ""


def test_keys_that_no_policy_has_any_more_are_gone() -> None:
    keys, name = having(stated(P256))
    keys.adopt([])
    assert keys.check(signed(P256, "ES256"), name) == "the keys have just changed"


def test_a_token_that_names_no_key_costs_no_more_than_eight() -> None:
    others = [stated(ec.generate_private_key(ec.SECP256R1()), kid=f"k{number}") for number in range(8)]
    keys, name = having(*others, stated(P256, kid="mine"))
    assert keys.check(signed(P256, "ES256"), name) == "Jwt verification fails with the first 8 of the keys that fit it"
    assert keys.check(signed(P256, "ES256", kid="mine"), name) == ""


def test_keys_with_which_a_signature_takes_long_are_left_out() -> None:
    slow = stated(RSA, kid="a", e="gAAAAAAAAAE")  # 2**63 + 1
    keys, name = having(slow, stated(RSA, kid="b"))
    assert keys.check(signed(RSA, "RS256", kid="a"), name) == "Jwks doesn't have key to match kid or alg from Jwt"
    assert keys.check(signed(RSA, "RS256", kid="b"), name) == ""
