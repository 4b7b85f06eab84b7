"""Gateway API's routes to the mesh's: parents and references resolved, grants checked, conditions stated.

Only Services as parents concern the mesh (GAMMA, https://gateway-api.sigs.k8s.io/mesh/). A reference into another
namespace needs a ReferenceGrant there, unless it is to one of the route's own parents: requests for that one go there
anyway. Where an HTTPRoute and a GRPCRoute of one namespace are for the same port of a Service, the GRPCRoute counts
(GEP-1294).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from controller.store import Resource
from controller.translate.rules import Json, rules
from mesh.model import Service, ServicePort
from mesh.traffic import Backend, Parent, Route

CONTROLLER = "nodemesh.dev/controller"
"""`status.parents[].controllerName`."""
ROUTES = ("HTTPRoute", "GRPCRoute")
_GROUP = "gateway.networking.k8s.io"
_MAX_MESSAGE = 1024
_SHOWN = 4
"""Faults that a message names."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What is said of a route and one of its parents; reasons are Gateway API's."""

    true: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ParentStatus:
    """Of one of `spec.parentRefs`, by its place there."""

    index: int
    accepted: Condition
    resolved: Condition
    parent: Parent | None = None
    """What the route is attached to, if it is."""


def status_entry(reference: Json, generation: int, conditions: Mapping[str, Condition]) -> dict[str, Any]:
    """One of `status.parents`, times left out; `conditions` are by type."""
    return {
        "parentRef": reference,
        "controllerName": CONTROLLER,
        "conditions": [
            {
                "type": kind,
                "status": str(condition.true),
                "reason": condition.reason,
                "message": condition.message[:_MAX_MESSAGE],
                "observedGeneration": generation,
            }
            for kind, condition in conditions.items()
        ],
    }


def status_entries(
    references: Mapping[int, Json], generation: int, statuses: Iterable[ParentStatus]
) -> list[dict[str, Any]]:
    """All of the mesh's own of `status.parents`; `references` are those of `spec.parentRefs` by their places."""
    return [
        status_entry(references[s.index], generation, {"Accepted": s.accepted, "ResolvedRefs": s.resolved})
        for s in statuses
        if s.index in references
    ]


@dataclass(frozen=True, slots=True)
class _Translated:
    resource: Resource
    answers: dict[_Question, Any]
    """What it depends on beside itself."""
    route: Route
    """Also if nothing is attached to it; then it has no parents."""
    parents: tuple[ParentStatus, ...]


_Question = tuple[str, ...]
_ACCEPTED = Condition(True, "Accepted", "the route is attached to its parent")
_RESOLVED = Condition(True, "ResolvedRefs", "every backend is there and may be used")


class _Facts:
    """What routes depend on: `ask` answers with values that can be compared with what they were before."""

    def __init__(self, services: Mapping[str, Service], grants: Iterable[Resource]) -> None:
        self._services = services
        self._granted: set[_Question] = set()
        for grant in grants:
            for source in grant.body["spec"]["from"]:
                for to in grant.body["spec"]["to"]:
                    if source["group"] == _GROUP and (to["group"], to["kind"]) == ("", "Service"):
                        named = to.get("name") or "*"
                        self._granted.add((source["kind"], source["namespace"], f"{grant.namespace}/{named}"))

    def ask(self, question: _Question) -> Any:
        """`("ports", service)`: its ports, or None; `("granted", kind, namespace, service)`: whether it is."""
        what, *rest = question
        if what == "ports":
            service = self._services.get(rest[0])
            return None if service is None else service.ports
        kind, namespace, key = rest
        whole = f"{key.partition('/')[0]}/*"
        return not self._granted.isdisjoint({(kind, namespace, key), (kind, namespace, whole)})


class Gateway:
    """Translates, and keeps what neither has changed nor depends on what has."""

    def __init__(self) -> None:
        self._known: dict[str, _Translated] = {}

    def translate(
        self, resources: Iterable[Resource], grants: Iterable[Resource], services: Mapping[str, Service]
    ) -> tuple[dict[str, Route], dict[str, tuple[ParentStatus, ...]]]:
        """The routes that are attached to anything, and the statuses of all that want to be; by the routes' keys."""
        facts, known, self._known = _Facts(services, grants), self._known, {}
        for resource in resources:
            key = f"{resource.kind}/{resource.namespace}/{resource.name}"
            before = known.get(key)
            if (
                before is None
                or before.resource is not resource
                or any(facts.ask(question) != answer for question, answer in before.answers.items())
            ):
                before = _translated(resource, facts)
            self._known[key] = before
        made = {key: (each.route, each.parents) for key, each in self._known.items() if each.parents}
        _settle(made, services)
        return (
            {key: route for key, (route, _parents) in made.items() if route.parents},
            {key: parents for key, (_route, parents) in made.items()},
        )


def is_ours(parent: Json) -> bool:
    """Whether one of `spec.parentRefs` is a Service."""
    return parent.get("group") == "" and parent.get("kind") == "Service"


def _translated(resource: Resource, facts: _Facts) -> _Translated:
    answers: dict[_Question, Any] = {}

    def ask(*question: str) -> Any:
        if question not in answers:
            answers[question] = facts.ask(question)
        return answers[question]

    spec, namespace = resource.body["spec"], resource.namespace
    verdicts: list[tuple[int, Parent | Condition]] = []
    own: set[str] = set()
    for index, reference in enumerate(spec.get("parentRefs") or ()):
        if is_ours(reference):
            key = _key(reference, namespace)
            own.add(key)
            verdicts.append((index, _parent(reference, key, ask("ports", key))))
    faults: list[tuple[str, str]] = []

    def resolve(reference: Json) -> Backend:
        key, port = _key(reference, namespace), reference.get("port") or 0
        reason, message = _fault(resource.kind, namespace, reference, key, key in own, ask)
        if reason:
            faults.append((reason, message))
        return Backend(key, port, invalid=reason)

    parents = tuple(dict.fromkeys(found for _index, found in verdicts if isinstance(found, Parent)))
    made = rules(resource.kind, spec, resolve) if parents else ()
    resolved = _RESOLVED if not faults else _unresolved(faults)
    statuses = tuple(
        ParentStatus(index, _ACCEPTED, resolved, found)
        if isinstance(found, Parent)
        else ParentStatus(index, found, resolved)
        for index, found in verdicts
    )
    route = Route(resource.kind, resource.name, namespace, parents, made, resource.created)
    return _Translated(resource, answers, route, statuses)


def _key(reference: Json, namespace: str) -> str:
    return f"{reference.get('namespace') or namespace}/{reference['name']}"


def _parent(reference: Json, key: str, ports: tuple[ServicePort, ...] | None) -> Parent | Condition:
    if ports is None:
        return Condition(False, "NoMatchingParent", f"there is no service {key}")
    number, name = reference.get("port"), reference.get("sectionName")
    if number is None and name is None:
        return Parent(key)
    for port in ports:
        if number in (None, port.port) and name in (None, port.name):
            return Parent(key, port.port)
    wanted = " ".join(str(part) for part in (name, number) if part is not None)
    there = ", ".join(f"{port.port} ({port.name})" if port.name else str(port.port) for port in ports)
    return Condition(False, "NoMatchingParent", f"service {key} has no port {wanted}; it has {there or 'none'}")


def _fault(kind: str, namespace: str, reference: Json, key: str, own: bool, ask: Any) -> tuple[str, str]:
    """Why a reference cannot be used, and in words; empty if it can. What must not be seen is not looked at."""
    if reference.get("group") or reference.get("kind") not in (None, "Service"):
        what = f"{reference.get('group') or 'core'}/{reference.get('kind')}"
        return "InvalidKind", f"{what} {key} is not a Service"
    to = key.partition("/")[0]
    if to != namespace and not own and not ask("granted", kind, namespace, key):
        return "RefNotPermitted", f"no ReferenceGrant in {to} lets a {kind} of {namespace} use service {key}"
    ports = ask("ports", key)
    if ports is None:
        return "BackendNotFound", f"there is no service {key}"
    if reference.get("port") not in [port.port for port in ports]:
        return "BackendNotFound", f"service {key} has no port {reference.get('port')}"
    return "", ""


def _unresolved(faults: list[tuple[str, str]]) -> Condition:
    messages = list(dict.fromkeys(message for _reason, message in faults))
    more = f"; and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    return Condition(False, faults[0][0], "; ".join(messages[:_SHOWN]) + more)


_Made = dict[str, tuple[Route, tuple[ParentStatus, ...]]]


def _settle(made: _Made, services: Mapping[str, Service]) -> None:
    """Take from HTTPRoutes the ports that GRPCRoutes of their namespace are for."""
    taken: dict[tuple[str, str], dict[int, str]] = {}
    """By service and namespace: ports (0: all), and whose they are."""
    for key, (route, _statuses) in made.items():
        if route.kind == "GRPCRoute":
            for parent in route.parents:
                taken.setdefault((parent.service, route.namespace), {}).setdefault(parent.port, key)
    for key, (route, statuses) in made.items() if taken else ():
        if route.kind == "GRPCRoute":
            continue
        left: list[Parent] = []
        settled: list[ParentStatus] = []
        for status in statuses:
            if (mine := status.parent) is not None:
                ports = taken.get((mine.service, route.namespace), {})
                kept = _kept(mine, ports, services)
                left += kept
                if not kept:
                    other = ports.get(mine.port) or next(iter(ports.values()))
                    message = f"{other} is for the same port of service {mine.service}, and goes before"
                    status = replace(status, accepted=Condition(False, "Conflicted", message), parent=None)
            settled.append(status)
        if tuple(left) != route.parents:
            made[key] = replace(route, parents=tuple(dict.fromkeys(left))), tuple(settled)


def _kept(parent: Parent, taken: Mapping[int, str], services: Mapping[str, Service]) -> list[Parent]:
    if not taken:
        return [parent]
    if 0 in taken or parent.port in taken:
        return []
    if parent.port:
        return [parent]
    return [Parent(parent.service, p.port) for p in services[parent.service].ports if p.port not in taken]
