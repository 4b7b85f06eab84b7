"""Policies compiled, and Istio's order over them: CUSTOM, where it cannot be asked; any DENY that matches; no ALLOW at
all; any ALLOW that matches; else denied. AUDIT decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import NamedTuple, final

from mesh.authz.by_path import ByPath
from mesh.authz.matching import Facts, Reads, Test, compile_rule
from mesh.cidr import parse_address
from mesh.identity import Identity
from mesh.model import Action, Policy

_NAMED = 3
"""ALLOW policies named in the reason of a denial by default."""


class Peer(NamedTuple):
    """Who wants to connect, and where to."""

    identity: Identity | None
    """From its certificate; None in plaintext."""
    source_ip: str
    destination_ip: str
    destination_port: int
    """Target port: the one that the workload listens on."""


class _Seal:
    """Only this module has one."""


_SEAL = _Seal()


@final
@dataclass(frozen=True, slots=True)
class Permit:
    """Proof that the policies let a peer in. Only `Authorizer.check` makes one."""

    seal: InitVar[_Seal]
    policy: str
    """`<namespace>/<name>` of the policy that decided, or `""`."""
    rule: int
    """Index of the rule that matched, or -1."""
    reason: str
    dry_run: tuple[str, ...]
    """What would be different if the dry-run policies were enforced: `<namespace>/<name> would deny`."""
    audit: tuple[str, ...] = ()
    """AUDIT policies that matched: `<namespace>/<name> rule <index>`."""

    def __post_init__(self, seal: _Seal) -> None:
        if seal is not _SEAL:
            raise TypeError("a Permit comes from Authorizer.check and from nowhere else")


@final
@dataclass(frozen=True, slots=True)
class Denial:
    """Proof that the policies keep a peer out."""

    policy: str
    """`<namespace>/<name>` of the policy that decided, or `""` if none allowed it."""
    rule: int
    """Index of the rule that matched, or -1."""
    reason: str
    dry_run: tuple[str, ...]
    """What would be different if the dry-run policies were enforced: `<namespace>/<name> would allow`."""
    audit: tuple[str, ...] = ()
    """AUDIT policies that matched, as in `Permit`."""

    @property
    def text(self) -> str:
        """The reason, and by which rule, for a log line."""
        if not self.policy:
            return self.reason
        rule = f" rule {self.rule}" if self.rule >= 0 else ""
        return f"{self.reason}: {self.policy}{rule}"


class Ask(NamedTuple):
    """A CUSTOM policy that matched."""

    provider: str
    policy: str
    rule: int


class Compiled(NamedTuple):
    """A policy's rules, each with its number."""

    key: str
    rules: tuple[tuple[int, Test], ...]

    def first_match(self, facts: Facts) -> int:
        """The index of the first rule that matches, or -1."""
        for index, matches in self.rules:
            if matches(facts):
                return index
        return -1


class Decider:
    """Policies by what they do, compiled, and Istio's order over them."""

    __slots__ = ("_allow", "_audit", "_by_path", "_custom", "_deny", "_dry_allow", "_dry_deny", "_requests")

    def __init__(
        self,
        policies: Iterable[tuple[Policy, Compiled]],
        *,
        requests: bool = False,
        by_path: tuple[ByPath, ByPath] | None = None,
    ) -> None:
        """`requests`: it decides on such, and CUSTOM policies were asked before. `by_path`: of them the enforced DENY
        and ALLOW policies, where `policies` are only the others.
        """
        self._requests, self._by_path = requests, by_path
        self._audit: list[Compiled] = []
        self._custom: list[tuple[str, Compiled]] = []
        self._deny: list[Compiled] = []
        self._allow: list[Compiled] = []
        self._dry_deny: list[Compiled] = []
        self._dry_allow: list[Compiled] = []
        for policy, compiled in policies:
            if policy.action is Action.CUSTOM:
                if not policy.dry_run:
                    self._custom.append((policy.provider, compiled))
                continue
            if policy.action is Action.AUDIT:
                kind = self._audit
            elif policy.action is Action.DENY:
                kind = self._dry_deny if policy.dry_run else self._deny
            else:
                kind = self._dry_allow if policy.dry_run else self._allow
            kind.append(compiled)

    def decide(self, facts: Facts) -> Permit | Denial:
        """What they say."""
        audit = self._audited(facts) if self._audit else ()
        if self._custom and not self._requests and (asked := self.asks(facts)):
            reason = "a CUSTOM policy applies, and nobody can be asked about what is not HTTP"
            return Denial(asked[0].policy, asked[0].rule, reason, (), audit)
        if (denied := self._first(0, self._deny, facts)) is not None:
            return Denial(*denied, "matched a DENY policy", (), audit)
        would_deny = [policy for policy in self._dry_deny if policy.first_match(facts) >= 0]
        would_allow = [policy for policy in self._dry_allow if policy.first_match(facts) >= 0]
        if (allowed := self._first(1, self._allow, facts)) is not None:
            return Permit(_SEAL, *allowed, "matched an ALLOW policy", _would("deny", would_deny), audit)
        keys = self._by_path[1].keys if self._by_path is not None else [policy.key for policy in self._allow]
        if keys:
            named = ", ".join(keys[:_NAMED])
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            would = () if would_deny else _would("allow", would_allow)
            return Denial("", -1, f"matched no ALLOW policy ({named}{more})", would, audit)
        if not would_deny and not would_allow:
            would_deny = self._dry_allow  # being the first ALLOW policies here, they would make denial the default
        return Permit(_SEAL, "", -1, "no ALLOW policy applies", _would("deny", would_deny), audit)

    def _first(self, kind: int, policies: list[Compiled], facts: Facts) -> tuple[str, int] | None:
        """The policy and the rule that match first."""
        if self._by_path is not None:
            for key, index, matches in self._by_path[kind].among(facts.path):
                if matches(facts):
                    return key, index
        for one in policies:
            if (rule := one.first_match(facts)) >= 0:
                return one.key, rule
        return None

    def asks(self, facts: Facts) -> tuple[Ask, ...]:
        """The CUSTOM policies that match, one of each provider."""
        found: dict[str, Ask] = {}
        for provider, one in self._custom:
            if provider not in found and (rule := one.first_match(facts)) >= 0:
                found[provider] = Ask(provider, one.key, rule)
        return tuple(found.values())

    def _audited(self, facts: Facts) -> tuple[str, ...]:
        matched = ((one.key, one.first_match(facts)) for one in self._audit)
        return tuple(f"{key} rule {rule}" for key, rule in matched if rule >= 0)


def compiled(policy: Policy, reads: Reads) -> Compiled:
    """Its rules that can match at all."""
    tests = ((index, compile_rule(rule, policy.action, reads)) for index, rule in enumerate(policy.rules))
    return Compiled(policy.key, tuple((index, test) for index, test in tests if test is not None))


def _would(do: str, policies: Iterable[Compiled]) -> tuple[str, ...]:
    return tuple(f"{policy.key} would {do}" for policy in policies)


def facts_of(peer: Peer) -> Facts:
    """What is known of a connection. Raises `ValueError` if an address is not one."""
    source, destination = parse_address(peer.source_ip), parse_address(peer.destination_ip)
    if (identity := peer.identity) is None:
        return Facts(None, None, None, source, destination, peer.destination_port)
    account = f"{identity.namespace}/{identity.service_account}"
    return Facts(identity.principal, identity.namespace, account, source, destination, peer.destination_port)
