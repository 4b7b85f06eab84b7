"""Signatures of requests' tokens: workers ask, since the library for it is too large to have in each of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mesh import jwks
from mesh.model import RequestAuth
from mesh.signatures import KeySet

_log = logging.getLogger(__name__)


class TokenKeys:
    """The key sets of the policies in force, by name."""

    def __init__(self) -> None:
        self._sets: dict[str, KeySet] = {}

    def adopt(self, auths: Iterable[RequestAuth]) -> None:
        """Have the keys of these, and no others."""
        before = self._sets
        texts = {rule.jwks for auth in auths for rule in auth.rules if rule.jwks}
        named = {jwks.name(text): text for text in texts}
        self._sets = {name: before[name] if name in before else _keys(text) for name, text in named.items()}

    def check(self, token: bytes, key_set: str) -> str:
        """Why none of that set's keys has signed the token, or `""` if one has."""
        if (keys := self._sets.get(key_set)) is None:
            return "the keys have just changed"
        return keys.check(token)


def _keys(text: str) -> KeySet:
    keys = KeySet(text)
    for key_id, problem in keys.left_out:
        _log.warning("a token issuer's key is left out", extra={"kid": key_id, "error": problem})
    return keys
