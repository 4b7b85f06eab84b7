"""What the ports of endpoints speak, by their address: for the node that a connection arrives at.

Immutable, each made from the one before by a delta. Addresses of one service share what is kept of it, so that an
endpoint costs one place in a dict. Only services of a workload's own namespace count: whoever may write slices of
endpoints can put any pod behind a service of theirs, and would decide whether its policies get to see requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.detect import protocol
from mesh.model import Service


class _Served(NamedTuple):
    """What one service declares for those of its endpoints that have the same target ports."""

    service: str
    protocols: dict[int, str]
    """By target port; only what is declared."""


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """Start with `Served()`; change with `apply` only."""

    _at: Mapping[str, tuple[_Served, ...]] = field(default_factory=dict)
    """By endpoint address, the services by key."""

    def protocol_at(self, address: str, port: int) -> str:
        """As `mesh.detect.protocol`, of the service port behind which this target port is.

        Where several services disagree, one that declares something counts, then that of the smaller key.
        """
        for served in self._at.get(address, ()):
            if (found := served.protocols.get(port)) is not None:
                return found
        return ""

    def service_at(self, address: str, port: int) -> str:
        """The key of the service whose target port this is, if it declares the protocol and is the only one to."""
        found = [served.service for served in self._at.get(address, ()) if port in served.protocols]
        return found[0] if len(found) == 1 else ""

    def apply(self, before: Mapping[str, Service], added: Iterable[Service], gone: Iterable[str]) -> Served:
        """With these services added or changed, and those gone; `before` is what there was, by key."""
        new = {service.key: service for service in added}
        old = {key: before[key] for key in {*gone, *new} if key in before}
        for key in old.keys() & new.keys():
            if _alike(old[key], new[key]):
                del old[key], new[key]
        if not old and not new:
            return self
        at = dict(self._at)
        for service in old.values():
            _forget(at, service)
        for service in new.values():
            _add(at, service)
        return Served(at)


def _alike(one: Service, other: Service) -> bool:
    return one.ports == other.ports and one.endpoints == other.endpoints


def _forget(at: dict[str, tuple[_Served, ...]], service: Service) -> None:
    key = service.key
    for endpoint in service.endpoints:
        claims = at.get(endpoint.address, ())
        if left := tuple([served for served in claims if served.service != key]):
            at[endpoint.address] = left
        elif claims:
            del at[endpoint.address]


def _add(at: dict[str, tuple[_Served, ...]], service: Service) -> None:
    declared = [protocol(port) for port in service.ports]
    if not any(declared):
        return
    shared: dict[tuple[int, ...], tuple[_Served, ...]] = {}
    for endpoint in service.endpoints:
        if endpoint.workload.partition("/")[0] != service.namespace:
            continue
        if (mine := shared.get(endpoint.ports)) is None:
            protocols: dict[int, str] = {}
            for target, name in zip(endpoint.ports, declared, strict=False):
                if target and name:
                    protocols.setdefault(target, name)
            mine = shared[endpoint.ports] = (_Served(service.key, protocols),)
        claims = at.get(endpoint.address)
        at[endpoint.address] = mine if claims is None else tuple(sorted([*claims, *mine], key=lambda s: s.service))
