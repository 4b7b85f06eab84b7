"""What the control process knows, as the JSON that docs/reference/http-api.md promises."""

from __future__ import annotations

import dataclasses
import enum
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh import explained
from mesh.authz.selection import applies
from mesh.detect import protocol
from mesh.model import Endpoint, PeerAuth, Policy, RequestAuth, Service
from mesh.snapshot import Snapshot
from noded.config import Config
from noded.control import metrics
from noded.control.certs import Certificates
from noded.control.enrolment import Enrolments, Local
from noded.control.spans import Exporter
from noded.control.state import State
from noded.control.supervise import Workers
from noded.control.syncer import Syncer
from noded.control.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Parts:
    """The objects that the composition root has built and that the admin API is about."""

    config: Config
    version: str
    started: float
    """Unix seconds."""
    state: State
    workers: Workers
    certs: Certificates
    syncer: Syncer
    enrolments: Enrolments
    telemetry: Telemetry
    exporter: Exporter | None
    """Of spans, if there is a collector."""
    drain: Callable[[float], None]
    """Have the daemon stop, its connections given so many seconds."""


def plain(value: Any) -> Any:
    """A dataclass of `mesh.model` as JSON-able values."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def status(parts: Parts) -> dict[str, Any]:
    """`GET /status`."""
    config, snapshot, controller = parts.config, parts.state.snapshot, parts.syncer.status
    return {
        "node": config.node,
        "version": parts.version,
        "pid": os.getpid(),
        "uptime_seconds": time.time() - parts.started,
        "controller": {
            "address": config.as_json()["controller"]["address"],
            "connected": controller.connected,
            "since": controller.since,
            "last_error": controller.last_error,
        },
        "snapshot": {
            "epoch": snapshot.epoch,
            "revision": snapshot.revision,
            "workloads": len(snapshot.workloads),
            "services": len(snapshot.services),
            "policies": len(snapshot.policies) + len(snapshot.peer_auths) + len(snapshot.request_auths),
            "age_seconds": time.time() - parts.state.applied_at if snapshot.ready else None,
        },
        "workers": parts.workers.rows(),
        "workloads": len(parts.enrolments),
        "draining": parts.workers.draining,
        "log_level": parts.workers.log_level,
        "access_log": config.access_log,
    }


async def workloads(parts: Parts) -> list[dict[str, Any]]:
    """`GET /workloads`."""
    connections: dict[str, int] = {}
    for row in await parts.workers.query("connections"):
        connections[row["workload"]] = connections.get(row["workload"], 0) + 1
    return [workload(parts, local, connections.get(local.uid, 0)) for local in parts.enrolments]


def workload(parts: Parts, local: Local, connections: int = 0) -> dict[str, Any]:
    """One local workload."""
    enrolment = local.record.workload
    certificate = parts.certs.state(local.uid)
    return {
        **plain(enrolment),
        "uid": local.uid,
        "netns": local.record.netns,
        "state": local.state.value,
        "reason": local.reason,
        "certificate": "none" if certificate == "expired" else certificate,
        "connections": connections,
    }


_KINDS = {Policy: "AuthorizationPolicy", PeerAuth: "PeerAuthentication", RequestAuth: "RequestAuthentication"}


def policies(parts: Parts) -> list[dict[str, Any]]:
    """`GET /mesh/policies`."""
    snapshot = parts.state.snapshot
    everything: tuple[Policy | PeerAuth | RequestAuth, ...] = (
        *snapshot.policies,
        *snapshot.peer_auths,
        *snapshot.request_auths,
    )
    rows = []
    for policy in everything:
        kind = _KINDS[type(policy)]
        applies_to = [
            local.uid
            for local in parts.enrolments
            if applies(
                policy,
                namespace=local.record.workload.namespace,
                labels=local.record.workload.labels,
                root_namespace=snapshot.config.root_namespace,
            )
        ]
        rows.append({"kind": kind, **plain(policy), "applies_to": applies_to})
    return sorted(rows, key=lambda row: (row["kind"], row["namespace"], row["name"]))


def endpoints(
    rows: Iterable[dict[str, Any]], snapshot: Snapshot, local: Collection[str], wanted: str | None = None
) -> list[dict[str, Any]]:
    """`GET /endpoints`: what the workers see of each, as one. Their latencies are averaged.

    With those that no worker has had to do with yet. `local` are the uids of this node's workloads; `wanted` is a
    service, None for all of them.
    `version_share` is what all endpoints of the same version get together, None where requests are not split.
    """
    found: dict[tuple[str, int, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if wanted in (None, row["service"]):
            found.setdefault((row["service"], row["port"], row["address"], row["target_port"]), []).append(row)
    merged = [
        _unused(service, port.port, endpoint, target, local)
        for service in snapshot.services.values()
        if wanted in (None, service.key)
        for index, port in enumerate(service.ports)
        if protocol(port) != "tcp"
        for endpoint in service.endpoints
        if (target := endpoint.ports[index]) and (service.key, port.port, endpoint.address, target) not in found
    ]
    for row in merged:
        row["version_share"] = _share(row, snapshot)
    for seen in found.values():
        used = [row["ewma_ms"] for row in seen if row["ewma_ms"]]
        merged.append(
            {
                **{name: value for name, value in seen[0].items() if name != "worker"},
                "active": sum(row["active"] for row in seen),
                "ejected_seconds": max(row["ejected_seconds"] for row in seen),
                "ejected_by": sum(row["ejected_seconds"] > 0 for row in seen),
                "ewma_ms": sum(used) / len(used) if used else 0.0,
                "consecutive_errors": max(row["consecutive_errors"] for row in seen),
                "workers": len(seen),
            }
        )
    for row in merged:
        row["version"] = snapshot.version_of(row["workload"])
    return sorted(merged, key=lambda row: (row["service"], row["port"], row["address"], row["target_port"]))


def _share(row: Mapping[str, Any], snapshot: Snapshot) -> float | None:
    """Of the version of an endpoint that no worker sends to: the policy's, or nothing."""
    service, version = snapshot.services[row["service"]], snapshot.version_of(row["workload"])
    split = explained.versions(snapshot.traffic_policy(service.key), service, row["port"], snapshot.version_of)
    return next((one["share"] for one in split if one["version"] == version), 0.0) if split else None


def _unused(service: Service, port: int, endpoint: Endpoint, target: int, local: Collection[str]) -> dict[str, Any]:
    return {
        "service": service.key,
        "port": port,
        "address": endpoint.address,
        "target_port": target,
        "workload": endpoint.workload,
        "local": endpoint.workload in local,
        "active": 0,
        "ejected_seconds": 0.0,
        "ejected_by": 0,
        "ewma_ms": 0.0,
        "consecutive_errors": 0,
        "workers": 0,
    }


def gauges(parts: Parts) -> metrics.Gauges:
    """What `GET /metrics` shows of the daemon itself."""
    states: dict[str, int] = {}
    for local in parts.enrolments:
        states[local.state.value] = states.get(local.state.value, 0) + 1
    return metrics.Gauges(
        version=parts.version,
        node=parts.config.node,
        cluster=parts.state.snapshot.config.cluster,
        workloads=states,
        revision=parts.state.snapshot.revision,
        snapshot_at=parts.state.applied_at,
        connected=parts.syncer.status.connected,
        restarts={row["index"]: row["restarts"] for row in parts.workers.rows()},
        certificates={row["uid"]: row["not_after"] for row in parts.certs.rows() if row["not_after"]},
    )
