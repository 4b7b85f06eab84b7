"""`meshctl describe`: one thing, with what the mesh knows around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from controller.cli import columns
from controller.cli.client import Client
from controller.cli.completion import kinds, names, namespaces
from controller.cli.describing_traffic import PARENTS, VERSIONS, parent_rows, policy_holds
from controller.cli.kinds import plural, singular
from controller.cli.resources import split_kind
from mesh.authz.selection import applies
from mesh.model import Action, MeshConfig, MtlsMode, PeerAuth, Policy
from mesh.present import columns as mesh_columns
from mesh.present.failure import Failure
from mesh.present.options import colour, examples
from mesh.present.table import Column, Look, Output, Row, dig, fields, plain, structured
from mesh.present.units import age, stamp


@examples(
    "meshctl describe service web -n shop",
    "meshctl describe workload web -n shop",
    "meshctl describe authorizationpolicy deny-all -n shop",
    "meshctl describe httproute canary -n shop",
    "meshctl describe node node-a",
)
@click.command()
@click.argument("kind", shell_complete=kinds)
@click.argument("name", required=False, shell_complete=names)
@click.option("-n", "--namespace", default="default", show_default=True, shell_complete=namespaces)
@click.pass_obj
def describe(client: Client, kind: str, name: str | None, namespace: str) -> None:
    """Show one resource or node, and what it has to do with."""
    kind, named = split_kind(kind, (name,) if name else ())
    if not named:
        raise click.UsageError("name what to describe: KIND NAME")
    describers: dict[str, Callable[[Client, str, str], list[str]]] = {
        "service": _service,
        "workload": _workload,
        "node": _node,
        "nodes": _node,
    }
    chosen = describers.get(singular(kind))
    blocks = chosen(client, namespace, named[0]) if chosen else _policy(client, kind, namespace, named[0])
    click.echo("\n".join(block for block in blocks if block), nl=False)


def _items(client: Client, path: str) -> list[Row]:
    items: list[Row] = client.get(path)["items"]
    return items


def _find(rows: list[Row], what: str, **wanted: str) -> Row:
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    known = ", ".join(sorted(f"{row.get('namespace', '')}/{row.get('name')}".lstrip("/") for row in rows)[:10])
    raise Failure(f"no {what} {'/'.join(wanted.values())}", f"there are: {known}" if known else "")


def _section(title: str, rows: Sequence[Row], shown: tuple[Column, ...]) -> str:
    look = Look(Output.TABLE, colour=colour())
    if not rows:
        return ""
    body = look.table(rows, shown, time.time())
    return f"{title}:\n" + "".join(f"  {line}\n" for line in body.splitlines())


def _service(client: Client, namespace: str, name: str) -> list[str]:
    service = _find(_items(client, "/v1/services"), "service", namespace=namespace, name=name)
    workloads = {str(row.get("uid")): row for row in _items(client, "/v1/workloads")}
    endpoints = [{**workloads.get(str(one.get("workload")), {}), **one} for one in service.get("endpoints", [])]
    behind = {str(one["workload"]) for one in endpoints}

    def leads_here(row: Row) -> bool:  # the destination's node doesn't see by which service its workload was found
        at_destination = row.get("reporter") == "destination" and not row.get("service")
        return _sides(row)[1] in behind if at_destination else row.get("service") == service.get("hostname")

    pairs = [
        ("Service", f"{namespace}/{name}"),
        ("Host name", str(service.get("hostname", ""))),
        ("Addresses", plain(service.get("addresses"))),
        ("Ports", plain(mesh_columns.port_names(service))),
    ]
    for title, field in (("Routes", "routes"), ("Traffic policy", "traffic_policy")):
        if service.get(field):
            pairs.append((title, plain(service[field])))
    concerned = [workloads[uid] for uid in sorted(behind) if uid in workloads]
    return [
        fields(pairs),
        _section("Endpoints", endpoints, _ENDPOINTS) or "Endpoints: none; a connection to it is refused\n",
        _section("Versions", service.get("versions") or [], VERSIONS),
        _section("Policies on its workloads", _policies_on(client, concerned), _POLICIES),
        _section("Edges", _edges(client, leads_here), columns.EDGES),
    ]


def _workload(client: Client, namespace: str, name: str) -> list[str]:
    workload = _find(_items(client, "/v1/workloads"), "workload", namespace=namespace, name=name)
    uid = f"{namespace}/{name}"
    services = [
        row
        for row in _items(client, "/v1/services")
        if uid in [endpoint.get("workload") for endpoint in row.get("endpoints", [])]
    ]
    pairs = [
        ("Workload", uid),
        ("Node", str(workload.get("node", ""))),
        ("In the mesh", plain(workload.get("meshed"))),
        ("Identity", str(workload.get("identity") or "")),
        ("Addresses", plain(workload.get("addresses"))),
        ("Labels", plain(workload.get("labels"))),
        ("App, version", f"{workload.get('app', '')} {workload.get('version', '')}"),
    ]
    return [
        fields(pairs),
        _section("Services it is behind", services, mesh_columns.SERVICES),
        _section(
            "Policies" if workload.get("meshed") else "Policies (not enforced: it is not in the mesh)",
            _policies_on(client, [workload]),
            _POLICIES,
        ),
        _section("Edges", _edges(client, lambda row: uid in _sides(row)), columns.EDGES),
    ]


def _node(client: Client, namespace: str, name: str) -> list[str]:
    node = _find(_items(client, "/v1/nodes"), "node", name=name)
    now = time.time()
    link = "connected" if node.get("connected") else "disconnected"
    pairs = [
        ("Node", name),
        ("State", link),
        ("Snapshot", columns.sync_state(node)),
        ("Address", str(node.get("address") or "")),
        ("Version", str(node.get("version") or "")),
        ("Last seen", f"{age(now - node['last_seen'])} ago" if node.get("last_seen") else "never"),
        ("Certificate", f"until {stamp(node['certificate_expires'])}" if node.get("certificate_expires") else ""),
    ]
    local = [row for row in _items(client, "/v1/workloads") if row.get("node") == name]
    return [fields(pairs, colour=colour()), _section("Workloads", local, columns.WORKLOADS)]


def _policy(client: Client, kind: str, namespace: str, name: str) -> list[str]:
    resource = client.get(f"/v1/resources/{plural(kind)}/{namespace}/{name}")
    metadata = resource.get("metadata") or {}
    versions: list[Row] = []
    pairs = [
        ("Kind", str(resource.get("kind", ""))),
        ("Name", f"{namespace}/{name}"),
        ("Created", plain(metadata.get("creationTimestamp"))),
        ("Generation", plain(metadata.get("generation"))),
    ]
    for condition in dig(resource, "status.conditions") or []:
        said = str(condition.get("message") or "")
        pairs.append((str(condition.get("type")), f"{condition.get('status')}{f': {said}' if said else ''}"))
    if resource.get("kind") == "TrafficPolicy":
        holds, versions = policy_holds(client, resource)
        pairs.append(("Holds for", holds))
    spec = "Spec:\n" + "".join(f"  {line}\n" for line in structured(resource.get("spec"), Output.YAML).splitlines())
    if resource.get("kind") in ("HTTPRoute", "GRPCRoute"):
        attached = _section("Services", parent_rows(resource), PARENTS)
        return [fields(pairs), spec, attached or "Services: none; the mesh leaves it alone\n"]
    if resource.get("kind") not in _SELECTING:
        return [fields(pairs), spec, _section("Versions", versions, VERSIONS)]
    concerned = [row for row in _items(client, "/v1/workloads") if row.get("meshed") and _applies(resource, row)]
    return [
        fields(pairs),
        spec,
        _section("Applies to", concerned, columns.WORKLOADS) or "Applies to: no workload in the mesh\n",
    ]


def _applies(resource: Row, workload: Row) -> bool:
    """Whether a policy, as stored, concerns a workload."""
    name, namespace = str(dig(resource, "metadata.name")), str(dig(resource, "metadata.namespace"))
    selector = dict(dig(resource, "spec.selector.matchLabels") or {})
    policy: Policy | PeerAuth = Policy(name, namespace, Action.ALLOW, (), selector)
    if resource.get("kind") == "PeerAuthentication":
        policy = PeerAuth(name, namespace, MtlsMode.UNSET, selector)
    return applies(
        policy,
        namespace=str(workload.get("namespace")),
        labels=workload.get("labels") or {},
        root_namespace=MeshConfig().root_namespace,
    )


def _policies_on(client: Client, workloads: list[Row]) -> list[Row]:
    found: list[Row] = []
    for kind in ("authorizationpolicies", "peerauthentications", "requestauthentications"):
        found += [row for row in _items(client, f"/v1/resources/{kind}") if any(_applies(row, w) for w in workloads)]
    return found


def _edges(client: Client, wanted: Callable[[Row], bool]) -> list[Row]:
    return [row for row in _items(client, "/v1/edges") if wanted(row)]


def _sides(row: Row) -> list[str]:
    return [columns.party(row.get("source")), columns.party(row.get("destination"))]


def _effect(row: Row) -> Any:
    return dig(row, "spec.mtls.mode") or columns.action(row)


_SELECTING = ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication")

_ENDPOINTS = (
    Column("ADDRESS", "address"),
    Column("TARGET-PORTS", "ports"),
    Column("WORKLOAD", "workload"),
    Column("NODE", "node"),
    Column("MESHED", "meshed"),
)

_POLICIES = (
    Column("KIND", "kind"),
    Column("NAMESPACE", "metadata.namespace"),
    Column("NAME", "metadata.name"),
    Column("EFFECT", _effect),
)
