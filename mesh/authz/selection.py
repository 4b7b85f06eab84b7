"""Which policies apply to a workload, and which mutual-TLS mode each of its ports has.

Semantics: https://istio.io/latest/docs/reference/config/security/authorization-policy/ (a policy applies in its own
namespace, one of the root namespace everywhere, both narrowed by the selector) and
https://istio.io/latest/docs/reference/config/security/peer_authentication/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mesh.model import MtlsMode, PeerAuth, Policy, RequestAuth


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether every pair of the selector is among the labels; an empty selector selects all."""
    return all(labels.get(key) == value for key, value in selector.items())


def applies(
    policy: Policy | PeerAuth | RequestAuth, *, namespace: str, labels: Mapping[str, str], root_namespace: str
) -> bool:
    """Whether a policy of any kind is for a workload. As in Istio, a `PeerAuthentication` with a selector in the
    root namespace is for nobody.
    """
    if isinstance(policy, PeerAuth) and policy.namespace == root_namespace and policy.selector:
        return False
    return policy.namespace in (namespace, root_namespace) and selects(policy.selector, labels)


@dataclass(frozen=True, slots=True)
class Mtls:
    """A workload's mode, the key of the `PeerAuthentication` that set it (`""` for the default), and the exceptions."""

    mode: MtlsMode = MtlsMode.PERMISSIVE
    policy: str = ""
    ports: Mapping[int, tuple[MtlsMode, str]] = field(default_factory=dict)

    def at(self, port: int) -> tuple[MtlsMode, str]:
        """The mode at a target port, never UNSET, and who set it."""
        return self.ports.get(port) or (self.mode, self.policy)


def effective_mtls(
    peer_auths: Iterable[PeerAuth], *, namespace: str, labels: Mapping[str, str], root_namespace: str
) -> Mtls:
    """Resolve a workload's `PeerAuthentication`s: its own beats its namespace's, which beats the root namespace's.

    Of each kind only the oldest counts (then the smaller key, then selector). UNSET inherits from the next. As in
    Istio, the root namespace's apply to the mesh only without a selector, and port modes only count with one.
    """
    mesh, of_namespace, own = [], [], []
    for peer_auth in peer_auths:
        if peer_auth.namespace == root_namespace:
            if not peer_auth.selector:
                mesh.append(peer_auth)
        elif peer_auth.namespace == namespace:
            if not peer_auth.selector:
                of_namespace.append(peer_auth)
            elif selects(peer_auth.selector, labels):
                own.append(peer_auth)
    effective = Mtls()
    for kind in (mesh, of_namespace, own):
        if kind:
            oldest = min(kind, key=_age)
            effective = _inherit(oldest, effective)
    return effective


def _age(peer_auth: PeerAuth) -> tuple[object, ...]:
    # Of two API groups there can be two of one key, and in whichever order they come, all nodes are to agree.
    return peer_auth.created, peer_auth.key, sorted(peer_auth.selector.items())


def _inherit(peer_auth: PeerAuth, parent: Mtls) -> Mtls:
    mode, policy = (parent.mode, parent.policy) if peer_auth.mode is MtlsMode.UNSET else (peer_auth.mode, peer_auth.key)
    ports = {
        port: (port_mode, peer_auth.key)
        for port, port_mode in peer_auth.port_modes.items()
        if peer_auth.selector and port_mode is not MtlsMode.UNSET
    }
    return Mtls(mode, policy, ports)
