"""Routes and traffic policies among the objects, to what `mesh.analyze` looks at.

Where nobody knows which services a namespace has, those that routes name are taken to be there; so are grants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.store import Resource
from controller.translate import ROUTES, Gateway, ParentStatus, is_ours
from controller.translate.traffic import traffic_policy
from mesh.analyze import ParentUse, Ref, RouteUse, ServiceUse
from mesh.model import Service, ServicePort
from mesh.traffic import TrafficPolicy

_GRANTED = {"group": "", "kind": "Service"}


@dataclass(slots=True)
class _Known:
    services: dict[str, Service]
    namespaces: set[str]
    """Of which all services are known."""
    grants: list[Resource]
    assumed: dict[str, set[int]] = field(default_factory=dict)

    def assume(self, route: Resource, reference: Mapping[str, Any]) -> None:
        """That what a route names is there, if nobody can know."""
        namespace = reference.get("namespace") or route.namespace
        if namespace not in self.namespaces:
            ports = self.assumed.setdefault(f"{namespace}/{reference['name']}", set())
            ports.update({reference["port"]} if reference.get("port") else ())
            source = {"group": "gateway.networking.k8s.io", "kind": route.kind, "namespace": route.namespace}
            body = {"spec": {"from": [source], "to": [_GRANTED]}}
            self.grants.append(Resource("ReferenceGrant", namespace, "assumed", body, "", 1, 0, 0))


def concerns_us(spec: Any) -> bool:
    """Whether a route, valid or not, has a Service as parent."""
    references = spec.get("parentRefs") if isinstance(spec, Mapping) else None
    return isinstance(references, list) and any(isinstance(r, Mapping) and is_ours(r) for r in references)


def route_uses(
    resources: Sequence[Resource], services: Iterable[ServiceUse], *, complete: bool
) -> tuple[RouteUse, ...]:
    """The routes among the checked resources, as they would be translated."""
    routes = [resource for resource in resources if resource.kind in ROUTES]
    made = {f"{s.ref.namespace}/{s.ref.name}": _service(s) for s in services}
    known = _Known(
        made,
        {service.namespace for service in made.values()},
        [resource for resource in resources if resource.kind == "ReferenceGrant"],
    )
    if not complete:
        for route in routes:
            for reference in _references(route.body["spec"]):
                known.assume(route, reference)
    for key, ports in known.assumed.items():
        namespace, _, name = key.partition("/")
        made[key] = Service(name, namespace, (), tuple(ServicePort("", port) for port in sorted(ports)), ())
    attached, statuses = Gateway().translate(routes, known.grants, made)
    return tuple(
        RouteUse(
            Ref(route.kind, route.namespace, route.name),
            attached.get(key),
            tuple(_parent(route, status) for status in statuses.get(key, ())),
        )
        for route in routes
        for key in (f"{route.kind}/{route.namespace}/{route.name}",)
    )


def traffic_policies(resources: Iterable[Resource]) -> tuple[TrafficPolicy, ...]:
    """Those among the checked resources."""
    return tuple(traffic_policy(resource) for resource in resources if resource.kind == "TrafficPolicy")


def _service(use: ServiceUse) -> Service:
    ports = tuple(ServicePort(port.name, port.port) for port in use.ports)
    return Service(use.ref.name, use.ref.namespace, (), ports, ())


def _references(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from (parent for parent in spec.get("parentRefs") or () if is_ours(parent))
    for rule in spec.get("rules") or ():
        yield from rule.get("backendRefs") or ()
        yield from (f["requestMirror"]["backendRef"] for f in rule.get("filters") or () if f.get("requestMirror"))


def _parent(route: Resource, status: ParentStatus) -> ParentUse:
    reference = route.body["spec"]["parentRefs"][status.index]
    key = f"{reference.get('namespace') or route.namespace}/{reference['name']}"
    said = status.accepted
    return ParentUse(status.index, key, status.parent, "" if said.true else said.reason, said.message)
