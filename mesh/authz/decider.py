"""Verdicts, and Istio's order over the rules that match: CUSTOM, where it cannot be asked; any DENY; no ALLOW policy at
all; any ALLOW; else denied. AUDIT decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass
from typing import NamedTuple, final

from mesh.authz.matching import Facts
from mesh.authz.rules import Kind, Numbered, Rules
from mesh.cidr import parse_address
from mesh.identity import Identity

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


Matching = Callable[[Kind], Iterator[Numbered]]
"""The rules of a kind that match, in order."""


def decide(rules: Rules, matching: Matching, *, asked: bool) -> Permit | Denial:
    """What a workload's rules say, by those that match. `asked`: whoever CUSTOM policies name has been asked before."""

    def first(kind: Kind) -> Numbered | None:
        return next(matching(kind), None) if kind in rules.kinds else None

    def policies(kind: Kind) -> dict[str, Numbered]:
        matched: dict[str, Numbered] = {}
        for rule in matching(kind) if kind in rules.kinds else ():
            matched.setdefault(rule.key, rule)
        return matched

    audit = tuple(f"{key} rule {rule.index}" for key, rule in policies(Kind.AUDIT).items())
    if not asked and (custom := first(Kind.CUSTOM)) is not None:
        reason = "a CUSTOM policy applies, and nobody can be asked about what is not HTTP"
        return Denial(custom.key, custom.index, reason, (), audit)
    if (denied := first(Kind.DENY)) is not None:
        return Denial(denied.key, denied.index, "matched a DENY policy", (), audit)
    would_deny: Iterable[str] = policies(Kind.DRY_DENY)
    if (allowed := first(Kind.ALLOW)) is not None:
        return Permit(_SEAL, allowed.key, allowed.index, "matched an ALLOW policy", _would("deny", would_deny), audit)
    would_allow = policies(Kind.DRY_ALLOW)
    if Kind.ALLOW in rules.kinds:
        some, number = rules.named(Kind.ALLOW, _NAMED)
        more = f" and {number - _NAMED} more" if number > _NAMED else ""
        would = () if would_deny else _would("allow", would_allow)
        return Denial("", -1, f"matched no ALLOW policy ({', '.join(some)}{more})", would, audit)
    if not would_deny and not would_allow:  # being the first ALLOW policies here, they would make denial the default
        would_deny, _ = rules.named(Kind.DRY_ALLOW)
    return Permit(_SEAL, "", -1, "no ALLOW policy applies", _would("deny", would_deny), audit)


def asks(rules: Rules, matching: Matching) -> tuple[Ask, ...]:
    """The CUSTOM policies that match, one of each provider."""
    found: dict[str, Ask] = {}
    if Kind.CUSTOM in rules.kinds:
        for rule in matching(Kind.CUSTOM):
            found.setdefault(rule.provider, Ask(rule.provider, rule.key, rule.index))
    return tuple(found.values())


def _would(do: str, policies: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{key} would {do}" for key in policies)


def facts_of(peer: Peer) -> Facts:
    """What is known of a connection. Raises `ValueError` if an address is not one."""
    source, destination = parse_address(peer.source_ip), parse_address(peer.destination_ip)
    if (identity := peer.identity) is None:
        return Facts(None, None, None, source, destination, peer.destination_port)
    account = f"{identity.namespace}/{identity.service_account}"
    return Facts(identity.principal, identity.namespace, account, source, destination, peer.destination_port)
