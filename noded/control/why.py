"""Why a connection or request was denied, or went where it did: what workers remember, held against the snapshot.

The policies and routes are those of now; where they say other than was said then, that is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from shlex import quote
from typing import Any

import trio

from mesh import explained
from mesh.authz import Authorizer, Peer
from mesh.authz.explain import Case, printable
from mesh.hbone import format_address, parse_address
from mesh.identity import Identity
from mesh.message import CREDENTIALS, Request
from mesh.resolve import resolve
from mesh.route.explain import explain_route
from mesh.snapshot import Snapshot
from noded.control.failure import NotFound
from noded.control.view import Parts

_HIDDEN = {name.decode() for name in CREDENTIALS}
_NOWHERE = format_address("", 0)
_RBAC, _ASKED = "RBAC", "UAEX"
_ALIKE = (
    "kind",
    "direction",
    "workload",
    "source_identity",
    "service",
    "method",
    "code",
    "grpc_status",
    "flags",
    "reason",
    "route",
)
"""What is the same of what is told once."""
_FORBIDDEN = 403


async def rows(parts: Parts) -> list[dict[str, Any]]:
    """`GET /why`: the connections and requests that were denied or failed last, the last first, of those alike one."""
    return together(await parts.workers.query("failed"))


def together(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of workers' rows that say the same of the same client the last, with how many there were and since when."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    counted: dict[tuple[Any, ...], dict[tuple[int, int], tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: float(row["at"])):
        kind = _kind(row)
        last[kind] = shown(row)
        counted.setdefault(kind, {})[row["worker"], row["alike"]] = row["count"], row["first"]
    found = []
    for kind, row in last.items():
        counts = counted[kind].values()
        found.append({**row, "count": sum(count for count, _ in counts), "first": min(first for _, first in counts)})
    return sorted(found, key=lambda row: float(row["at"]), reverse=True)


def _kind(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _ALIKE)


async def why(parts: Parts, wanted: str) -> dict[str, Any]:
    """`GET /why/{id}`. `wanted` is an id of `rows`, of a live connection, or a request's `x-request-id`."""
    failed = await parts.workers.query("failed")
    every = [*failed, *await parts.workers.query("connections")]
    row = next((row for row in every if row.get("id") == wanted or _request_id(row) == wanted), None)
    if row is None:
        raise NotFound(
            f"no connection or request {wanted!r} is remembered",
            "nodectl why lists what was denied or failed, the last of those alike; nodectl connections what is open",
        )
    if "alike" in row:
        (last,) = together(other for other in failed if _kind(other) == _kind(row))
        row = {**row, "count": last["count"], "first": last["first"]}
    enrolled = (local for local in parts.enrolments if local.uid == row["workload"])
    labels = next((local.record.workload.labels for local in enrolled), None)
    # In a thread: with thousands of policies it takes a while, and a snapshot does not change.
    return await trio.to_thread.run_sync(partial(explain, row, parts.state.snapshot, labels))


def _request_id(row: Mapping[str, Any]) -> str:
    return next((value for name, value in row.get("headers", ()) if name == "x-request-id"), "")


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without credentials."""
    row = {name: value for name, value in row.items() if name != "alike"}
    if "headers" not in row:
        return {"kind": "connection", **row}
    headers = [[name, "(hidden)" if name in _HIDDEN else value] for name, value in row["headers"]]
    claims = sorted(json.loads(row["claims"])) if row["claims"] is not None else None
    return {**row, "headers": headers, "claims": [printable(name) for name in claims] if claims is not None else None}


def explain(row: Mapping[str, Any], snapshot: Snapshot, labels: Mapping[str, str] | None) -> dict[str, Any]:
    """All there is to say of a worker's row; `labels` are the local workload's, None if it has left the mesh."""
    notes: list[str] = []
    answer: dict[str, Any] = {"what": shown(row), "verdict": None, "route": None, "target": None, "notes": notes}
    answer["versions"] = []
    request = _request(row) if "method" in row else None
    outbound = row["direction"] == "outbound"
    where = row["destination"] != _NOWHERE if outbound else row["target"]
    if not where:
        notes.append("it ended before it was known where to")
    elif request is not None and not row["whole"]:
        notes.append("its head was too large to be kept: what it held cannot be explained")
    elif outbound:
        if request is not None:
            told = answer["route"] = _route(row, request, snapshot, notes)
            names = [one["service"] for one in told["backends"]] or [row["service"]]
        else:
            answer["target"] = _target(row, snapshot)
            _, port = parse_address(row["destination"])
            names = [f"{answer['target']['service']}:{port}"]
        answer["versions"] = [version for name in names for version in _versions(name, snapshot)]
    elif labels is None:
        notes.append("the workload has left the mesh: nothing is enforced for it here")
    elif row.get("http") and request is None:
        notes.append("it carries requests, each of which is judged: nodectl why has those that were denied")
    else:
        answer["verdict"] = _verdict(row, request, snapshot, labels)
        allowed, denied = answer["verdict"]["allowed"], row.get("flags") == _RBAC
        if row.get("flags") == _ASKED:
            notes.append("who a CUSTOM policy asks was in the way; the other policies, which come after it, say:")
        elif allowed and denied:
            notes.append("the policies have changed since: this is what they say now")
        elif not allowed and not denied and "flags" in row:
            notes.append("it was refused before the policies were asked, or they have changed since")
    return answer


def _request(row: Mapping[str, Any]) -> Request:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in row["headers"]]
    method, authority, path = (row[part].encode("latin-1") for part in ("method", "authority", "path"))
    return Request(method, authority, path, headers)


def _verdict(
    row: Mapping[str, Any], request: Request | None, snapshot: Snapshot, labels: Mapping[str, str]
) -> dict[str, Any]:
    authorizer = Authorizer.of(
        snapshot.policies,
        snapshot.peer_auths,
        namespace=row["workload"].partition("/")[0],
        labels=labels,
        root_namespace=snapshot.config.root_namespace,
    )
    identity = Identity.parse(row["source_identity"]) if row["source_identity"] else None
    client, _ = parse_address(row["source"])
    target, port = parse_address(row["target"])
    claims = json.loads(row["claims"]) if row.get("claims") is not None else None
    return explained.verdict(authorizer, Case.of(Peer(identity, client, target, port), request, claims))


def _route(row: Mapping[str, Any], request: Request, snapshot: Snapshot, notes: list[str]) -> dict[str, Any]:
    service, _, port = row["service"].rpartition(":")
    client = row["workload"].partition("/")[0]
    found = explain_route(snapshot.routes_at(service, int(port)), client, service.partition("/")[0], request)
    told = explained.route(found)
    if (told["route"], told["rule"]) != (row["route"], row["rule"]):
        taken = f"{row['route']} rule {row['rule']}" if row["route"] else "no route"
        because = "that rule's edits are in what is remembered of it" if row["edited"] else "routes have changed since"
        notes.append(f"{taken} took it then; this is what the routes say now: {because}")
    if row["code"] == _FORBIDDEN and row["flags"] == "-":
        notes.append(f"its destination said 403; if by a policy, nodectl why there says by which, or: {_check(row)}")
    return told


def _versions(name: str, snapshot: Snapshot) -> list[dict[str, Any]]:
    """Of a service and its port."""
    key, _, port = name.rpartition(":")
    if (service := snapshot.services.get(key)) is None:
        return []
    return explained.versions(snapshot.traffic_policy(key), service, int(port), snapshot.version_of)


def _check(row: Mapping[str, Any]) -> str:
    """The command that asks the controller."""
    identity = Identity.parse(row["source_identity"]) if row["source_identity"] else None
    client = f"{identity.namespace}/{identity.service_account}" if identity else "-"
    asked = {"from": client, "to": row["service"], "method": row["method"], "path": row["path"]}
    asked["host"] = row["authority"]
    return "meshctl policy check" + "".join(f" --{name} {quote(value)}" for name, value in asked.items())


def _target(row: Mapping[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    """Where a connection's destination leads now."""
    address, port = parse_address(row["destination"])
    found = resolve(snapshot, address, port, 0)
    service = found.service
    endpoints = snapshot.vip_at(address, port)
    return {
        "kind": found.kind.value,
        "reason": found.reason,
        "flags": found.flags,
        "service": service.key if service is not None else "",
        "endpoints": len(endpoints.backends) if endpoints is not None else 0,
        "workload": found.workload.uid if found.workload is not None and service is None else "",
    }
