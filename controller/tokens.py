"""Making join tokens, and what a node that came in with one may enrol. The controller keeps only the secret's hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from controller.store import Token
from mesh.join_token import JoinToken
from mesh.names import is_subdomain

_PATTERN = re.compile(r"(\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)/(\*|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)\Z")
_MAX_PATTERNS = 1000
_MAX_TTL = 10 * 365 * 86400


class TokenError(ValueError):
    """A token cannot be made as asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The identities that a node may enrol: `namespace/service-account`, each part a name or `*`."""

    allow: tuple[str, ...]

    def allows(self, namespace: str, service_account: str) -> bool:
        """Whether a workload of this namespace and service account is within it."""
        wanted = {f"{n}/{s}" for n in (namespace, "*") for s in (service_account, "*")}
        return not wanted.isdisjoint(self.allow)

    def touches(self, namespace: str) -> bool:
        """Whether anything of this namespace is within it."""
        return any(pattern.partition("/")[0] in (namespace, "*") for pattern in self.allow)

    def __str__(self) -> str:
        return ", ".join(self.allow) or "nothing"


def mint(
    allow: list[str], node: str, ttl_seconds: float, uses: int, description: str, *, root_sha256: str, now: float
) -> tuple[str, Token]:
    """Make a token: what to give to the node, and what to store. `uses` is -1 for no limit. Raises `TokenError`."""
    if len(allow) > _MAX_PATTERNS:
        raise TokenError(f"'allow' names more than {_MAX_PATTERNS} identities: use wildcards, such as 'shop/*'")
    for pattern in allow:
        if not _PATTERN.match(pattern):
            raise TokenError(f"{pattern!r} is not of the form namespace/service-account, where either may be '*'")
    if node and not is_subdomain(node):
        raise TokenError(f"node {node!r} is not a lower-case DNS name")
    if not 0 < ttl_seconds <= _MAX_TTL:
        raise TokenError(f"'ttl_seconds' must be between 1 and {_MAX_TTL}")
    if uses != -1 and uses < 1:
        raise TokenError("'uses' must be at least 1; leave it out for no limit")
    identifier, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    stored = Token(identifier, hash_of(secret), tuple(allow), node, now, now + ttl_seconds, uses, description[:500])
    return JoinToken(identifier, root_sha256, secret).text, stored


def hash_of(presented: str) -> str:
    """The stored form of a secret; a whole token is taken for the secret in it."""
    secret = presented.rpartition(".")[2] if presented.startswith("nm1.") else presented
    return hashlib.sha256(secret.encode()).hexdigest()
