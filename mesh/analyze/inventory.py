"""What is analysed: resources reduced to what the rules ask about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mesh.analyze.finding import Ref
from mesh.model import PeerAuth, Policy, RequestAuth
from mesh.traffic import Parent, Route, TrafficPolicy

MODE_LABEL = "nodemesh.dev/mode"
"""On a namespace `enabled` or `disabled`; on a pod it overrides the namespace's."""


@dataclass(frozen=True, slots=True)
class Pods:
    """A pod, or the pods that a template makes, or a workload of a plain host."""

    ref: Ref
    labels: Mapping[str, str]
    service_account: str
    ports: Mapping[int, str]
    """Those declared, with their names (`""` for none). A container may listen on others."""
    host_network: bool = False
    template: bool = False
    """`ref` makes the pods, its `spec.template` describes them."""
    owned: bool = False
    """Made by something else that is known: what is wrong with it is wrong there."""


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a service; `index` is its place in `spec.ports`."""

    index: int
    port: int
    target: int | str
    name: str = ""
    protocol: str = ""
    """As `mesh.detect` has it."""


@dataclass(frozen=True, slots=True)
class ServiceUse:
    """A service. `selector` is None where it has none, so that its endpoints are somebody else's."""

    ref: Ref
    selector: Mapping[str, str] | None
    ports: tuple[Port, ...]
    exposed: str = ""
    """Why it is meant to be used from outside the cluster, such as `type NodePort`."""


@dataclass(frozen=True, slots=True)
class ParentUse:
    """One of a route's Services, by its place in `spec.parentRefs`."""

    index: int
    service: str
    """`namespace/name`."""
    attached: Parent | None
    reason: str = ""
    """Why it is not: Gateway API's."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class RouteUse:
    """A route that has Services as parents; `route` is None if it is attached to none of them."""

    ref: Ref
    route: Route | None
    parents: tuple[ParentUse, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that is known. What is missing from it may still exist, unless a field says otherwise."""

    pods: tuple[Pods, ...] = ()
    services: tuple[ServiceUse, ...] = ()
    policies: tuple[Policy, ...] = ()
    peer_auths: tuple[PeerAuth, ...] = ()
    request_auths: tuple[RequestAuth, ...] = ()
    routes: tuple[RouteUse, ...] = ()
    traffic: tuple[TrafficPolicy, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] | None = None
    """Labels by name; None where nobody knows which there are."""
    accounts: frozenset[str] | None = None
    """`namespace/name`; None where nobody knows."""
    trust_domain: str | None = None
    """None where nobody knows."""
    root_namespace: str = "nodemesh-system"
    plaintext: Mapping[str, str] = field(default_factory=dict)
    """Who was seen connecting in plaintext, by the uid (`namespace/name`) of the workload connected to."""
    key_problems: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with fetching issuers' keys, by `namespace/name` of the `RequestAuthentication`."""
    providers: Mapping[str, tuple[str, int]] | None = None
    """Whom CUSTOM policies can ask: service (`namespace/name`) and port by name; None where nobody knows."""
    complete: bool = False
    """The pods and services are all that there are; else only those of namespaces that have any are looked at."""

    def pods_in(self, namespace: str) -> Iterator[Pods]:
        """The pods of a namespace; of all for the root namespace."""
        return (p for p in self.pods if namespace in (p.ref.namespace, self.root_namespace))

    def selected(self, namespace: str, selector: Mapping[str, str]) -> list[Pods]:
        """The pods that a policy of that namespace applies to."""
        return [p for p in self.pods_in(namespace) if selector.items() <= p.labels.items()]

    def knows_pods_of(self, namespace: str) -> bool:
        """Whether the absence of a pod in that namespace means something."""
        return self.complete or any(True for _ in self.pods_in(namespace))

    def knows_services_of(self, namespace: str) -> bool:
        """Whether the absence of a service in that namespace means something."""
        return self.complete or any(service.ref.namespace == namespace for service in self.services)

    def protocols(self) -> dict[str, dict[int, str]]:
        """What the ports of each service (`namespace/name`) are declared to speak."""
        return {
            f"{each.ref.namespace}/{each.ref.name}": {port.port: port.protocol for port in each.ports}
            for each in self.services
        }


def same_labels(selector: Mapping[str, str]) -> str:
    """A selector as people write it: `app=web,tier=front`."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
