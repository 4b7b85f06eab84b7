"""Stored resources and enrolments to the mesh's model. Pure: the same input gives the same world, in the same order.

Enrolment wins over a declared `Workload` of the same namespace and name, and over one with the same address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.enrol import Enrolled
from controller.resources import workload_addresses
from controller.schema.meta import is_dry_run
from controller.store import Resource
from mesh.authz.selection import selects
from mesh.model import (
    Action,
    Condition,
    Endpoint,
    Enrolment,
    MtlsMode,
    Operation,
    PeerAuth,
    Policy,
    Rule,
    Service,
    ServicePort,
    Source,
    Workload,
)
from mesh.traffic import Route, TrafficPolicy

_SOURCE_HTTP = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
_OPERATION_HTTP = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")


@dataclass(frozen=True, slots=True)
class World:
    """All that the nodes are told, and the labels that policies select by."""

    workloads: dict[str, Workload] = field(default_factory=dict)
    labels: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Of each workload, by uid."""
    services: dict[str, Service] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    peer_auths: tuple[PeerAuth, ...] = ()
    routes: dict[str, Route] = field(default_factory=dict)
    """By key."""
    traffic: dict[str, TrafficPolicy] = field(default_factory=dict)
    """By key."""


def world(resources: Iterable[Resource], enrolled: Mapping[str, Enrolled]) -> World:
    """Build it. `resources` were validated when they were applied."""
    kinds: dict[str, list[Resource]] = {}
    for resource in sorted(resources, key=lambda r: r.key):
        kinds.setdefault(resource.kind, []).append(resource)
    workloads, labels = _workloads(kinds.get("Workload", ()), enrolled)
    return World(
        workloads,
        labels,
        {s.key: s for s in _services(kinds.get("Service", ()), workloads, labels)},
        tuple(map(policy, kinds.get("AuthorizationPolicy", ()))),
        tuple(map(peer_auth, kinds.get("PeerAuthentication", ()))),
    )


def _workloads(
    declared: Iterable[Resource], enrolled: Mapping[str, Enrolled]
) -> tuple[dict[str, Workload], dict[str, Mapping[str, str]]]:
    found: dict[str, Workload] = {}
    all_labels: dict[str, Mapping[str, str]] = {}
    taken: set[str] = set()

    def add(workload: Enrolment, node: str, *, meshed: bool) -> None:
        found[workload.uid], all_labels[workload.uid] = workload.as_workload(node, meshed=meshed), workload.labels
        taken.update(workload.addresses)

    for _uid, entry in sorted(enrolled.items()):
        add(entry.workload, entry.node, meshed=True)
    for resource in declared:
        uid, spec = f"{resource.namespace}/{resource.name}", resource.body["spec"]
        if uid in found:
            continue
        if addresses := tuple(a for a in workload_addresses(resource.body) if a not in taken):
            account, labels = spec.get("serviceAccount") or "default", resource.body["metadata"].get("labels") or {}
            declaration = Enrolment(resource.name, resource.namespace, account, labels, addresses)
            add(declaration, spec.get("node") or "", meshed=False)
    return found, all_labels


def _services(
    resources: Iterable[Resource], workloads: Mapping[str, Workload], labels: Mapping[str, Mapping[str, str]]
) -> Iterable[Service]:
    by_namespace: dict[str, list[Workload]] = {}
    for workload in workloads.values():
        by_namespace.setdefault(workload.namespace, []).append(workload)
    for resource in resources:
        spec = resource.body["spec"]
        # The mesh carries TCP: a UDP port has no place in it.
        ports = [port for port in spec.get("ports") or () if port.get("protocol", "TCP") == "TCP"]
        addresses = tuple(a for a in spec.get("clusterIPs") or () if a != "None")
        families = {":" in address for address in addresses}
        targets = tuple(port.get("targetPort") or port["port"] for port in ports)
        selector = spec.get("selector") or {}
        chosen = by_namespace.get(resource.namespace, ()) if selector else ()
        yield Service(
            resource.name,
            resource.namespace,
            addresses,
            tuple(ServicePort(p.get("name") or "", p["port"], p.get("appProtocol") or "") for p in ports),
            tuple(
                Endpoint(address, workload.uid, targets)
                for workload in chosen
                if selects(selector, labels[workload.uid])
                for address in workload.addresses
                if not families or (":" in address) in families
            ),
        )


def _selector(spec: Mapping[str, Any]) -> dict[str, str]:
    return dict((spec.get("selector") or {}).get("matchLabels") or {})


def policy(resource: Resource) -> Policy:
    """A checked `AuthorizationPolicy`."""
    spec, namespace = resource.body.get("spec") or {}, resource.namespace
    return Policy(
        resource.name,
        namespace,
        Action(spec.get("action") or "ALLOW"),
        tuple(
            Rule(
                tuple(_source(entry["source"], namespace) for entry in rule.get("from") or ()),
                tuple(_operation(entry["operation"]) for entry in rule.get("to") or ()),
                tuple(
                    Condition(c["key"], tuple(c.get("values") or ()), tuple(c.get("notValues") or ()))
                    for c in rule.get("when") or ()
                ),
            )
            for rule in spec.get("rules") or ()
        ),
        _selector(spec),
        is_dry_run(resource.body["metadata"].get("annotations")),
    )


def _texts(clause: Mapping[str, Any]) -> Callable[[str], tuple[str, ...]]:
    return lambda name: tuple(clause.get(name) or ())


def _source(source: Mapping[str, Any], namespace: str) -> Source:
    of = _texts(source)

    def accounts(name: str) -> tuple[str, ...]:
        return tuple(account if "/" in account else f"{namespace}/{account}" for account in of(name))

    return Source(
        of("principals"),
        of("notPrincipals"),
        of("namespaces"),
        of("notNamespaces"),
        accounts("serviceAccounts"),
        accounts("notServiceAccounts"),
        of("ipBlocks"),
        of("notIpBlocks"),
        tuple(name for name in _SOURCE_HTTP if source.get(name)),
    )


def _operation(operation: Mapping[str, Any]) -> Operation:
    of = _texts(operation)
    return Operation(
        tuple(map(int, of("ports"))),
        tuple(map(int, of("notPorts"))),
        tuple(name for name in _OPERATION_HTTP if operation.get(name)),
    )


def peer_auth(resource: Resource) -> PeerAuth:
    """A checked `PeerAuthentication`."""
    spec = resource.body.get("spec") or {}
    return PeerAuth(
        resource.name,
        resource.namespace,
        _mode(spec.get("mtls")),
        _selector(spec),
        {int(port): _mode(mtls) for port, mtls in (spec.get("portLevelMtls") or {}).items()},
        resource.created,
    )


def _mode(mtls: Mapping[str, Any] | None) -> MtlsMode:
    return MtlsMode((mtls or {}).get("mode") or "UNSET")
