"""Istio's layer-4 semantics, evaluated slowly and literally from its documentation: the oracle for `mesh.authz`.

Written from https://istio.io/latest/docs/reference/config/security/authorization-policy/, `.../conditions/` and
`.../peer_authentication/`. Shares no code with `mesh.authz`, and nothing is prepared beforehand.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mesh.authz import Peer
from mesh.model import Action, Condition, MtlsMode, Operation, PeerAuth, Policy, Rule, Source

_T = TypeVar("_T")


class Unevaluable(Exception):
    """A clause that means nothing at layer 4."""


def applies(policy: Policy | PeerAuth, namespace: str, labels: dict[str, str], root: str) -> bool:
    return policy.namespace in {namespace, root} and policy.selector.items() <= labels.items()


def allowed(policies: Iterable[Policy], mode: MtlsMode, peer: Peer) -> bool:
    """The five steps of the reference, after what PeerAuthentication asks for. CUSTOM: nobody can be asked here."""
    if mode is MtlsMode.STRICT and peer.identity is None:
        return False
    deny = [policy for policy in policies if policy.action in (Action.CUSTOM, Action.DENY)]
    allow = [policy for policy in policies if policy.action is Action.ALLOW]
    if any(policy_matches(policy, peer) for policy in deny):
        return False
    return not allow or any(policy_matches(policy, peer) for policy in allow)


def policy_matches(policy: Policy, peer: Peer) -> bool:
    return any(rule_matches(rule, policy.action, peer) for rule in policy.rules)


def rule_matches(rule: Rule, action: Action, peer: Peer) -> bool:
    parts: list[list[list[bool]]] = []
    try:
        if rule.sources:
            parts.append([clauses(source_clauses(source, peer), action) for source in rule.sources])
        if rule.operations:
            parts.append([clauses(operation_clauses(operation, peer), action) for operation in rule.operations])
        parts.extend([clauses(condition_clauses(condition, peer), action)] for condition in rule.conditions)
    except Unevaluable:
        return False
    return all(any(all(alternative) for alternative in part) for part in parts)


def clauses(thunks: Sequence[Callable[[], bool]], action: Action) -> list[bool]:
    """Evaluate each; what can't be counts as matched in a DENY and spoils the rule in an ALLOW."""
    results = []
    if not thunks and action is Action.ALLOW:
        raise Unevaluable
    for thunk in thunks:
        try:
            results.append(thunk())
        except (Unevaluable, ValueError):
            if action is Action.ALLOW:
                raise Unevaluable from None
    return results


def source_clauses(source: Source, peer: Peer) -> list[Callable[[], bool]]:
    return [
        *field(source.principals, source.not_principals, lambda value: name(value, principal(peer))),
        *field(source.namespaces, source.not_namespaces, lambda value: name(value, namespace_of(peer))),
        *field(source.service_accounts, source.not_service_accounts, lambda value: value == account(peer)),
        *field(source.ip_blocks, source.not_ip_blocks, lambda value: block(value, peer.source_ip)),
        *(impossible for _ in source.http_clauses),
    ]


def operation_clauses(operation: Operation, peer: Peer) -> list[Callable[[], bool]]:
    return [
        *field(operation.ports, operation.not_ports, lambda value: value == peer.destination_port),
        *(impossible for _ in operation.http_clauses),
    ]


def condition_clauses(condition: Condition, peer: Peer) -> list[Callable[[], bool]]:
    evaluate: dict[str, Callable[[str], bool]] = {
        "source.principal": lambda value: name(value, principal(peer)),
        "source.namespace": lambda value: name(value, namespace_of(peer)),
        "source.ip": lambda value: block(value, peer.source_ip),
        "destination.ip": lambda value: block(value, peer.destination_ip),
        "destination.port": lambda value: int(value) == peer.destination_port,
    }
    if condition.key not in evaluate:
        return [impossible]
    return field(condition.values, condition.not_values, evaluate[condition.key])


def field(
    values: tuple[_T, ...], not_values: tuple[_T, ...], matches: Callable[[_T], bool]
) -> list[Callable[[], bool]]:
    """A field and its negation; every value is read, so that one unreadable value spoils both."""

    def evaluate() -> bool:
        found, excluded = [matches(v) for v in values], [matches(v) for v in not_values]
        return (not values or any(found)) and not any(excluded)

    return [evaluate] if values or not_values else []


def impossible() -> bool:
    raise Unevaluable


def principal(peer: Peer) -> str | None:
    return peer.identity.uri.removeprefix("spiffe://") if peer.identity else None


def namespace_of(peer: Peer) -> str | None:
    return peer.identity.namespace if peer.identity else None


def account(peer: Peer) -> str | None:
    return f"{peer.identity.namespace}/{peer.identity.service_account}" if peer.identity else None


def name(value: str, actual: str | None) -> bool:
    """Exact, prefix, suffix and presence match; nothing matches an absent attribute."""
    if actual is None:
        return False
    if value == "*":
        return actual != ""
    if value[0] == "*":
        return actual[-len(value) + 1 :] == value[1:]
    if value[-1] == "*":
        return actual[: len(value) - 1] == value[:-1]
    return actual == value


def block(value: str, actual: str) -> bool:
    """A single address or CIDR; an IPv4-mapped one is an IPv4 one."""
    network = ipaddress.ip_network(value, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        network = ipaddress.ip_network(f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}")
    return ipaddress.ip_address(actual) in network


def mtls_mode(peer_auths: Iterable[PeerAuth], namespace: str, labels: dict[str, str], root: str, port: int) -> MtlsMode:
    """From the narrowest that applies to the widest: the first that says something."""
    mine = sorted((p for p in peer_auths if applies(p, namespace, labels, root)), key=lambda p: (p.created, p.key))
    levels = (
        [p for p in mine if p.selector and p.namespace != root],
        [p for p in mine if not p.selector and p.namespace != root],
        [p for p in mine if not p.selector and p.namespace == root],
    )
    for level in levels:
        if level and level[0].selector and level[0].port_modes.get(port, MtlsMode.UNSET) is not MtlsMode.UNSET:
            return level[0].port_modes[port]
        if level and level[0].mode is not MtlsMode.UNSET:
            return level[0].mode
    return MtlsMode.PERMISSIVE
