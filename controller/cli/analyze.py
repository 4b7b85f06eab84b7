"""meshctl analyze: mistakes in resources that are valid one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from controller.cli import manifests
from controller.cli.client import Client
from controller.cli.cluster import ClusterClient
from controller.cli.completion import namespaces
from controller.cli.kinds import PLURALS
from controller.cli.terminal import show
from mesh.present.failure import Exit, Failure
from mesh.present.options import examples, output_options
from mesh.present.table import Look, clean, paint
from mesh.present.units import count

if TYPE_CHECKING:
    from controller.cli.inventory import Found, Objects
    from controller.schema.problem import Problem
    from mesh.analyze import Finding, Inventory, Ref
    from mesh.present.table import Row

_COLLECTIONS = (
    "/api/v1/namespaces",
    "/api/v1/serviceaccounts",
    "/api/v1/services",
    "/api/v1/pods",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/statefulsets",
    "/apis/apps/v1/daemonsets",
    "/apis/apps/v1/replicasets",
    "/apis/batch/v1/jobs",
    "/apis/nodemesh.dev/v1alpha1/workloads",
    "/apis/security.istio.io/v1beta1/authorizationpolicies",
    "/apis/security.istio.io/v1beta1/peerauthentications",
    "/apis/nodemesh.dev/v1alpha1/authorizationpolicies",
    "/apis/nodemesh.dev/v1alpha1/peerauthentications",
    "/apis/security.istio.io/v1beta1/requestauthentications",
    "/apis/nodemesh.dev/v1alpha1/requestauthentications",
    "/apis/nodemesh.dev/v1alpha1/trafficpolicies",
    "/apis/gateway.networking.k8s.io/v1beta1/httproutes",
    "/apis/gateway.networking.k8s.io/v1/httproutes",
    "/apis/gateway.networking.k8s.io/v1alpha2/grpcroutes",
    "/apis/gateway.networking.k8s.io/v1/grpcroutes",
    "/apis/gateway.networking.k8s.io/v1beta1/referencegrants",
    "/apis/gateway.networking.k8s.io/v1/referencegrants",
)
"""What is looked at on a cluster; those it does not have are empty, and what it has in two versions is one object."""


@examples(
    "meshctl analyze shop/*.yaml",
    "meshctl analyze --live",
    "meshctl analyze policy.yaml --live      # as it would be with this file applied",
    "meshctl analyze --live -n shop -o json",
)
@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]…")
@click.option("--live", is_flag=True, help="Look at what is there; files count as if they were applied.")
@click.option("-n", "--namespace", shell_complete=namespaces, help="Show findings on this one only.")
@click.option("--trust-domain", metavar="NAME", help="Of the mesh; without it and --live, principals' are not judged.")
@output_options
@click.pass_context
def analyze(
    context: click.Context,
    look: Look,
    files: tuple[str, ...],
    live: bool,
    namespace: str | None,
    trust_domain: str | None,
) -> None:
    """Find mistakes in resources that are valid one by one.

    Such as a selector that matches nothing, or a rule that can never match. Files may hold anything that kubectl
    takes, also Deployments and Namespaces; a directory stands for its manifests. Without --live the files are taken
    for all there is of the namespaces and kinds they hold. Exits 1 if there is an error; warnings do not count.
    """
    if not files and not live:
        raise click.UsageError("what is to be analysed? Name files, or --live, or both")
    from controller.cli.inventory import Objects  # the schema takes a quarter of a second that --help does not need
    from mesh.analyze import Inventory
    from mesh.analyze import analyze as findings_of

    objects, known = Objects(), Inventory()
    if live:
        found, known = _live(context.obj)
        objects.add(found)
    objects.add_files(manifests.read(files))
    if trust_domain:
        known = replace(known, trust_domain=trust_domain)
    inventory = objects.inventory(known)
    rows = [_problem_row(ref, problem) for ref, problem in objects.problems]
    rows += [_row(objects, finding) for finding in findings_of(inventory)]
    rows.sort(key=lambda row: (row["file"], row["line"], row["column"], row["code"]))
    shown = [row for row in rows if namespace in (None, row["namespace"])]
    if look.tabular:
        _print(shown, objects, colour=look.colour)
    else:
        show(look, {"items": shown}, (), empty="")
    if any(row["severity"] == "error" for row in shown):
        context.exit(Exit.FAILED)


def _live(client: Client) -> tuple[Iterable[Found], Inventory]:
    """All there is: from the cluster's API, or from the controller where it keeps the resources itself."""
    from controller.cli.inventory import Found
    from mesh.analyze import Inventory

    if isinstance(client, ClusterClient):
        found = [Found(value) for path in _COLLECTIONS for value in client.cluster.items(path)]
        known = Inventory(complete=True)
        try:
            return found, _told(client, known)
        except Failure as failure:
            click.echo(
                f"the mesh's settings, and who connects in plaintext, are not known: {failure.message}", err=True
            )
            return found, known
    stored = [row for kind in PLURALS.values() for row in client.get(f"/v1/resources/{kind}")["items"]]
    declared = {(r["metadata"]["namespace"], r["metadata"]["name"]) for r in stored if r["kind"] == "Workload"}
    enrolled = [
        _enrolled(row)
        for row in client.get("/v1/workloads")["items"]
        if (row.get("namespace"), row.get("name")) not in declared
    ]
    return [Found(value) for value in (*stored, *enrolled)], _told(client, Inventory(complete=True))


def _told(client: Client, known: Inventory) -> Inventory:
    """With what only the controller knows."""
    config = client.get("/v1/config")
    providers = {each["name"]: (each["service"], each["port"]) for each in config["providers"]}
    return replace(known, trust_domain=config["trust_domain"], providers=providers, plaintext=_plaintext(client))


def _enrolled(row: Row) -> dict[str, Any]:
    metadata = {"name": row.get("name"), "namespace": row.get("namespace"), "labels": row.get("labels") or {}}
    return {"kind": "Workload", "metadata": metadata, "spec": {"serviceAccount": row.get("service_account")}}


def _plaintext(client: Client) -> dict[str, str]:
    """Who connected in plaintext to what, as the destination's node reported it."""
    seen: dict[str, str] = {}
    for edge in client.get("/v1/edges")["items"]:
        if edge.get("reporter") == "destination" and edge.get("security") == "none" and edge.get("opened"):
            to, source = edge.get("destination") or {}, edge.get("source") or {}
            known = source.get("workload") not in (None, "", "unknown")
            client_name = f"{source.get('namespace')}/{source.get('workload')}" if known else "a client"
            seen.setdefault(f"{to.get('namespace')}/{to.get('workload')}", client_name)
    return seen


def _row(objects: Objects, finding: Finding) -> dict[str, Any]:
    from controller.schema.documents import dotted

    found = objects.found.get(finding.object)
    file, line, column = "", 0, 0
    if found is not None and found.document is not None:
        place = found.document.problem((*found.at, *finding.path), "")
        file, line, column = place.file, place.line, place.column
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "kind": finding.object.kind,
        "namespace": finding.object.namespace,
        "name": finding.object.name,
        "file": file,
        "line": line,
        "column": column,
        "path": dotted(finding.path),
        "message": finding.message,
        "remedy": finding.remedy,
        "documentation": finding.documentation,
    }


def _problem_row(ref: Ref | None, problem: Problem) -> dict[str, Any]:
    return {
        "code": "NM0001",
        "severity": "error",
        "kind": ref.kind if ref else "",
        "namespace": ref.namespace if ref else "",
        "name": ref.name if ref else "",
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.path,
        "message": problem.message,
        "remedy": problem.remedy,
        "documentation": "docs/reference/analyze.md#nm0001",
    }


def _print(rows: list[dict[str, Any]], objects: Objects, *, colour: bool) -> None:
    for row in rows:
        click.echo(_text(row, colour=colour))
    looked = count(len(objects.found), "object")
    by = {severity: sum(row["severity"] == severity for row in rows) for severity in ("error", "warning")}
    summary = f"{count(by['error'], 'error')}, {count(by['warning'], 'warning')}" if rows else "nothing found"
    click.echo(f"{looked}: {summary}", err=True)


def _text(row: Mapping[str, Any], *, colour: bool) -> str:
    where = ":".join(str(part) for part in (row["file"], row["line"], row["column"]) if part)
    name = "/".join(part for part in (row["namespace"], row["name"]) if part)
    head = paint(f"{row['severity']} {row['code']}", colour=colour)
    what = " ".join(part for part in (row["kind"], name) if part)
    rest = clean(": ".join(part for part in (what, row["path"], row["message"]) if part))
    text = (f"{clean(where)}: " if where else "") + f"{head}: {rest}"
    return text + (f"\n    {clean(row['remedy'])}" if row["remedy"] else "")
