"""Signatures of requests' tokens: workers ask, since the library for it is too large to have in each of them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from mesh import jwks
from mesh.jwt import ALGORITHMS
from mesh.model import RequestAuth

_log = logging.getLogger(__name__)
_MIN_RSA, _MAX_RSA = 2048, 8192
"""Bits. The larger ones take too long for what anybody may ask."""
_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}


class _Key:
    def __init__(self, stated: Mapping[str, str]) -> None:
        """Raises `jwt.PyJWTError` or `ValueError` for what is no public key."""
        self.id, self.algorithm = stated.get("kid", ""), stated.get("alg", "")
        self._families = _FAMILIES[stated["kty"]]
        self.key: Any = jwt.PyJWK({k: v for k, v in stated.items() if k != "alg"}).key
        if isinstance(self.key, RSAPublicKey) and not _MIN_RSA <= self.key.key_size <= _MAX_RSA:
            raise ValueError(f"an RSA key of {self.key.key_size} bits: {_MIN_RSA} to {_MAX_RSA} are taken")
        if isinstance(self.key, EllipticCurvePublicKey) and stated["crv"] == "secp256k1":
            raise ValueError("the curve secp256k1 is not taken")

    def fits(self, algorithm: str, key_id: str) -> bool:
        """Whether it may have signed a token that says so."""
        return (
            algorithm.startswith(self._families)
            and (not self.algorithm or self.algorithm == algorithm)
            and (not key_id or not self.id or self.id == key_id)
        )


class TokenKeys:
    """The key sets of the policies in force, by name."""

    def __init__(self) -> None:
        self._sets: dict[str, tuple[_Key, ...]] = {}
        self._jws = jwt.PyJWS(algorithms=sorted(ALGORITHMS))

    def adopt(self, auths: Iterable[RequestAuth]) -> None:
        """Have the keys of these, and no others."""
        before = self._sets
        texts = {rule.jwks for auth in auths for rule in auth.rules if rule.jwks}
        named = {jwks.name(text): text for text in texts}
        self._sets = {name: before.get(name) or _keys(text) for name, text in named.items()}

    def check(self, token: bytes, key_set: str) -> str:
        """Why none of that set's keys has signed the token, or `""` if one has."""
        if (keys := self._sets.get(key_set)) is None:
            return "the keys have just changed"
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return "Jwt verification fails"
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if algorithm not in ALGORITHMS:
            return "Jwt header [alg] is not supported"
        fitting = [key for key in keys if key.fits(algorithm, key_id)]
        for key in fitting:
            try:
                self._jws.decode(token, key.key, algorithms=[algorithm])
            except jwt.PyJWTError:
                continue
            return ""
        return "Jwt verification fails" if fitting else "Jwks doesn't have key to match kid or alg from Jwt"


def _keys(text: str) -> tuple[_Key, ...]:
    made = []
    for stated in json.loads(text)["keys"]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made.append(_Key(stated))
        except (jwt.PyJWTError, ValueError) as error:
            _log.warning("a token issuer's key is left out", extra={"kid": stated.get("kid", ""), "error": str(error)})
    return tuple(made)
