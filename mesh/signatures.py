"""Signatures of JSON Web Tokens, checked with the keys of an issuer.

Whoever imports this has the library for it in memory, 5 MB with what it needs: workers ask their control process.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from mesh.jwt import ALGORITHMS

_MIN_RSA, _MAX_RSA = 2048, 8192
"""Bits. The larger ones take too long for what anybody may ask."""
_LARGEST_EXPONENT = 2**32
"""With one of 64 bits, a signature takes thrice as long; nearly all are 65,537."""
_MOST_TRIED = 8
"""Keys, for a token that does not name its own: 32 large ones would take 40 ms of a whole node's time."""
_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}
_JWS = jwt.PyJWS(algorithms=sorted(ALGORITHMS))


class _Key:
    def __init__(self, stated: Mapping[str, str]) -> None:
        """Raises `jwt.PyJWTError` or `ValueError` for what is no public key."""
        self.id, self.algorithm = stated.get("kid", ""), stated.get("alg", "")
        self._families = _FAMILIES[stated["kty"]]
        self.key: Any = jwt.PyJWK({k: v for k, v in stated.items() if k != "alg"}).key
        if isinstance(self.key, RSAPublicKey) and not _MIN_RSA <= self.key.key_size <= _MAX_RSA:
            raise ValueError(f"an RSA key of {self.key.key_size} bits: {_MIN_RSA} to {_MAX_RSA} are taken")
        if isinstance(self.key, RSAPublicKey) and self.key.public_numbers().e > _LARGEST_EXPONENT:
            raise ValueError(f"an RSA key with an exponent above {_LARGEST_EXPONENT}")
        if isinstance(self.key, EllipticCurvePublicKey) and stated["crv"] == "secp256k1":
            raise ValueError("the curve secp256k1 is not taken")

    def fits(self, algorithm: str, key_id: str) -> bool:
        """Whether it may have signed a token that says so."""
        return (
            algorithm.startswith(self._families)
            and (not self.algorithm or self.algorithm == algorithm)
            and (not key_id or not self.id or self.id == key_id)
        )


class KeySet:
    """The keys of a set that can be used."""

    def __init__(self, text: str) -> None:
        """Of what `mesh.jwks.write` wrote."""
        keys, left_out = [], []
        for stated in json.loads(text)["keys"]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    keys.append(_Key(stated))
            except (jwt.PyJWTError, ValueError) as error:
                left_out.append((stated.get("kid", ""), str(error)))
        self._keys = tuple(keys)
        self.left_out: tuple[tuple[str, str], ...] = tuple(left_out)
        """Id of each key that cannot be used, and why."""

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, token: bytes) -> str:
        """Why none of these keys has signed the token, or `""` if one has."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return "Jwt verification fails"
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if algorithm not in ALGORITHMS:
            return "Jwt header [alg] is not supported"
        fitting = [key for key in self._keys if key.fits(algorithm, key_id)]
        for key in fitting[:_MOST_TRIED]:
            try:
                _JWS.decode(token, key.key, algorithms=[algorithm])
            except jwt.PyJWTError:
                continue
            return ""
        if len(fitting) > _MOST_TRIED:
            return f"Jwt verification fails with the first {_MOST_TRIED} of the keys that fit it"
        return "Jwt verification fails" if fitting else "Jwks doesn't have key to match kid or alg from Jwt"
