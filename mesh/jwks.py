"""JSON Web Key Sets (RFC 7517): the public keys of an issuer of tokens, whittled down to what checking one needs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MAX_BYTES = 131_072
"""Largest set that is read; with their certificates, ten keys are some 30 KiB."""
MAX_KEYS = 32
"""A token that names no key is checked with the first few that fit."""
_PARTS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_KEPT = ("kty", "kid", "alg")
_MAX_PART = 2048
"""Longest number, characters of base64url: a key of 12,288 bits."""


def read(text: str | bytes) -> tuple[dict[str, str], ...]:
    """The keys that tokens can be signed with. Raises `ValueError`, saying what is wrong with the set.

    Others (for encryption, of kinds not known here) are left out, as RFC 7517 section 5 has it; secrets are refused.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"the key set has {len(text)} bytes, at most {MAX_BYTES} are read")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the key set is not JSON") from error
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError("the key set has no list 'keys'")
    usable = [made for key in keys if (made := _key(key)) is not None]
    if not usable:
        raise ValueError("the key set has no public key of kind RSA, EC or OKP to check signatures with")
    if len(usable) > MAX_KEYS:
        raise ValueError(f"the key set has {len(usable)} keys, at most {MAX_KEYS} are used")
    return tuple(usable)


def write(keys: tuple[dict[str, str], ...]) -> str:
    """A set of these."""
    return json.dumps({"keys": keys}, separators=(",", ":"))


def name(text: str) -> str:
    """What a set is called among processes that have it."""
    return hashlib.sha256(text.encode()).hexdigest()


def _key(key: Any) -> dict[str, str] | None:
    if not isinstance(key, dict):
        raise ValueError("one of 'keys' is no object")
    kind = key.get("kty")
    if kind == "oct":
        raise ValueError("the key set holds a shared secret (kty oct): tokens must be signed with a private key")
    if "d" in key:
        raise ValueError("the key set holds a private key: it must hold the public ones only")
    operations = key.get("key_ops", ["verify"])
    if not isinstance(kind, str) or kind not in _PARTS or key.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    made: dict[str, str] = {part: key[part] for part in (*_KEPT, *_PARTS[kind]) if part in key}
    if not all(isinstance(value, str) and len(value) <= _MAX_PART for value in made.values()):
        return None
    return made if made.keys() >= set(_PARTS[kind]) else None
