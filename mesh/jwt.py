"""JSON Web Tokens (RFC 7515, 7519): what one says, and whether it may. Who has a library for it checks signatures.

Reasons for refusing one are worded as Envoy's `jwt_authn` filter has them
(https://github.com/envoyproxy/envoy/blob/main/source/common/jwt/status.cc), since that is what people search for.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)  # fmt: skip
"""Asymmetric only: with a shared key whoever can check a token can make one."""
MAX_TOKEN = 16_384
"""Longest token that is looked at, bytes."""
SKEW_SECONDS = 60
"""How far clocks may differ, as in Envoy."""
UNKNOWN_ISSUER = "Jwt issuer is not configured"
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]*\Z")
_LISTS = ("scope", "permission")
"""Claims in which blanks separate values, as Istio has it."""


class BadToken(Exception):
    """A token that is not to be believed."""

    def __init__(self, reason: str, status: int = 401, detail: str = "") -> None:
        """`detail` is for our log only: who sent the token is not told."""
        super().__init__(reason)
        self.reason, self.status, self.detail = reason, status, detail


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. Nothing of it is proven before its signature is."""

    algorithm: str
    key_id: str
    """`""` if it names no key."""
    claims: Mapping[str, Any]
    facts: Mapping[str, Any]
    """The claims as policies see them."""
    issuer: str
    audiences: tuple[str, ...]
    not_before: float
    """Unix seconds; 0 if it does not say."""
    expires: float
    """Unix seconds; 0 if never."""

    def check(self, issuer: str, audiences: Iterable[str], now: float) -> None:
        """Raise `BadToken` unless it is of this issuer, for one of these audiences (any, if empty), and in force."""
        if self.issuer != issuer:
            raise BadToken(UNKNOWN_ISSUER)
        if now + SKEW_SECONDS < self.not_before:
            raise BadToken("Jwt not yet valid")
        if self.expires and now > self.expires + SKEW_SECONDS:
            raise BadToken("Jwt is expired")
        wanted = {_audience(one) for one in audiences}
        if wanted and wanted.isdisjoint(map(_audience, self.audiences)):
            raise BadToken("Audiences in Jwt are not allowed", 403)


def read(token: bytes) -> Token:
    """Take a token apart. Raises `BadToken`."""
    parts = token.split(b".")
    if len(parts) != 3 or len(token) > MAX_TOKEN:
        raise BadToken("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")
    header, claims = _object(parts[0], "header"), _object(parts[1], "payload")
    if not parts[2] or _decoded(parts[2]) is None:
        raise BadToken("Jwt signature is an invalid Base64url encoded")
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str):
        raise BadToken("Jwt header [alg] field is required and must be a string")
    if algorithm not in ALGORITHMS:
        raise BadToken("Jwt header [alg] is not supported")
    if not isinstance(key_id, str):
        raise BadToken("Jwt header [kid] field is not a string")
    if "crit" in header:
        raise BadToken("Jwt header [crit] names what is not supported")
    for name in ("iss", "sub"):
        if not isinstance(claims.get(name, ""), str):
            raise BadToken(f"Jwt payload [{name}] field is not a string")
    _seconds(claims, "iat")
    lists = {name: claims[name].split() for name in _LISTS if isinstance(claims.get(name), str)}
    return Token(
        algorithm,
        key_id,
        claims,
        {**claims, **lists} if lists else claims,
        claims.get("iss", ""),
        _audiences(claims),
        _seconds(claims, "nbf"),
        _seconds(claims, "exp"),
    )


def payload(token: bytes) -> bytes:
    """The claims as they stand in a token that `read` took: base64url."""
    return token.split(b".")[1]


def _audiences(claims: Mapping[str, Any]) -> tuple[str, ...]:
    stated = claims.get("aud", ())
    stated = (stated,) if isinstance(stated, str) else stated
    if not isinstance(stated, list | tuple) or not all(isinstance(one, str) for one in stated):
        raise BadToken("Jwt payload [aud] field is not a string or string list")
    return tuple(stated)


def _audience(text: str) -> str:
    """As Envoy compares them: without the scheme of a URL and the slash at its end."""
    return text.removeprefix("http://").removeprefix("https://").removesuffix("/")


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadToken(f"Jwt payload [{name}] field is not an integer")
    if not 0 <= value < 2**63 or (name == "exp" and name in claims and value == 0):
        raise BadToken(f"Jwt payload [{name}] field is not a positive integer")
    return float(value)


def _decoded(part: bytes) -> bytes | None:
    if not _BASE64URL.match(part):  # the library would leave out what does not belong there
        return None
    try:
        return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except binascii.Error:
        return None


def _object(part: bytes, name: str) -> dict[str, Any]:
    decoded = _decoded(part)
    if not decoded:
        raise BadToken(f"Jwt {name} is an invalid Base64url encoded")
    try:
        value = json.loads(decoded.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadToken(f"Jwt {name} is an invalid JSON")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
