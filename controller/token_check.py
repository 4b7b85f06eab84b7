"""What a workload would make of a request's token, as `noded.data.http.tokens` makes it of one that comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh import jwt
from mesh.message import Request
from mesh.model import RequestAuth
from mesh.request_auth import TokenRules, applying, is_preflight
from mesh.signatures import KeySet


@dataclass(frozen=True, slots=True)
class Tried:
    """One rule held against the token."""

    policy: str
    """`<namespace>/<name>` of the `RequestAuthentication`."""
    rule: int
    """Index in its `jwtRules`."""
    issuer: str
    audiences: tuple[str, ...]
    problem: str
    """Why the token is not valid by it, as its client is told; `""` if it is."""
    detail: str = ""
    """Beside it, what a client is not told."""
    status: int = 0
    """With which the request is answered if this is what is told."""


@dataclass(frozen=True, slots=True)
class Believed:
    """What comes of a token."""

    tried: tuple[Tried, ...]
    """In their order, up to the one by which it is valid. None: no token is looked for."""
    claims: Mapping[str, Any] | None
    """As policies see them; None if it is refused, or not looked for."""
    refusal: Tried | None
    """What the client is told if it is refused."""


def believe(
    auths: Iterable[RequestAuth],
    request: Request,
    token: bytes,
    now: float,
    *,
    namespace: str,
    labels: Mapping[str, str],
    root_namespace: str,
) -> Believed:
    """Hold a token against the rules for a workload, as if it stood where each of them looks.

    Edits the request as the workload's node would. `now`: Unix seconds.
    """
    where: dict[str, Any] = {"namespace": namespace, "labels": labels, "root_namespace": root_namespace}
    own = applying(auths, **where)
    rules = TokenRules.of(own, **where)
    if rules is None or is_preflight(request):
        return Believed((), None, None)
    rules.clean(request.headers)
    tried: list[Tried] = []
    stated = [(auth.key, index, rule) for auth in own for index, rule in enumerate(auth.rules)]
    for (policy, index, rule), prepared in zip(stated, rules.rules, strict=True):
        try:
            said = prepared.read(token, now)
            if wrong := KeySet(rule.jwks).check(token):
                raise jwt.BadToken(wrong)
        except jwt.BadToken as error:
            tried.append(Tried(policy, index, rule.issuer, rule.audiences, error.reason, error.detail, error.status))
            continue
        tried.append(Tried(policy, index, rule.issuer, rule.audiences, ""))
        prepared.accept(request, token, said.claims)
        return Believed(tuple(tried), said.facts, None)
    # That of a rule for another issuer is told only if there is nothing better to tell.
    told = [one for one in tried if one.problem != jwt.UNKNOWN_ISSUER]
    return Believed(tuple(tried), None, told[0] if told else tried[-1])
