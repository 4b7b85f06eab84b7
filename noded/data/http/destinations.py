"""One port of a service as this worker sends to it: its endpoints and what its `TrafficPolicy` keeps count of."""

from __future__ import annotations

import random
import time
from collections.abc import Collection

from mesh.balance import Host, Hosts, VersionedHosts
from mesh.detect import protocol
from mesh.model import Service
from mesh.resolve import NO_ENDPOINT, NO_VERSION
from mesh.retry import Budget
from mesh.route import Router, limits
from mesh.snapshot import Snapshot
from mesh.traffic import LoadBalancing, RetryBudget, Route, TrafficPolicy
from noded.data.http.limiters import Limiters
from noded.data.http.shared import SharedLimits
from noded.data.http.traffic import Traffic
from noded.data.node import Node
from noded.data.timers import Timers

_BALANCING, _BUDGET = LoadBalancing(), RetryBudget()
_SLICE_SECONDS = 0.001


class Destination:
    """Kept as long as the service is; `refresh` before use."""

    def __init__(self, service: Service, port: int, limiters: Limiters, workers: int, timers: Timers) -> None:
        self.service, self.port = service, port
        self._limiters, self._workers, self._timers = limiters, workers, timers
        self.protocol = ""
        """As declared; see `mesh.detect.protocol`."""
        self.policy: TrafficPolicy | None = None
        self.hosts = Hosts(_BALANCING)
        self.budget = Budget(_BUDGET)
        self.limits = limits(None, None)
        """Of requests that no route takes."""
        self.traffic: Traffic | None = None
        self._seen: tuple[object, ...] = ()
        self._hosts_for: tuple[object, ...] = (_BALANCING, None, False)
        self._routers: dict[str, tuple[tuple[Route, ...], Router | None]] = {}

    def refresh(self, snapshot: Snapshot, local: Collection[str], now: float) -> None:
        """Take over what changed. `local` are the uids of this node's workloads."""
        service = snapshot.services[self.service.key]
        policy = snapshot.traffic_policy(service.key)
        weights = policy.versions if policy is not None else {}
        versions = {e.workload: snapshot.version_of(e.workload) for e in service.endpoints} if weights else {}
        seen = (service, policy, versions)
        if self._seen and self._seen[0] is service and self._seen[1] is policy and self._seen[2] == versions:
            return
        if not self._seen or self.policy is not policy:
            balancing = (policy and policy.load_balancing) or _BALANCING
            hosts_for = balancing, policy and policy.outlier_detection, bool(weights)
            if hosts_for != self._hosts_for:  # else who is ejected stays so, and sessions stay where they are
                self._hosts_for = hosts_for
                self.hosts = VersionedHosts(balancing) if weights else Hosts(balancing)
            self.budget = Budget((policy and policy.retry_budget) or _BUDGET, self._workers)
            self.limits = limits(None, policy)
            self.traffic = None
            if policy is not None:
                limiters = self._limiters.of(policy)
                self.traffic = Traffic(policy, self.hosts, self._workers, limiters, self._timers)
            self._routers.clear()
        self._seen, self.service, self.policy = seen, service, policy
        index = next(i for i, port in enumerate(service.ports) if port.port == self.port)
        self.protocol = protocol(service.ports[index])
        if isinstance(self.hosts, VersionedHosts):
            self.hosts.weigh(weights, versions)
        self.hosts.update(
            [(e.address, e.ports[index], e.workload) for e in service.endpoints if e.ports[index]], local, now
        )

    def router(self, snapshot: Snapshot, namespace: str) -> Router | None:
        """The routes that hold for clients of a namespace, compiled; None if there is none."""
        routes = snapshot.routes_at(self.service.key, self.port)
        known = self._routers.get(namespace)
        if known is None or known[0] is not routes:
            known = routes, Router.of(routes, namespace, self.service.namespace, self.policy) if routes else None
            self._routers[namespace] = known
        return known[1]

    @property
    def no_endpoint(self) -> str:
        """Why `pick` finds none, for people."""
        split = self.policy is not None and self.policy.versions
        return NO_VERSION if split and self.service.endpoints else NO_ENDPOINT

    def pick(self, now: float, hash_key: bytes | None, tried: tuple[Host, ...]) -> Host | None:
        """An endpoint, another than those that were tried; if all were, another than the last."""
        host = self.hosts.pick(now, random.random(), hash_key, tried)
        if host in tried:  # the one that fails at once has the fewest requests: it would be chosen again and again
            host = self.hosts.pick(now, random.random(), hash_key, tried[-1:])
        return host


class Destinations:
    """All of this worker, made as they are asked for."""

    def __init__(self, node: Node, timers: Timers) -> None:
        self._node, self._timers = node, timers
        self._all: dict[tuple[str, int], Destination] = {}
        self._revision: Snapshot | None = None
        self._preparing = False
        self.shared_limits = SharedLimits(node, timers)
        self.limiters = Limiters(node.buckets, self.shared_limits)

    def at(self, service: str, port: int) -> Destination | None:
        """That of a service (`<namespace>/<name>`) and its port; None if the mesh has none."""
        snapshot = self._node.snapshot
        if snapshot is not self._revision:
            self._forget(snapshot)
        found = self._all.get((service, port))
        if found is None:
            known = snapshot.services.get(service)
            if known is None or all(p.port != port for p in known.ports):
                return None
            found = self._all[service, port] = Destination(known, port, self.limiters, self._node.workers, self._timers)
            found.refresh(snapshot, self._node.workloads, time.monotonic())
            self._prepare()
        return found

    def all(self) -> Collection[Destination]:
        """Those that were ever asked for."""
        return self._all.values()

    def tick(self, now: float) -> None:
        """Call every 5 s."""
        for destination in self._all.values():
            if destination.traffic is not None:
                destination.traffic.tick(now)

    def _prepare(self) -> None:
        """Build the tables that affinity needs, beside the requests: a slice of one at a time."""
        if not self._preparing:
            self._preparing = True
            self._timers.after(_SLICE_SECONDS, self._slice)

    def _slice(self) -> None:
        self._preparing = False
        if any(destination.hosts.work() for destination in self._all.values()):
            self._prepare()

    def _forget(self, snapshot: Snapshot) -> None:
        """There is a new snapshot: drop what is gone, refresh the rest."""
        before, self._revision = self._revision, snapshot
        if before is not None and snapshot.leads_as(before):
            return
        now = time.monotonic()
        for (key, port), destination in list(self._all.items()):
            service = snapshot.services.get(key)
            if service is None or all(p.port != port for p in service.ports):
                del self._all[key, port]
            else:
                destination.refresh(snapshot, self._node.workloads, now)
        self._prepare()
        self.limiters.forget(snapshot, {service for service, _port in self._all})
