"""What meshctl's tables show of each kind of answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.present import columns as mesh_columns
from mesh.present.table import Column, Row, dig, plain
from mesh.present.units import ago, milliseconds, per_second, share, size, stamp, until


def sync_state(row: Row) -> str:
    """Whether a node has what the controller sent: `in-step`, `2 behind`, `rejected: why`, or `unknown` when away."""
    if not row.get("connected"):
        return "unknown"
    if row.get("last_nack"):
        return f"rejected: {plain(row['last_nack'])}"
    if row.get("acked_revision") is None or row.get("revision") is None:
        return "pending"
    behind = int(row["revision"]) - int(row["acked_revision"])
    return "in-step" if behind <= 0 else f"pending ({behind} behind)"


def party(side: Any) -> str:
    """`namespace/workload` of one side of an edge, or what is known of it."""
    if not isinstance(side, Mapping):
        return ""
    parts = [str(side.get(name) or "unknown") for name in ("namespace", "workload")]
    return "unknown" if parts == ["unknown", "unknown"] else "/".join(parts)


def _spec_ports(row: Row) -> list[str]:
    return [f"{port.get('name') or '-'}:{port.get('port')}" for port in dig(row, "spec.ports") or []]


def _rule_count(row: Row) -> int:
    return len(dig(row, "spec.rules") or [])


def action(row: Row) -> str:
    """What an AuthorizationPolicy does, `(dry-run)` if only in the log."""
    annotations = dig(row, "metadata.annotations") or {}
    dry_run = str(annotations.get("istio.io/dry-run", "")).lower() == "true"
    return f"{dig(row, 'spec.action') or 'ALLOW'}{' (dry-run)' if dry_run else ''}"


def parents(row: Row) -> list[str]:
    """The Services that a route is for, `namespace/name[:port]`."""
    return [parent(row, each) for each in dig(row, "spec.parentRefs") or [] if each.get("kind") == "Service"]


def parent(row: Row, reference: Mapping[str, Any]) -> str:
    """One of a route's."""
    name = f"{reference.get('namespace') or dig(row, 'metadata.namespace')}/{reference.get('name')}"
    port = reference.get("port") or reference.get("sectionName")
    return f"{name}:{port}" if port else name


def said(row: Row, kind: str) -> str:
    """Of a route: a condition's status for all of its parents, with the first reason against it."""
    found = [c for entry in dig(row, "status.parents") or [] for c in entry["conditions"] if c["type"] == kind]
    bad = [c for c in found if c["status"] != "True"]
    return f"no ({bad[0]['reason']})" if bad else "yes" if found else "-"


def _succeeded(row: Row) -> float | None:
    return 1 - row.get("recent_failed", 0) / row["recent"] if row.get("recent") else None


NODES = (
    Column("NAME", "name"),
    Column("STATE", lambda row: "connected" if row.get("connected") else "disconnected", state=True),
    Column("SNAPSHOT", sync_state, state=True),
    Column("WORKLOADS", "workloads", right=True),
    Column("ADDRESS", "address"),
    Column("VERSION", "version"),
    Column("LAST-SEEN", "last_seen", ago, right=True),
    Column("CERTIFICATE-EXPIRES", "certificate_expires", until, right=True),
    Column("SINCE", "since", ago, right=True, wide=True),
    Column("REVISION", "revision", right=True, wide=True),
    Column("ACKED", "acked_revision", right=True, wide=True),
)

WORKLOADS = (*mesh_columns.WORKLOADS, Column("LABELS", "labels", wide=True), Column("IDENTITY", "identity", wide=True))

EDGES = (
    Column("SOURCE", lambda row: party(row.get("source"))),
    Column("DESTINATION", lambda row: party(row.get("destination"))),
    Column("SERVICE", "service", wide=True),
    Column("REPORTER", "reporter"),
    Column("SECURITY", "security", state=True),
    Column("FLAGS", "flags"),
    Column("OPEN", "open", right=True),
    Column("OPENED", "opened", right=True),
    Column("FAILED", "failed", right=True),
    Column("DENIED", "denied", right=True),
    Column("RECEIVED", "received", size, right=True),
    Column("SENT", "sent", size, right=True),
    Column("REQUESTS", lambda row: row.get("requests") or None, right=True),
    Column("REQUESTS/S", lambda row: row.get("rate") or None, per_second, right=True),
    Column("SUCCESS", _succeeded, share, right=True),
    Column("LAST-SEEN", "last_seen", ago, right=True),
    Column("FIRST-SEEN", "first_seen", ago, right=True, wide=True),
    Column("SOURCE-PRINCIPAL", "source.principal", wide=True),
    Column("DESTINATION-PRINCIPAL", "destination.principal", wide=True),
)

_FARE = (
    Column("REQUESTS/S", "rate", per_second, right=True),
    Column("SUCCESS", "success", share, right=True),
    Column("P50", "p50", milliseconds, right=True),
    Column("P95", "p95", milliseconds, right=True),
    Column("P99", "p99", milliseconds, right=True),
    Column("REQUESTS", "requests", right=True),
    Column("LAST-SEEN", "last_seen", ago, right=True),
    Column("FAILED", "failed", right=True, wide=True),
)
REQUESTS = {
    "services": (Column("SERVICE", "service"), *_FARE),
    "routes": (Column("KIND", "kind"), Column("ROUTE", "route"), Column("SERVICE", "service"), *_FARE),
    "edges": (
        Column("SOURCE", "source"),
        Column("DESTINATION", "destination"),
        Column("SERVICE", "service"),
        Column("SECURITY", "security", state=True, wide=True),
        *_FARE,
    ),
}

CHECK = (
    Column("WORKLOAD", "workload"),
    Column("PORT", "port", right=True),
    Column("VERDICT", lambda row: "allowed" if row.get("allowed") else "denied", state=True),
    Column("POLICY", "policy"),
    Column("RULE", lambda row: None if row.get("rule", -1) == -1 else row["rule"], right=True),
    Column("MTLS", "mtls_mode"),
    Column("REASON", "reason"),
    Column("DRY-RUN", "dry_run", wide=True),
)

TOKENS = (
    Column("ID", "id"),
    Column("ALLOW", "allow"),
    Column("NODE", "node"),
    Column("USES", "uses", right=True),
    Column("EXPIRES-IN", lambda row: row.get("expires"), until, right=True),
    Column("DESCRIPTION", "description"),
)

ROOTS = (
    Column("SUBJECT", "subject"),
    Column("SHA256", "sha256"),
    Column("EXPIRES-IN", "not_after", until),
    Column("NOT-BEFORE", "not_before", stamp, wide=True),
    Column("NOT-AFTER", "not_after", stamp, wide=True),
    Column("SERIAL", "serial", wide=True),
)

RESULTS = (
    Column("KIND", "kind"),
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("RESULT", "result", state=True),
    Column("FILE", lambda row: f"{row.get('file')}:{row.get('line')}", wide=True),
)

_NAME = (Column("NAMESPACE", "metadata.namespace"), Column("NAME", "metadata.name"))
_END = (
    Column("AGE", "metadata.creationTimestamp", ago, right=True),
    Column("VERSION", "metadata.resourceVersion", right=True, wide=True),
    Column("LABELS", "metadata.labels", wide=True),
)
_SELECTOR = Column("SELECTOR", "spec.selector.matchLabels", wide=True)
_ROUTE = (
    *_NAME,
    Column("SERVICES", parents),
    Column("RULES", _rule_count, right=True),
    Column("ACCEPTED", lambda row: said(row, "Accepted")),
    Column("RESOLVED", lambda row: said(row, "ResolvedRefs")),
    *_END,
)

RESOURCES = {
    "service": (
        *_NAME,
        Column("CLUSTER-IP", "spec.clusterIP"),
        Column("PORTS", _spec_ports),
        Column("SELECTOR", "spec.selector"),
        *_END,
    ),
    "workload": (
        *_NAME,
        Column("SERVICE-ACCOUNT", "spec.serviceAccount"),
        Column("ADDRESSES", lambda row: dig(row, "spec.addresses") or dig(row, "spec.address")),
        Column("NODE", "spec.node"),
        *_END,
    ),
    "authorizationpolicy": (
        *_NAME,
        Column("ACTION", action),
        Column("RULES", _rule_count, right=True),
        _SELECTOR,
        *_END,
    ),
    "peerauthentication": (*_NAME, Column("MODE", "spec.mtls.mode"), _SELECTOR, *_END),
    "httproute": _ROUTE,
    "grpcroute": _ROUTE,
    "trafficpolicy": (
        *_NAME,
        Column("SERVICE", "spec.targetRef.name"),
        Column("VERSIONS", "spec.versions"),
        Column("BALANCING", "spec.loadBalancing.policy"),
        Column("TIMEOUT", "spec.timeout"),
        *_END,
    ),
}
OTHER_RESOURCES = (*_NAME, *_END)
