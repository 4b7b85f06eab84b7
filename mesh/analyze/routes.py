"""What can be wrong with a route: with what it is attached to, and with each of its rules."""

from __future__ import annotations

import difflib
from collections import ChainMap
from collections.abc import Iterator
from typing import Any

from mesh.analyze.finding import Finding, Path, Ref
from mesh.analyze.inventory import Inventory, RouteUse
from mesh.traffic import Backend, Compare, Parent, Route, RouteMatch, RouteRule

_PARENT_CODES = {"NoMatchingParent": "NM0506", "Conflicted": "NM0509"}
_BACKEND_CODES = {"BackendNotFound": "NM0501", "RefNotPermitted": "NM0502", "InvalidKind": "NM0503"}


_Protocols = dict[str, dict[int, str]]
"""By service, then port."""
_Taken = dict[tuple[str, str, str, int], dict[Any, str]]
"""By kind and namespace of routes, service and port: what they match, and which of them comes first there."""


def routes(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every one."""
    known = inventory.protocols()
    for use in inventory.routes:
        yield from _parents(known, use)
    attached = [(use.route, use.ref) for use in inventory.routes if use.route is not None]
    taken: _Taken = {}
    for route, ref in sorted(attached, key=lambda each: (each[0].created, str(each[1]))):
        for index, rule in enumerate(route.rules):
            at: Path = ("spec", "rules", index)
            yield from _backends(known, ref, route, rule, at)
            if other := _shadow(taken, route, index):
                message = f"{other} matches the same and comes before: it never takes a request"
                yield Finding("NM0508", ref, at, message, "remove it, or make it match something else")
        for parent in route.parents:
            here = taken.setdefault((route.kind, route.namespace, parent.service, parent.port), {})
            for match in (match for rule in route.rules for match in rule.matches):
                here.setdefault(_same(match), str(ref))


def _parents(known: _Protocols, use: RouteUse) -> Iterator[Finding]:
    for parent in use.parents:
        at: Path = ("spec", "parentRefs", parent.index)
        if code := _PARENT_CODES.get(parent.reason):
            remedies = {
                "NM0506": _near(known, parent.service),
                "NM0509": "make the HTTPRoute for another port, or one kind of both",
            }
            yield Finding(code, use.ref, at, parent.message, remedies[code])
        elif parent.attached is not None and _is_tcp(known, parent.attached):
            yield _tcp(use.ref, at, parent.attached)


def _is_tcp(known: _Protocols, parent: Parent) -> bool:
    """Whether all that a route is for is declared to be opaque."""
    protocols = known.get(parent.service, {})
    stated = [protocols.get(parent.port, "")] if parent.port else list(protocols.values())
    return bool(stated) and all(protocol == "tcp" for protocol in stated)


def _tcp(ref: Ref, at: Path, parent: Parent) -> Finding:
    where = f"port {parent.port}" if parent.port else "every port"
    message = f"{where} of service {parent.service} is declared to be TCP, where there are no requests"
    remedy = "if it is HTTP, say so with appProtocol: http (http2, grpc), or begin the port's name with it"
    return Finding("NM0507", ref, at, message, remedy)


def _backends(known: _Protocols, ref: Ref, route: Route, rule: RouteRule, at: Path) -> Iterator[Finding]:
    references: list[tuple[Path, Backend]] = [
        *(((*at, "backendRefs", number), backend) for number, backend in enumerate(rule.backends)),
        *(((*at, "filters"), mirror.backend) for mirror in rule.mirrors),
    ]
    for path, backend in references:
        if code := _BACKEND_CODES.get(backend.invalid):
            yield Finding(code, ref, path, *_invalid(known, code, route, backend))
        elif _is_tcp(known, Parent(backend.service, backend.port)):
            yield _tcp(ref, path, Parent(backend.service, backend.port))
    if rule.redirect is not None:
        return
    if not rule.backends:
        message = "it has no backendRefs: what it takes is answered with an error"
        yield Finding("NM0505", ref, at, message, "add backendRefs, or a redirect")
    elif not sum(backend.weight for backend in rule.backends):
        message = "all weights are 0: what it takes is answered with an error"
        yield Finding("NM0504", ref, (*at, "backendRefs"), message, "give one of them a weight")


def _invalid(known: _Protocols, code: str, route: Route, backend: Backend) -> tuple[str, str]:
    """What is wrong with a reference, and what to do."""
    key = backend.service
    if code == "NM0503":
        return f"{key} is not referred to as a Service", 'only Services (group "", kind Service) can be used'
    if code == "NM0502":
        namespace = key.partition("/")[0]
        message = f"service {key} is in another namespace, which does not allow it"
        return message, f"add a ReferenceGrant to {namespace}, from {route.kind} of {route.namespace}"
    if (protocols := known.get(key)) is not None:
        there = ", ".join(map(str, protocols))
        return f"service {key} has no port {backend.port}", f"ports there: {there}; a backend names the service's port"
    return f"there is no service {key}", _near(known, key)


def _near(known: _Protocols, key: str) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]}?" if near and near[0] != key else "make it, or name another"


def _shadow(taken: _Taken, route: Route, index: int) -> str:
    """What comes before a rule and takes all that it matches, at each of its services; `""` if nothing does."""
    before: dict[Any, str] = {}
    for number, rule in enumerate(route.rules[:index]):
        for match in rule.matches:
            before.setdefault(_same(match), f"rule {number}")
    wanted = [_same(match) for match in route.rules[index].matches]
    found = ""
    for parent in route.parents:
        others = (taken.get((route.kind, route.namespace, parent.service, port), {}) for port in {parent.port, 0})
        here = ChainMap(before, *others)
        if not all(match in here for match in wanted):
            return ""
        found = here[wanted[0]]
    return found


def _same(match: RouteMatch) -> Any:
    """What two matches have in common that take the same requests."""
    path = match.path.rstrip("/") if match.compare is Compare.PREFIX else match.path
    return path, match.compare, match.method, frozenset(match.headers), frozenset(match.query)
