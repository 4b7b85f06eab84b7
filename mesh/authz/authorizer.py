"""One workload's policies as a function from a peer to a verdict that says what decided.

Order, after Istio (https://istio.io/latest/docs/concepts/security/#implicit-enablement) and ztunnel, which expresses
STRICT as a DENY: mutual TLS required but absent; any DENY policy that matches; no ALLOW policy at all; any ALLOW
policy that matches; else denied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass
from typing import NamedTuple, final

from mesh.authz.matching import Facts, Test, compile_rule, reads_requests, reads_source_address
from mesh.authz.selection import Mtls, applying, effective_mtls
from mesh.cidr import parse_address
from mesh.identity import Identity
from mesh.message import Request
from mesh.model import Action, MtlsMode, PeerAuth, Policy

_MEMO = 1024
"""Verdicts remembered for each workload; some 300 bytes each, at worst."""
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

    @property
    def text(self) -> str:
        """The reason, and by which rule, for a log line."""
        if not self.policy:
            return self.reason
        rule = f" rule {self.rule}" if self.rule >= 0 else ""
        return f"{self.reason}: {self.policy}{rule}"


class _Compiled(NamedTuple):
    key: str
    rules: tuple[tuple[int, Test], ...]

    def first_match(self, facts: Facts) -> int:
        """The index of the first rule that matches, or -1."""
        for index, matches in self.rules:
            if matches(facts):
                return index
        return -1


@final
class Authorizer:
    """What one workload's policies say. Remembers verdicts, so that many policies don't make connections dearer."""

    def __init__(self, policies: Iterable[Policy], mtls: Mtls) -> None:
        """`policies` and `mtls` are those that apply to the workload; `of` chooses them."""
        self._mtls = mtls
        self._deny: list[_Compiled] = []
        self._allow: list[_Compiled] = []
        self._dry_deny: list[_Compiled] = []
        self._dry_allow: list[_Compiled] = []
        self._by_source = self._reads_requests = False
        for policy in policies:
            self._reads_requests |= reads_requests(policy)
            self._by_source |= reads_source_address(policy)
            if policy.action is Action.DENY:
                kind = self._dry_deny if policy.dry_run else self._deny
            else:
                kind = self._dry_allow if policy.dry_run else self._allow
            kind.append(_compile(policy))
        self._memo: dict[tuple[object, ...], Permit | Denial] = {}

    @classmethod
    def of(
        cls,
        policies: Iterable[Policy],
        peer_auths: Iterable[PeerAuth],
        *,
        namespace: str,
        labels: Mapping[str, str],
        root_namespace: str,
    ) -> Authorizer:
        """Build it for the workload with these labels in this namespace, out of all the mesh's policies."""
        return cls(
            applying(policies, namespace=namespace, labels=labels, root_namespace=root_namespace),
            effective_mtls(peer_auths, namespace=namespace, labels=labels, root_namespace=root_namespace),
        )

    def mtls_mode(self, port: int) -> MtlsMode:
        """The mutual-TLS mode of a target port; never UNSET."""
        return self._mtls.at(port)[0]

    @property
    def reads_requests(self) -> bool:
        """Whether a policy asks for what only a request can answer: then connections that may be HTTP are read."""
        return self._reads_requests

    def check_request(self, peer: Peer, request: Request) -> Permit | Denial:
        """Decide on a request. Raises `ValueError` if an address in `peer` is not one."""
        return self.check(peer)

    def check(self, peer: Peer) -> Permit | Denial:
        """Decide. Raises `ValueError` if an address in `peer` is not one."""
        # Where no policy asks for the source address it is no part of the key: there are far more of them than of
        # identities, and an outsider with an IPv6 prefix has as many as it likes.
        key = peer if self._by_source else (peer.identity, peer.destination_ip, peer.destination_port)
        if (verdict := self._memo.get(key)) is None:
            if len(self._memo) >= _MEMO:  # emptied, not trimmed: no order to keep up on each hit
                self._memo.clear()
            verdict = self._memo[key] = self._decide(peer)
        return verdict

    def _decide(self, peer: Peer) -> Permit | Denial:
        facts = _facts(peer)
        if peer.identity is None:
            mode, policy = self._mtls.at(peer.destination_port)
            if mode is MtlsMode.STRICT:
                return Denial(policy, -1, "plaintext, but mutual TLS is STRICT at this port", ())
        for compiled in self._deny:
            if (rule := compiled.first_match(facts)) >= 0:
                return Denial(compiled.key, rule, "matched a DENY policy", ())
        would_deny = [policy for policy in self._dry_deny if policy.first_match(facts) >= 0]
        would_allow = [policy for policy in self._dry_allow if policy.first_match(facts) >= 0]
        for compiled in self._allow:
            if (rule := compiled.first_match(facts)) >= 0:
                return Permit(_SEAL, compiled.key, rule, "matched an ALLOW policy", _would("deny", would_deny))
        if self._allow:
            named = ", ".join(policy.key for policy in self._allow[:_NAMED])
            more = f" and {len(self._allow) - _NAMED} more" if len(self._allow) > _NAMED else ""
            would = () if would_deny else _would("allow", would_allow)
            return Denial("", -1, f"matched no ALLOW policy ({named}{more})", would)
        if not would_deny and not would_allow:
            would_deny = self._dry_allow  # being the first ALLOW policies here, they would make denial the default
        return Permit(_SEAL, "", -1, "no ALLOW policy applies", _would("deny", would_deny))


def _compile(policy: Policy) -> _Compiled:
    tests = ((index, compile_rule(rule, policy.action)) for index, rule in enumerate(policy.rules))
    return _Compiled(policy.key, tuple((index, test) for index, test in tests if test is not None))


def _would(do: str, policies: Iterable[_Compiled]) -> tuple[str, ...]:
    return tuple(f"{policy.key} would {do}" for policy in policies)


def _facts(peer: Peer) -> Facts:
    source, destination = parse_address(peer.source_ip), parse_address(peer.destination_ip)
    if (identity := peer.identity) is None:
        return Facts(None, None, None, source, destination, peer.destination_port)
    account = f"{identity.namespace}/{identity.service_account}"
    return Facts(identity.principal, identity.namespace, account, source, destination, peer.destination_port)
