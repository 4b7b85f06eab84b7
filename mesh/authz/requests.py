"""What the policies say of the requests of one peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mesh.authz.by_path import ByPath
from mesh.authz.decider import Ask, Compiled, Decider, Denial, Permit, compiled
from mesh.authz.matching import Facts, Reads, compile_rule
from mesh.message import Request
from mesh.model import Action, Policy, Rule

_MEMO = 1024
_LONG = 512
"""Longest path whose verdict is remembered, bytes."""
_HEADER = "request.headers["


class Rules:
    """Those of a workload's policies, for requests of any peer."""

    __slots__ = ("enforced", "of_headers", "others")

    def __init__(self, policies: Iterable[Policy]) -> None:
        enforced: dict[Action, list[Policy]] = {Action.DENY: [], Action.ALLOW: []}
        self.others: list[tuple[Policy, Compiled]] = []
        """Policies that are neither, or a dry run."""
        self.of_headers: list[tuple[Rule, Action]] = []
        """Rules that ask for headers."""
        for policy in policies:
            if policy.action in enforced and not policy.dry_run:
                enforced[policy.action].append(policy)
            else:
                self.others.append((policy, compiled(policy, Reads.REQUEST)))
            for rule in policy.rules:
                if any(condition.key.startswith(_HEADER) for condition in rule.conditions):
                    self.of_headers.append((rule, policy.action))
        self.enforced = ByPath(enforced[Action.DENY]), ByPath(enforced[Action.ALLOW])


class Requests:
    """Only rules of the request's path are looked at; verdicts are remembered by all that a rule asks for, so that many
    policies don't make requests dearer.
    """

    __slots__ = ("_decider", "_facts", "_memo", "_names", "_strict")

    def __init__(self, strict: Denial | None, facts: Facts, rules: Rules) -> None:
        """`strict` is the peer's denial whatever it asks, `facts` what is known of its connection."""
        self._strict = strict
        self._facts = facts
        deny, allow = (of_kind.narrowed(facts) for of_kind in rules.enforced)
        self._decider = Decider(rules.others, requests=True, by_path=(deny, allow))
        names: set[str] = set()
        for rule, action in rules.of_headers:
            possible = compile_rule(rule, action, Reads.EITHER)
            if possible is not None and possible(facts):
                names.update(c.key for c in rule.conditions if c.key.startswith(_HEADER))
        self._names = tuple(sorted(name[len(_HEADER) : -1].lower().encode() for name in names))
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
        return self._decider.asks(self._facts_of(request, values, claims))

    def _decide(
        self, request: Request, values: tuple[tuple[bytes, ...], ...], claims: Mapping[str, Any] | None
    ) -> Permit | Denial:
        return self._decider.decide(self._facts_of(request, values, claims))

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
