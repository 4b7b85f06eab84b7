"""What nodectl's tables show of each kind of answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mesh.present.table import Column, Row
from mesh.present.units import age, ago, milliseconds, size, stamp, until


def workload_state(row: Row) -> str:
    """`ready`, or `failed: why`."""
    return f"{row.get('state', '-')}: {row['reason']}" if row.get("reason") else str(row.get("state", ""))


def short_identity(uri: Any, now: float = 0) -> str:
    """`shop/web` for `spiffe://cluster.local/ns/shop/sa/web`; anything else as it is."""
    match str(uri).removeprefix("spiffe://").split("/"):
        case [_, "ns", namespace, "sa", account]:
            return f"{namespace}/{account}"
        case [_, "node", node]:
            return f"node {node}"
    return str(uri)


def _peer(row: Row) -> Any:
    outbound = row.get("direction") == "outbound"
    return short_identity(row.get("destination_identity" if outbound else "source_identity") or "")


def _effect(row: Row) -> str:
    effect = str(row.get("action") or row.get("mode") or "")
    return effect + (" (dry-run)" if row.get("dry_run") else "")


def _parents(row: Row) -> list[str]:
    parents = row.get("parents") or []
    return [f"{one['service']}:{one['port']}" if one.get("port") else str(one["service"]) for one in parents]


def _backends(row: Row) -> list[str]:
    found = []
    for one in (one for rule in row.get("rules") or [] for one in rule.get("backends") or []):
        problem = f" ({one['invalid']})" if one.get("invalid") else ""
        found.append(f"{one['service']}:{one['port']}{problem}")
    return list(dict.fromkeys(found))


def _matches(row: Row) -> list[str]:
    found = [match for rule in row.get("rules") or [] for match in rule.get("matches") or []]
    return [" ".join(_match(one)) for one in found]


def _match(one: Row) -> Iterator[str]:
    """As `GET =/exact ?page=2 x-beta~y.*`: `=` what is whole, `~` a regular expression; a prefix has neither."""
    yield one.get("method") or "*"
    yield {"Exact": "=", "RegularExpression": "~"}.get(one.get("compare", ""), "") + str(one.get("path"))
    for sign, clauses in (("?", one.get("query")), ("", one.get("headers"))):
        for clause in clauses or ():
            equals = "~" if clause.get("compare") == "RegularExpression" else "="
            yield f"{sign}{clause['name']}{equals}{clause['value']}"


def _seconds(value: float, now: float = 0) -> str:
    return age(value)


WORKERS = (
    Column("WORKER", "index"),
    Column("PID", "pid", right=True),
    Column("CONNECTIONS", "connections", right=True),
    Column("TUNNELS", "tunnels", right=True),
    Column("RESTARTS", "restarts", right=True),
)

WORKLOADS = (
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("STATE", workload_state, state=True),
    Column("CERTIFICATE", "certificate", state=True),
    Column("SERVICE-ACCOUNT", "service_account"),
    Column("ADDRESSES", "addresses"),
    Column("CONNECTIONS", "connections", right=True),
    Column("LABELS", "labels", wide=True),
    Column("NETNS", "netns", wide=True),
)

POLICIES = (
    Column("KIND", "kind"),
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("EFFECT", _effect),
    Column("RULES", lambda row: len(row["rules"]) if "rules" in row else None, right=True),
    Column("APPLIES-TO", "applies_to"),
    Column("SELECTOR", "selector", wide=True),
)

CERTS = (
    Column("WORKLOAD", lambda row: row.get("uid") or "(node)"),
    Column("IDENTITY", "identity"),
    Column("STATE", "state", state=True),
    Column("EXPIRES-IN", "not_after", until),
    Column("RENEWS-IN", "renew_at", until),
    Column("LAST-ERROR", "last_error"),
    Column("NOT-BEFORE", "not_before", stamp, wide=True),
    Column("NOT-AFTER", "not_after", stamp, wide=True),
    Column("SERIAL", "serial", wide=True),
)

CONNECTIONS = (
    Column("ID", "id", wide=True),
    Column("WORKER", "worker", wide=True),
    Column("DIRECTION", "direction"),
    Column("WORKLOAD", "workload"),
    Column("SOURCE", "source"),
    Column("DESTINATION", "destination"),
    Column("SERVICE", "service", wide=True),
    Column("TARGET", "target", wide=True),
    Column("VIA", "via", state=True),
    Column("PEER", _peer),
    Column("STATE", "state", state=True),
    Column("AGE", "opened_at", ago, right=True),
    Column("RECEIVED", "received", size, right=True),
    Column("SENT", "sent", size, right=True),
    Column("POLICY", "policy", wide=True),
    Column("SOURCE-IDENTITY", "source_identity", wide=True),
    Column("DESTINATION-IDENTITY", "destination_identity", wide=True),
)


def status(row: Row, code: Any) -> str:
    """`503`; of gRPC both statuses: `200/14`."""
    return f"{code}/{row['grpc_status']}" if code and row.get("grpc_status") is not None else str(code or "")


def _asked(row: Row) -> str:
    return f"{row['method']} {row['path']}" if "method" in row else str(row.get("destination", ""))


FAILED = (
    Column("ID", "id"),
    Column("AGE", "at", ago, right=True),
    Column("COUNT", "count", right=True),
    Column("FIRST", "first", ago, right=True),
    Column("DIRECTION", "direction"),
    Column("WORKLOAD", "workload"),
    Column("CLIENT", lambda row: short_identity(row.get("source_identity") or "") or row.get("source")),
    Column("ASKED", _asked),
    Column("CODE", lambda row: status(row, row.get("code")), right=True),
    Column("FLAGS", "flags"),
    Column("REASON", "reason"),
    Column("SOURCE", "source", wide=True),
    Column("SERVICE", "service", wide=True),
    Column("TARGET", "target", wide=True),
    Column("ROUTE", "route", wide=True),
)

TUNNELS = (
    Column("WORKER", "worker", wide=True),
    Column("DIRECTION", "direction"),
    Column("WORKLOAD", "workload"),
    Column("PEER", "peer"),
    Column("PEER-IDENTITY", lambda row: short_identity(row.get("peer_identity") or "")),
    Column("STATE", "state", state=True),
    Column("STREAMS", "streams", right=True),
    Column("AGE", "opened_at", ago, right=True),
    Column("RECEIVED", "received", size, right=True),
    Column("SENT", "sent", size, right=True),
    Column("LOCAL-IDENTITY", "local_identity", wide=True),
    Column("FULL-PEER-IDENTITY", "peer_identity", wide=True),
)

REQUESTS = (
    Column("ID", "id"),
    Column("TIME", "time"),
    Column("DIRECTION", "direction", wide=True),
    Column("WORKLOAD", "workload"),
    Column("METHOD", "method"),
    Column("AUTHORITY", "authority"),
    Column("PATH", "path"),
    Column("CODE", lambda row: status(row, row.get("response_code")), right=True),
    Column("FLAGS", "response_flags"),
    Column("MS", "duration", right=True),
    Column("RECEIVED", "bytes_received", size, right=True, wide=True),
    Column("SENT", "bytes_sent", size, right=True, wide=True),
    Column("UPSTREAM", "upstream_host"),
    Column("ROUTE", "route_name", wide=True),
    Column("SECURITY", "security", state=True, wide=True),
    Column("POLICY", "policy", wide=True),
    Column("REASON", "reason", wide=True),
    Column("REQUEST-ID", "request_id", wide=True),
)

ROUTES = (
    Column("KIND", "kind"),
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("SERVICES", _parents),
    Column("RULES", lambda row: len(row.get("rules") or []), right=True),
    Column("BACKENDS", _backends),
    Column("MATCHES", _matches, wide=True),
)


def _endpoint_state(row: Row) -> str:
    if not row.get("workers"):
        return "unused"
    return "ejected" if row.get("ejected_seconds") else "healthy"


def _version_share(row: Row) -> str | None:
    share = row.get("version_share")
    return None if share is None else f"{share * 100:.3g}%"


ENDPOINTS = (
    Column("SERVICE", "service"),
    Column("PORT", "port", right=True),
    Column("ADDRESS", lambda row: f"{row.get('address')}:{row.get('target_port')}"),
    Column("WORKLOAD", "workload"),
    Column("VERSION", "version"),
    Column("SHARE", _version_share, right=True),
    Column("STATE", _endpoint_state, state=True),
    Column("ACTIVE", "active", right=True),
    Column("LATENCY", lambda row: row.get("ewma_ms") or None, milliseconds, right=True),
    Column("ERRORS", "consecutive_errors", right=True),
    Column("EJECTED-FOR", lambda row: row.get("ejected_seconds") or None, _seconds, right=True, wide=True),
    Column("LOCAL", "local", wide=True),
)

CAPTURE = (
    Column("WORKLOAD", "uid"),
    Column("INSTALLED", "installed", state=True),
    Column("DRIFT", lambda row: len(row.get("drift") or []), right=True),
    Column("RULES", lambda row: len(row.get("rules") or []) or None, right=True),
)
