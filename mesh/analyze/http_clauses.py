"""Clauses of an `AuthorizationPolicy` that ask for requests, where nothing but connections is seen: at TCP ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mesh.analyze.finding import Finding, Path, Ref
from mesh.analyze.inventory import Inventory, Pods
from mesh.authz.matching import request_fact
from mesh.model import Action, Operation, Policy, Rule

_NAMED = 4


def http_clauses(inventory: Inventory, policy: Policy, rule: Rule, ref: Ref, at: Path) -> Iterator[Finding]:
    """Findings on one rule. Ports that nobody declares may be HTTP: nothing is said of them."""
    declared = _declared(inventory, inventory.selected(policy.namespace, policy.selector))
    for path, clauses, operations in _clauses(rule):
        named = ", ".join(clauses)
        if not operations:
            yield _finding(policy, ref, (*at, *path), f"{named} cannot be evaluated")
            continue
        ports = {port: kind for port, kind in declared.items() if any(_concerns(o, port) for o in operations)}
        tcp = sorted(port for port, kind in ports.items() if kind == "tcp")
        # An ALLOW rule is of use if it can match anywhere; a DENY rule does harm wherever it matches more than it says.
        if tcp and (policy.action is Action.DENY or len(tcp) == len(ports)):
            where = ", ".join(map(str, tcp[:_NAMED])) + (", …" if len(tcp) > _NAMED else "")
            yield _finding(policy, ref, (*at, *path), f"{named} needs HTTP, and the target port {where} is TCP")


def _finding(policy: Policy, ref: Ref, path: Path, wrong: str) -> Finding:
    if policy.action is Action.DENY:
        message = f"{wrong}: it counts as matched there, so more is denied"
        return Finding("NM0107", ref, path, message, "add the HTTP ports to the rule's operation (target ports)")
    remedy = "declare the service's port (appProtocol: http), or say it with principals, namespaces, ipBlocks and ports"
    return Finding("NM0105", ref, path, f"{wrong}: this rule never allows anything there", remedy)


def _clauses(rule: Rule) -> Iterator[tuple[Path, tuple[str, ...], Sequence[Operation]]]:
    """Each part of the rule that needs requests, and the operations it goes with: none if it never can be."""
    everywhere: Sequence[Operation] = rule.operations or (Operation(),)
    for index, source in enumerate(rule.sources):
        if source.http_clauses:
            yield ("from", index, "source", source.http_clauses[0]), source.http_clauses, everywhere
    for index, operation in enumerate(rule.operations):
        if operation.http_clauses:
            yield ("to", index, "operation", operation.http_clauses[0]), operation.http_clauses, (operation,)
    for index, condition in enumerate(rule.conditions):
        if not condition.key.startswith(("source.", "destination.")):
            known = request_fact(condition.key) is not None
            yield ("when", index, "key"), (condition.key,), everywhere if known else ()


def _concerns(operation: Operation, port: int) -> bool:
    return (not operation.ports or port in operation.ports) and port not in operation.not_ports


def _declared(inventory: Inventory, selected: list[Pods]) -> dict[int, str]:
    """What the services of these pods say that their target ports speak; `tcp` only if all that say something do."""
    found: dict[int, str] = {}
    for service in inventory.services:
        behind = [pods for pods in selected if backs(service.selector, service.ref.namespace, pods)]
        for port in service.ports:
            for target in {target_number(port.target, pods) for pods in behind} - {0}:
                if port.protocol and found.get(target, "tcp") == "tcp":
                    found[target] = port.protocol
    return found


def target_number(target: int | str, pods: Pods) -> int:
    """Which port a `targetPort` is of these pods; 0 if they have none of that name."""
    if isinstance(target, int):
        return target
    return next((number for number, name in pods.ports.items() if name == target), 0)


def backs(selector: object, namespace: str, pods: Pods) -> bool:
    """Whether a service of that namespace has these pods as endpoints."""
    return isinstance(selector, dict) and pods.ref.namespace == namespace and selector.items() <= pods.labels.items()
