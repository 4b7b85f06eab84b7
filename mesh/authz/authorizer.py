"""One workload's policies as a function from a peer to a verdict that says what decided.

Order, after Istio (https://istio.io/latest/docs/concepts/security/#implicit-enablement) and ztunnel, which expresses
STRICT as a DENY: mutual TLS required but absent; any DENY policy that matches; no ALLOW policy at all; any ALLOW
policy that matches; else denied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, final

from mesh.authz.decider import Ask, Denial, Peer, Permit, decide, facts_of
from mesh.authz.groups import Groups
from mesh.authz.requests import Requests
from mesh.authz.rules import Kind, RuleGroup, Rules
from mesh.authz.selection import Mtls, effective_mtls
from mesh.message import Request
from mesh.model import MtlsMode, PeerAuth, Policy

_MEMO = 1024
"""Verdicts remembered for each workload; some 300 bytes each, at worst."""


@final
class Authorizer:
    """What one workload's policies say. Remembers verdicts, so that many policies don't make connections dearer."""

    def __init__(self, groups: Iterable[RuleGroup], mtls: Mtls) -> None:
        """`groups` and `mtls` are those that apply to the workload."""
        self._mtls = mtls
        self._groups = tuple(groups)
        self.rules = Rules(self._groups)
        self._by_source = any(group.by_source for group in self._groups)
        self.reads_requests = any(group.of_requests for group in self._groups)
        """Whether a policy asks for what only a request can answer: then connections that may be HTTP are read."""
        self.asks_others = Kind.CUSTOM in self.rules.kinds
        """Whether some requests are to be asked of others (`asks`) before they are checked."""
        self._requests: dict[tuple[object, ...], Requests] = {}
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
        groups = Groups[RuleGroup, Policy](RuleGroup()).replace(policies)
        return cls(
            groups.of(namespace=namespace, labels=labels, root_namespace=root_namespace),
            effective_mtls(peer_auths, namespace=namespace, labels=labels, root_namespace=root_namespace),
        )

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Those that apply to the workload, by key."""
        return tuple(sorted((policy for group in self._groups for policy in group), key=attrgetter("key")))

    def mtls_mode(self, port: int) -> MtlsMode:
        """The mutual-TLS mode of a target port; never UNSET."""
        return self._mtls.at(port)[0]

    def check_request(self, peer: Peer, request: Request, claims: Mapping[str, Any] | None = None) -> Permit | Denial:
        """Decide on a request, whose path is normalised. `claims` are those of its JWT, if it has one that is valid.

        CUSTOM policies are not among what decides: see `asks`. Raises `ValueError` if an address in `peer` is not one.
        """
        return self._requests_of(peer).check(request, claims)

    def asks(self, peer: Peer, request: Request, claims: Mapping[str, Any] | None = None) -> tuple[Ask, ...]:
        """Who must permit a request before it is checked: the CUSTOM policies that match, one of each provider."""
        return self._requests_of(peer).asks(request, claims)

    def _requests_of(self, peer: Peer) -> Requests:
        connection = self._key(peer)
        if (requests := self._requests.get(connection)) is None:
            if len(self._requests) >= _MEMO:
                self._requests.clear()
            requests = self._requests[connection] = Requests(self.strict(peer), facts_of(peer), self.rules)
        return requests

    def _key(self, peer: Peer) -> tuple[object, ...]:
        return peer if self._by_source else (peer.identity, peer.destination_ip, peer.destination_port)

    def check(self, peer: Peer) -> Permit | Denial:
        """Decide. Raises `ValueError` if an address in `peer` is not one."""
        # Where no policy asks for the source address it is no part of the key: there are far more of them than of
        # identities, and an outsider with an IPv6 prefix has as many as it likes.
        key = self._key(peer)
        if (verdict := self._memo.get(key)) is None:
            if len(self._memo) >= _MEMO:  # emptied, not trimmed: no order to keep up on each hit
                self._memo.clear()
            verdict = self._memo[key] = self._decide(peer)
        return verdict

    def _decide(self, peer: Peer) -> Permit | Denial:
        if (strict := self.strict(peer)) is not None:
            return strict
        facts = facts_of(peer)
        return decide(self.rules, lambda kind: self.rules.of_connection(kind, facts), asked=False)

    def strict(self, peer: Peer) -> Denial | None:
        """The denial of a plaintext peer where mutual TLS is required."""
        if peer.identity is None:
            mode, policy = self._mtls.at(peer.destination_port)
            if mode is MtlsMode.STRICT:
                return Denial(policy, -1, "plaintext, but mutual TLS is STRICT at this port", ())
        return None
