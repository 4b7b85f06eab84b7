"""The cluster's objects to the mesh's model. Pure: the same input gives the same world.

An address has one owner: of two pods that show it (one has just ended, say), the one in whose node's range it lies,
else the younger. kubelets report their pods' addresses, and people write `Workload`s, so neither is taken at its word:
the address of a service or a node is nobody's, and one in a node's range of pods' addresses is no `Workload`'s. What
was the same before is taken over as it is, so that a change of one pod among 10,000 costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Generic, TypeVar

from controller.kubernetes.objects import Backend, ClusterNode, ClusterService, Pod, Slice
from controller.resources import workload_addresses
from controller.store import Resource
from controller.translate import (
    NoKeys,
    PublishedKeys,
    TrafficTranslator,
    World,
    key_problems,
    peer_auth,
    policy,
    request_auths,
)
from mesh.model import Endpoint, Enrolment, Service, ServicePort, Workload

_T = TypeVar("_T")
_MAX_TARGETS = 100_000
"""Ports times endpoints of one service. Ten ports and 10,000 pods are as many; all nodes are told of each."""


class _Land:
    """Whose addresses may be."""

    def __init__(self, nodes: Iterable[ClusterNode], services: Iterable[ClusterService]) -> None:
        self._nodes = tuple(nodes)
        own: list[ClusterNode | ClusterService] = [*self._nodes, *services]
        self.taken = {address for owner in own for address in owner.addresses}
        """By nodes and services."""

    @cached_property
    def _ranges(self) -> dict[tuple[int, int, int], str]:
        """Node by IP version, bits of the host's part, and the bits before them. Seldom asked for."""
        found: dict[tuple[int, int, int], str] = {}
        for node in self._nodes:
            for network in map(ip_network, node.pod_ranges):
                bits = network.max_prefixlen - network.prefixlen
                found[network.version, bits, int(network.network_address) >> bits] = node.name
        return found

    def node_of(self, address: str) -> str:
        """The node whose pods have such addresses; `""` if none is known to."""
        parsed = ip_address(address)
        for version, bits in {key[:2] for key in self._ranges}:
            if version == parsed.version and (node := self._ranges.get((version, bits, int(parsed) >> bits))):
                return node
        return ""


class _Translated(Generic[_T]):
    """Resources of a kind in the mesh's words, each put into them once while it stays as it is."""

    def __init__(self, translate: Callable[[Resource], _T]) -> None:
        self._translate = translate
        self._known: dict[tuple[str, str], tuple[Resource, _T]] = {}

    def of(self, resources: Iterable[Resource]) -> Iterator[_T]:
        """All of them; others are forgotten."""
        known, self._known = self._known, {}
        for resource in resources:
            name = f"{resource.namespace}/{resource.name}", str(resource.body["apiVersion"])
            before = known.get(name)
            if before is None or before[0] is not resource:
                before = resource, self._translate(resource)
            self._known[name] = before
            yield before[1]


class Builder:
    """Builds worlds, remembering the parts of the last one."""

    def __init__(self, keys: PublishedKeys | None = None) -> None:
        self._keys = keys or NoKeys()
        self._policies, self._peer_auths = _Translated(policy), _Translated(peer_auth)
        self._workloads: dict[str, tuple[Pod, tuple[str, ...], bool, Workload]] = {}
        self._traffic = TrafficTranslator()

    def build(
        self,
        pods: Mapping[str, Pod],
        services: Mapping[str, ClusterService],
        slices: Iterable[Slice],
        resources: Iterable[Resource],
        enrolment: Callable[[Pod], tuple[bool, tuple[str, ...]]],
        nodes: Iterable[ClusterNode] = (),
    ) -> World:
        """The world now. `enrolment` says of a pod whether it is in the mesh, and its addresses."""
        kinds: dict[str, list[Resource]] = {}
        for resource in sorted(resources, key=lambda r: (r.key, str(r.body["apiVersion"]))):
            kinds.setdefault(resource.kind, []).append(resource)
        owners: dict[str, str] = {}
        land = _Land(nodes, services.values())
        workloads, labels = self._pods(pods, owners, enrolment, land)
        for resource in kinds.get("Workload", ()):
            _declare(resource, workloads, labels, owners, land)
        by_service: dict[str, list[Slice]] = {}
        for entry in slices:
            by_service.setdefault(entry.service, []).append(entry)
        made = World(
            workloads,
            labels,
            {key: _service(services[key], by_service.get(key, ()), owners) for key in sorted(services)},
            tuple(self._policies.of(kinds.get("AuthorizationPolicy", ()))),
            tuple(self._peer_auths.of(kinds.get("PeerAuthentication", ()))),
            request_auths(tokens := kinds.get("RequestAuthentication", ()), self._keys),
            key_problems(tokens, self._keys),
        )
        return self._traffic.add(made, kinds)

    def _pods(
        self,
        pods: Mapping[str, Pod],
        owners: dict[str, str],
        enrolment: Callable[[Pod], tuple[bool, tuple[str, ...]]],
        land: _Land,
    ) -> tuple[dict[str, Workload], dict[str, Mapping[str, str]]]:
        known, self._workloads = self._workloads, {}
        live = []
        for pod in pods.values():
            if not pod.finished and not pod.host_network:
                meshed, addresses = enrolment(pod)
                if addresses:
                    live.append((pod.created, pod.key, pod, meshed, addresses))
        for _created, key, pod, _meshed, addresses in sorted(live, key=lambda entry: entry[:2]):  # the younger last
            for address in addresses:
                rival = owners.get(address)
                if address in land.taken or (rival and land.node_of(address) == pods[rival].node != pod.node):
                    continue
                owners[address] = key
        workloads: dict[str, Workload] = {}
        for _created, key, pod, meshed, stated in live:
            addresses = tuple(a for a in stated if owners.get(a) == key)
            if not addresses:
                continue
            before = known.get(key)
            if before is not None and before[0] is pod and before[1:3] == (addresses, meshed):
                workload = before[3]
            else:
                own = Enrolment(pod.name, pod.namespace, pod.service_account, dict(pod.labels), addresses)
                workload = own.as_workload(pod.node, meshed=meshed)
            self._workloads[key] = (pod, addresses, meshed, workload)
            workloads[key] = workload
        return workloads, {key: pods[key].labels for key in workloads}


def _declare(
    resource: Resource,
    workloads: dict[str, Workload],
    labels: dict[str, Mapping[str, str]],
    owners: dict[str, str],
    land: _Land,
) -> None:
    """Add a `Workload` resource, unless a pod has its name; a pod's address stays the pod's, also one still to come."""
    uid, spec = f"{resource.namespace}/{resource.name}", resource.body["spec"]
    stated = workload_addresses(resource.body)
    addresses = tuple(a for a in stated if a not in owners and a not in land.taken and not land.node_of(a))
    if uid in workloads or not addresses:
        return
    labels[uid] = resource.body["metadata"].get("labels") or {}
    account = spec.get("serviceAccount") or "default"
    own = Enrolment(resource.name, resource.namespace, account, dict(labels[uid]), addresses)
    workloads[uid] = own.as_workload(spec.get("node") or "", meshed=False)
    owners.update(dict.fromkeys(addresses, uid))


def _service(service: ClusterService, slices: Iterable[Slice], owners: Mapping[str, str]) -> Service:
    """A service and its endpoints: those that are ready, of the families that its own addresses have."""
    families = {":" in address for address in service.addresses}
    targets: dict[str, list[int]] = {}
    for entry in slices:
        ports = [entry.ports.get(port.name, 0) for port in service.ports]
        for backend in entry.backends:
            if not (backend.ready or service.publish_not_ready):
                continue
            for address in _first_of_family(backend, families):
                if address not in targets and len(targets) * len(ports) >= _MAX_TARGETS:
                    continue  # whoever may write slices could otherwise fill the memory of all nodes
                known = targets.setdefault(address, [0] * len(ports))
                targets[address] = [was or now for was, now in zip(known, ports, strict=True)]
    return Service(
        service.name,
        service.namespace,
        service.addresses,
        tuple(ServicePort(port.name, port.number, port.app_protocol) for port in service.ports),
        tuple(Endpoint(address, owners.get(address, ""), tuple(ports)) for address, ports in sorted(targets.items())),
    )


def _first_of_family(backend: Backend, families: set[bool]) -> tuple[str, ...]:
    """The address to use. Further ones of an endpoint are alternatives: kube-proxy, too, takes the first."""
    first = backend.addresses[:1]
    return first if not families or (first and (":" in first[0]) in families) else ()
