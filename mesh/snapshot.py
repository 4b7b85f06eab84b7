"""A node's view of the mesh at one revision: immutable, indexed for `resolve`, made from the one before by a delta.

Where two workloads claim one address (a pod's successor may be announced before its end), one that is in the mesh beats
one that is not, then the smaller uid wins; of two services the smaller key wins, port by port. The choice depends on
what is there and not on the order of arrival, so that all nodes, and a node before and after its restart, agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from mesh.authz.groups import Group, Groups
from mesh.authz.rules import RuleGroup
from mesh.cidr import Blocks, parse_address
from mesh.model import MeshConfig, PeerAuth, Policy, RequestAuth, Service, Workload
from mesh.served import Served
from mesh.sync import Update
from mesh.traffic import RateLimit, Route, TrafficPolicy
from mesh.traffic_index import TrafficIndex
from mesh.versions import Split

_RANGE_MEMO = 8192

_T = TypeVar("_T", bound=Workload | Service)


class SnapshotError(ValueError):
    """An update does not fit onto this snapshot; the node answers `Nack` with the message and stays where it is."""


class Vip(NamedTuple):
    """What is behind one port of one service address."""

    service: Service
    port_index: int
    backends: tuple[tuple[str, int, str], ...]
    """Of the endpoints that serve this port: address, target port, uid of the workload or `""`."""


class PoliciesOf(NamedTuple):
    """What applies to one workload. Each group is the same object in every later snapshot, until it changes."""

    policies: tuple[RuleGroup, ...]
    peer_auths: tuple[Group[PeerAuth], ...]
    request_auths: tuple[Group[RequestAuth], ...]


class _Ranges:
    """The mesh's own CIDRs, with a bounded memory of what was asked: destinations repeat, and parsing costs 2 µs."""

    __slots__ = ("_blocks", "_memo")

    def __init__(self, ranges: tuple[str, ...]) -> None:
        self._blocks = Blocks(ranges)
        self._memo: dict[str, bool] = {}

    def contain(self, address: str) -> bool:
        """Raise `ValueError` if `address` is not one."""
        if (known := self._memo.get(address)) is None:
            known = parse_address(address) in self._blocks
            if len(self._memo) >= _RANGE_MEMO:
                self._memo.clear()
            self._memo[address] = known
        return known


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Build with `empty` and `apply` only. It never changes after that: a task may keep one as long as it likes."""

    epoch: str
    revision: int
    config: MeshConfig
    workloads: Mapping[str, Workload]
    """By uid."""
    services: Mapping[str, Service]
    """By key, `<namespace>/<name>`."""
    ready: bool
    """Whether an update was ever applied."""
    _ranges: _Ranges
    _workload_claims: dict[str, tuple[Workload, ...]]
    """By address: the workloads that have it, the one that counts first."""
    _service_claims: dict[str, tuple[Service, ...]]
    _vips: dict[str, dict[int, Vip]]
    """By service address, then port."""
    _traffic: TrafficIndex
    _served: Served
    _policies: Groups[RuleGroup, Policy]
    _peer_auths: Groups[Group[PeerAuth], PeerAuth]
    _request_auths: Groups[Group[RequestAuth], RequestAuth]
    _splits: dict[tuple[str, int], Split] = field(default_factory=dict)
    """Those asked for, by service and port."""

    @staticmethod
    def empty() -> Snapshot:
        """What a node knows before its first update: nothing, and `ready` says so."""
        no_ranges, no_traffic, nothing_served = _Ranges(()), TrafficIndex(), Served()
        policies: tuple[Any, Any, Any] = Groups(RuleGroup()), Groups(Group()), Groups(Group())
        return Snapshot(
            "", 0, MeshConfig(), {}, {}, False, no_ranges, {}, {}, {}, no_traffic, nothing_served, *policies
        )

    def workload_at(self, address: str) -> Workload | None:
        """The workload that has this address."""
        claims = self._workload_claims.get(address)
        return claims[0] if claims else None

    def service_at(self, address: str, port: int) -> tuple[Service, int] | None:
        """The service with this virtual address and port, and the port's index in `Service.ports`."""
        vip = self.vip_at(address, port)
        return (vip.service, vip.port_index) if vip else None

    def vip_at(self, address: str, port: int) -> Vip | None:
        """Like `service_at`, with the endpoints that serve the port."""
        ports = self._vips.get(address)
        return ports.get(port) if ports else None

    def knows_service_address(self, address: str) -> bool:
        """Whether any service has this virtual address, on whatever port."""
        return address in self._vips

    def in_ranges(self, address: str) -> bool:
        """Whether the address belongs to the mesh, known or not. Raises `ValueError` if it is not an address."""
        return self._ranges.contain(address)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """All, by key. O(policies)."""
        return tuple(self._policies)

    @property
    def peer_auths(self) -> tuple[PeerAuth, ...]:
        """The same of these."""
        return tuple(self._peer_auths)

    @property
    def request_auths(self) -> tuple[RequestAuth, ...]:
        """The same of these."""
        return tuple(self._request_auths)

    def policies_of(self, namespace: str, labels: Mapping[str, str]) -> PoliciesOf:
        """Those of all kinds that apply to a workload. O(those that do)."""
        who: dict[str, Any] = {
            "namespace": namespace, "labels": labels, "root_namespace": self.config.root_namespace,
        }  # fmt: skip
        return PoliciesOf(self._policies.of(**who), self._peer_auths.of(**who), self._request_auths.of(**who))

    @property
    def routes(self) -> Mapping[str, Route]:
        """By key, `<kind>/<namespace>/<name>`."""
        return self._traffic.routes

    @property
    def traffic(self) -> Mapping[str, TrafficPolicy]:
        """All traffic policies by key, `<namespace>/<name>`."""
        return self._traffic.policies

    def routes_at(self, service: str, port: int) -> tuple[Route, ...]:
        """The routes attached to that port of a service (by key), those of all namespaces, older ones first.

        The same tuple in every later snapshot, as long as none of them changes.
        """
        return self._traffic.routes_at(service, port)

    def traffic_policy(self, service: str) -> TrafficPolicy | None:
        """The one that holds for a service (by key)."""
        return self._traffic.policy_of(service)

    def version_of(self, uid: str) -> str:
        """Of a workload; `""` if it is not known."""
        workload = self.workloads.get(uid)
        return workload.version if workload is not None else ""

    def split_at(self, vip: Vip) -> Split | None:
        """How its connections are split by version; None if they are not."""
        if not self._traffic.versioned or (service := vip.service.key) not in self._traffic.versioned:
            return None
        if (split := self._splits.get((service, vip.port_index))) is None:
            policy = self._traffic.policy_of(service)
            assert policy is not None
            split = Split(policy.versions, [(self.version_of(backend[2]), backend) for backend in vip.backends])
            self._splits[service, vip.port_index] = split
        return split

    def shared_limit(self, name: str) -> RateLimit | None:
        """See `TrafficIndex`."""
        return self._traffic.shared_limit(name)

    def count_nodes(self) -> int:
        """How many nodes have workloads in the mesh, at least 1. O(workloads)."""
        return max(len({workload.node for workload in self.workloads.values() if workload.meshed}), 1)

    def protocol_at(self, address: str, port: int) -> str:
        """What an endpoint's target port is declared to speak (`mesh.detect.protocol`); `""` if nobody says."""
        return self._served.protocol_at(address, port)

    def served_by(self, address: str, port: int) -> Service | None:
        """The service that an endpoint's target port belongs to, where that is certain and its protocol declared."""
        return self.services.get(self._served.service_at(address, port))

    def apply(self, update: Update) -> Snapshot:
        """The snapshot after `update`; raises `SnapshotError` if it isn't based on this one or can't be read.

        A delta may name in `removed` what this node never had: the controller folds several changes into one.
        """
        if update.full:
            if not update.has_policies:  # taking it to mean "no policies" would open every workload
                raise SnapshotError(f"full update {update.epoch}/{update.revision} carries no policies (has_policies)")
            before = Snapshot.empty()
        elif not self.ready or (update.epoch, update.base) != (self.epoch, self.revision):
            at = f"{self.epoch}/{self.revision}" if self.ready else "nothing"
            raise SnapshotError(
                f"update to {update.epoch}/{update.revision} is based on {update.epoch}/{update.base}, "
                f"but this node has {at}; it needs a full update"
            )
        else:
            before = self
        gone = _removed(update.removed)
        gone_workloads, gone_services = gone["w"], gone["s"]
        workloads, workload_claims = _changed(
            before.workloads, before._workload_claims, update.workloads, gone_workloads, _workload_key, _precedence
        )
        services, service_claims = _changed(
            before.services, before._service_claims, update.services, gone_services, _service_key, _service_key
        )
        touched = _touched(before.services, update.services, gone_services)
        vips = dict(before._vips) if touched else before._vips
        for address in touched:
            if claims := service_claims.get(address):
                vips[address] = _ports(claims)
            else:
                vips.pop(address, None)
        policies, peer_auths, request_auths = self._policies, self._peer_auths, self._request_auths
        if update.has_policies:  # what is compiled of those that stay the same is kept, also if all else is replaced
            policies = policies.replace(update.policies)
            peer_auths = peer_auths.replace(update.peer_auths)
            request_auths = request_auths.replace(update.request_auths)
        else:
            policies = policies.apply(update.policies, gone["p"])
            peer_auths = peer_auths.apply(update.peer_auths, gone["a"])
            request_auths = request_auths.apply(update.request_auths, gone["q"])
        return Snapshot(
            epoch=update.epoch,
            revision=update.revision,
            config=update.config,
            workloads=workloads,
            services=services,
            ready=True,
            _ranges=self._ranges if update.config.ranges == self.config.ranges else _compiled(update.config.ranges),
            _workload_claims=workload_claims,
            _service_claims=service_claims,
            _vips=vips,
            _traffic=before._traffic.apply(update.routes, update.traffic, gone["r"], gone["t"]),
            _served=before._served.apply(before.services, update.services, gone_services),
            _policies=policies,
            _peer_auths=peer_auths,
            _request_auths=request_auths,
        )

    def leads_as(self, other: Snapshot) -> bool:
        """Whether connections and requests go where they go in another: if so, only policies can differ."""
        return (
            self.workloads is other.workloads
            and self.services is other.services
            and self._traffic is other._traffic
            and self.config == other.config
        )

    def to_update(self) -> Update:
        """All of it as one full update, for the node's disk: `Snapshot.empty().apply(s.to_update())` equals `s`."""
        return Update(
            epoch=self.epoch,
            revision=self.revision,
            base=0,
            full=True,
            config=self.config,
            workloads=tuple(self.workloads.values()),
            services=tuple(self.services.values()),
            has_policies=True,
            policies=self.policies,
            peer_auths=self.peer_auths,
            request_auths=self.request_auths,
            routes=tuple(self.routes.values()),
            traffic=tuple(self.traffic.values()),
        )


def _compiled(ranges: tuple[str, ...]) -> _Ranges:
    try:
        return _Ranges(ranges)
    except ValueError as error:
        raise SnapshotError(f"mesh ranges: {error}") from error


def _removed(names: tuple[str, ...]) -> dict[str, set[str]]:
    gone: dict[str, set[str]] = {kind: set() for kind in "wsrtpaq"}
    for name in names:
        kind, colon, key = name.partition(":")
        if not colon or kind not in gone:
            raise SnapshotError(f"removed: {name[:80]!r} is none of those in mesh.sync.Update")
        gone[kind].add(key)
    return gone


def _workload_key(workload: Workload) -> str:
    return workload.uid


def _service_key(service: Service) -> str:
    return service.key


def _precedence(workload: Workload) -> tuple[bool, str]:
    return not workload.meshed, workload.uid


def _changed(
    before: Mapping[str, _T],
    claims_before: dict[str, tuple[_T, ...]],
    added: tuple[_T, ...],
    gone: set[str],
    key_of: Callable[[_T], str],
    order: Callable[[_T], Any],
) -> tuple[Mapping[str, _T], dict[str, tuple[_T, ...]]]:
    """The objects by key, and by address, after a change. Copies two dicts and touches only what changed."""
    if not added and not gone:
        return before, claims_before
    objects, claims = dict(before), dict(claims_before)

    def forget(key: str) -> None:
        if (old := objects.pop(key, None)) is not None:
            for address in old.addresses:
                if left := tuple([other for other in claims.get(address, ()) if key_of(other) != key]):
                    claims[address] = left
                else:
                    claims.pop(address, None)

    for key in gone:
        forget(key)
    for new in added:
        forget(key_of(new))
        objects[key_of(new)] = new
        for address in new.addresses:
            claims[address] = tuple(sorted([*claims.get(address, ()), new], key=order))
    return objects, claims


def _touched(before: Mapping[str, Service], added: tuple[Service, ...], gone: set[str]) -> set[str]:
    """Virtual addresses whose ports may have changed."""
    touched = {address for service in added for address in service.addresses}
    for key in gone.union(service.key for service in added):
        if (old := before.get(key)) is not None:
            touched.update(old.addresses)
    return touched


def _ports(claims: tuple[Service, ...]) -> dict[int, Vip]:
    ports: dict[int, Vip] = {}
    for service in claims:
        for index, port in enumerate(service.ports):
            if port.port not in ports:
                ports[port.port] = Vip(service, index, _backends(service, index))
    return ports


def _backends(service: Service, index: int) -> tuple[tuple[str, int, str], ...]:
    return tuple(
        (endpoint.address, endpoint.ports[index], endpoint.workload)
        for endpoint in service.endpoints
        if index < len(endpoint.ports) and endpoint.ports[index]
    )
