"""What can be wrong with a `Service`."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.analyze.finding import Finding, Ref
from mesh.analyze.http_clauses import target_number
from mesh.analyze.inventory import Inventory, Pods, Port, same_labels


def services(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every service that has a selector."""
    declared: dict[tuple[Ref, int], tuple[Ref, bool]] = {}
    for service in sorted(inventory.services, key=lambda service: service.ref.name):
        namespace, selector = service.ref.namespace, service.selector
        if not selector:
            continue
        own = [p for p in inventory.pods if p.ref.namespace == namespace]
        chosen = [p for p in own if selector.items() <= p.labels.items()]
        if chosen:
            for port in service.ports:
                yield from _port(service.ref, port, chosen)
                yield from _disagreement(service.ref, port, chosen, declared)
        elif own or inventory.complete:
            labels = sorted({same_labels(p.labels) for p in own if p.labels})[:4]
            yield Finding(
                "NM0301",
                service.ref,
                ("spec", "selector"),
                f"no workload in namespace {namespace} has the labels {same_labels(selector)}",
                f"labels there: {'; '.join(labels)}" if labels else "there is no workload yet",
            )


def _port(ref: Ref, port: Port, chosen: list[Pods]) -> Iterator[Finding]:
    path = ("spec", "ports", port.index, "targetPort")
    if isinstance(port.target, str):
        lacking = [p for p in chosen if port.target not in p.ports.values()]
        if lacking:
            names = sorted({name for p in lacking for name in p.ports.values() if name})
            who = "no workload it selects has" if lacking == chosen else f"{lacking[0].ref} lacks"
            message = f"{who} a port named {port.target!r}"
            yield Finding("NM0303", ref, path, message, f"names there: {', '.join(names) or 'none'}")
        return
    # Declaring ports is optional: only where all declare some, one that is missing means something.
    if all(p.ports for p in chosen) and not any(port.target in p.ports for p in chosen):
        there = sorted({number for p in chosen for number in p.ports})
        message = f"none of its workloads says that it listens on {port.target}"
        yield Finding("NM0302", ref, path, message, f"ports there: {', '.join(map(str, there[:8]))}")


def _disagreement(
    ref: Ref, port: Port, chosen: list[Pods], declared: dict[tuple[Ref, int], tuple[Ref, bool]]
) -> Iterator[Finding]:
    """Of a target port the service that is the first by name counts (`mesh.served`): `declared` has what those said."""
    if not port.protocol:
        return
    tcp = port.protocol == "tcp"
    for pods in chosen:
        if not (target := target_number(port.target, pods)):
            continue
        first, first_tcp = declared.setdefault((pods.ref, target), (ref, tcp))
        if first_tcp is not tcp:
            said, counts = ("TCP", "HTTP") if tcp else ("HTTP", "TCP")
            message = f"target port {target} of {pods.ref} is {said} here and {counts} in {first}, which counts there"
            yield Finding("NM0304", ref, ("spec", "ports", port.index), message, "declare it alike (appProtocol, name)")
            return
