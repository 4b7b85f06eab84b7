"""Stored resources and enrolments to the mesh's model. Pure: the same input gives the same world, in the same order.

Enrolment wins over a declared `Workload` of the same namespace and name, and over one with the same address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from controller.enrol import Enrolled
from controller.resources import workload_addresses
from controller.store import Resource
from controller.translate.gateway import ROUTES, Gateway, ParentStatus
from controller.translate.security import peer_auth, policy
from controller.translate.tokens import NoKeys, PublishedKeys, key_problems, request_auths
from controller.translate.traffic import TrafficPolicies
from mesh.authz.selection import selects
from mesh.model import Endpoint, Enrolment, PeerAuth, Policy, RequestAuth, Service, ServicePort, Workload
from mesh.traffic import Route, TrafficPolicy


@dataclass(frozen=True, slots=True)
class World:
    """All that the nodes are told, and the labels that policies select by."""

    workloads: dict[str, Workload] = field(default_factory=dict)
    labels: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Of each workload, by uid."""
    services: dict[str, Service] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    peer_auths: tuple[PeerAuth, ...] = ()
    request_auths: tuple[RequestAuth, ...] = ()
    key_problems: dict[str, str] = field(default_factory=dict)
    """By key of each `RequestAuthentication` whose keys are fetched: what is wrong, or `""`. Nodes are not told."""
    routes: dict[str, Route] = field(default_factory=dict)
    """By key."""
    traffic: dict[str, TrafficPolicy] = field(default_factory=dict)
    """By key."""
    route_statuses: dict[str, tuple[ParentStatus, ...]] = field(default_factory=dict)
    """By the keys of all routes that have a Service as parent, attached or not."""

    def version_of(self, uid: str) -> str:
        """Of a workload; `""` if it is not known."""
        workload = self.workloads.get(uid)
        return workload.version if workload is not None else ""


@dataclass(frozen=True, slots=True)
class TrafficTranslator:
    """Of routes and traffic policies; it keeps from one world to the next what has not changed."""

    gateway: Gateway = field(default_factory=Gateway)
    policies: TrafficPolicies = field(default_factory=TrafficPolicies)

    def add(self, world: World, kinds: Mapping[str, list[Resource]]) -> World:
        """The world with them."""
        routes = [resource for kind in ROUTES for resource in kinds.get(kind, ())]
        made, statuses = self.gateway.translate(routes, kinds.get("ReferenceGrant", ()), world.services)
        traffic = self.policies.translate(kinds.get("TrafficPolicy", ()))
        return replace(world, routes=made, traffic=traffic, route_statuses=statuses)


def world(
    resources: Iterable[Resource],
    enrolled: Mapping[str, Enrolled],
    traffic: TrafficTranslator | None = None,
    keys: PublishedKeys | None = None,
) -> World:
    """Build it. `resources` were validated when they were applied."""
    kinds: dict[str, list[Resource]] = {}
    for resource in sorted(resources, key=lambda r: r.key):
        kinds.setdefault(resource.kind, []).append(resource)
    workloads, labels = _workloads(kinds.get("Workload", ()), enrolled)
    made = World(
        workloads,
        labels,
        {s.key: s for s in _services(kinds.get("Service", ()), workloads, labels)},
        tuple(map(policy, kinds.get("AuthorizationPolicy", ()))),
        tuple(map(peer_auth, kinds.get("PeerAuthentication", ()))),
        request_auths(tokens := kinds.get("RequestAuthentication", ()), keys or NoKeys()),
        key_problems(tokens, keys or NoKeys()),
    )
    return (traffic or TrafficTranslator()).add(made, kinds)


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
