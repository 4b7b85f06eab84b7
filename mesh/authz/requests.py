"""What the policies say of the requests of one peer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mesh.authz.decider import Ask, Denial, Permit, asks, decide
from mesh.authz.matching import Facts
from mesh.authz.rules import HEADER, Kind, Numbered, Rules
from mesh.message import Request

_MEMO = 1024
_LONG = 512
"""Longest path whose verdict is remembered, bytes."""


class Requests:
    """Verdicts are remembered by all that a rule asks for, so that many policies don't make requests dearer."""

    __slots__ = ("_any_path", "_facts", "_memo", "_names", "_rules", "_strict")

    def __init__(self, strict: Denial | None, facts: Facts, rules: Rules) -> None:
        """`strict` is the peer's denial whatever it asks, `facts` what is known of its connection."""
        self._strict = strict
        self._facts, self._rules = facts, rules
        self._any_path = {kind: rules.of_any_path(kind, facts) for kind in rules.kinds}
        self._names = tuple(sorted(name[len(HEADER) : -1].lower().encode() for name in rules.headers(facts)))
        """The headers that a rule asks for."""
        self._memo: dict[tuple[object, ...], Permit | Denial] = {}

    def check(self, request: Request, claims: Mapping[str, Any] | None) -> Permit | Denial:
        """Decide on one."""
        if self._strict is not None:
            return self._strict
        values = tuple([_values(request, name) for name in self._names]) if self._names else ()
        if claims is not None:  # a token has its own life, and hardly comes twice
            return self._decide(request, values, claims)
        path = request.path.partition(b"?")[0]
        key = request.method, path, request.authority, values
        if (verdict := self._memo.get(key)) is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            verdict = self._decide(request, values, None)
            if len(path) <= _LONG:
                self._memo[key] = verdict
        return verdict

    def asks(self, request: Request, claims: Mapping[str, Any] | None) -> tuple[Ask, ...]:
        """See `Authorizer.asks`. A peer that is denied whatever it asks is not asked about."""
        if self._strict is not None:
            return ()
        values = tuple([_values(request, name) for name in self._names]) if self._names else ()
        return self.asked(self._facts_of(request, values, claims))

    def decide(self, facts: Facts) -> Permit | Denial:
        """The verdict on a request of which all is known, but for `strict`."""
        return decide(self._rules, lambda kind: self._matching(kind, facts), asked=True)

    def asked(self, facts: Facts) -> tuple[Ask, ...]:
        """Like `asks`, of a request of which all is known."""
        return asks(self._rules, lambda kind: self._matching(kind, facts))

    def _matching(self, kind: Kind, facts: Facts) -> Iterator[Numbered]:
        return self._rules.of_request(kind, facts, self._any_path[kind])

    def _decide(
        self, request: Request, values: tuple[tuple[bytes, ...], ...], claims: Mapping[str, Any] | None
    ) -> Permit | Denial:
        return self.decide(self._facts_of(request, values, claims))

    def _facts_of(
        self, request: Request, values: tuple[tuple[bytes, ...], ...], claims: Mapping[str, Any] | None
    ) -> Facts:
        headers = {
            name.decode("latin-1"): [value.decode("latin-1") for value in found]
            for name, found in zip(self._names, values, strict=True)
            if found
        }
        return replace(
            self._facts,
            method=request.method.decode("latin-1"),
            path=request.path.partition(b"?")[0].decode("latin-1"),
            host=request.authority.decode("latin-1").lower(),
            headers=headers.get,
            claims=claims,
            request_principal=principal_of(claims),
        )


def principal_of(claims: Mapping[str, Any] | None) -> str | None:
    """`<issuer>/<subject>`; None if a token says either not, as if there were no token."""
    issuer, subject = (claims.get("iss"), claims.get("sub")) if claims is not None else (None, None)
    return f"{issuer}/{subject}" if issuer and subject else None


def _values(request: Request, name: bytes) -> tuple[bytes, ...]:
    return tuple([value for key, value in request.headers if key == name])
