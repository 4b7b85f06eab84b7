"""meshctl's commands that look at the running mesh."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import click

from controller.cli import columns
from controller.cli.client import Client
from controller.cli.completion import identities, namespaces, service_ports
from controller.cli.rotate import rotate
from controller.cli.terminal import show, watch
from mesh.present import columns as mesh_columns
from mesh.present.failure import Exit, Failure
from mesh.present.options import examples, output_options, watch_options
from mesh.present.table import Look, Output, Row, clean, dig, fields
from mesh.present.units import count
from mesh.present.watch import Watch
from mesh.present.why import route_lines, verdict_lines, version_lines


def within_namespace(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--namespace`, and `--all-namespaces` for those whom kubectl taught to ask for all."""

    @click.option("-n", "--namespace", shell_complete=namespaces, help="Only this one.")
    @click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="All; the default.")
    @functools.wraps(command)
    def within(*args: Any, namespace: str | None, everywhere: bool, **options: Any) -> None:
        if namespace and everywhere:
            raise click.UsageError("-n and -A contradict each other")
        command(*args, namespace=namespace, **options)

    return within


@examples("meshctl nodes", "meshctl nodes -o wide")
@click.command()
@output_options
@click.pass_obj
def nodes(client: Client, look: Look) -> None:
    """List nodes, and whether each has the latest snapshot."""
    empty = "No node has joined. `meshctl token create --help` shows how one may."
    show(look, client.get("/v1/nodes"), columns.NODES, empty=empty)


@examples("meshctl workloads", "meshctl workloads -n shop -o wide")
@click.command()
@within_namespace
@output_options
@click.pass_obj
def workloads(client: Client, look: Look, namespace: str | None) -> None:
    """List workloads: those that nodes enrolled and those declared."""
    show(look, _within(client.get("/v1/workloads"), namespace), columns.WORKLOADS, empty="No workload.")


@examples("meshctl services", "meshctl services -n shop -o wide")
@click.command()
@within_namespace
@output_options
@click.pass_obj
def services(client: Client, look: Look, namespace: str | None) -> None:
    """List services with their addresses and endpoints."""
    show(look, _within(client.get("/v1/services"), namespace), mesh_columns.SERVICES, empty="No service.")


def _within(answer: Any, namespace: str | None) -> Any:
    if namespace is None:
        return answer
    return {"items": [row for row in answer["items"] if row.get("namespace") == namespace]}


@examples(
    "meshctl edges",
    "meshctl edges -n shop --watch",
    "meshctl edges -o json | jq '.items[] | select(.denied > 0)'",
)
@click.command()
@within_namespace
@watch_options
@output_options
@click.pass_obj
def edges(client: Client, look: Look, namespace: str | None, watching: bool, interval: float) -> None:
    """Show who talks to whom, as nodes report it.

    An edge inside the mesh is reported twice: by its source's node and by its destination's. On a terminal --watch
    redraws the table; elsewhere it prints a line for each edge that is new or changed.
    """

    def fetch() -> Sequence[Row]:
        items: list[Row] = client.get("/v1/edges")["items"]
        sides = ("source.namespace", "destination.namespace")
        wanted = [row for row in items if namespace is None or namespace in [dig(row, side) for side in sides]]
        return sorted(wanted, key=_edge_place)

    if not watching:
        where = f" in namespace {namespace}" if namespace else ""
        empty = f"No connection was seen{where} since the controller started."
        show(look, {"items": fetch()}, columns.EDGES, empty=empty)
        return
    view = Watch.of(look, (*columns.EDGES, *mesh_columns.RATES), _edge_key, rates=("received", "sent"))
    watch(fetch, view, interval=interval, title="meshctl edges" + (f" -n {namespace}" if namespace else ""))


def _edge_place(row: Row) -> tuple[str | bool, ...]:
    ends = columns.party(row.get("source")), columns.party(row.get("destination")), str(row.get("service"))
    return (*ends, row.get("reporter") != "source", str(row.get("security")), str(row.get("flags")))


def _edge_key(row: Row) -> tuple[str, ...]:
    sides = [str(sorted((row.get(side) or {}).items())) for side in ("source", "destination")]
    return (*(str(row.get(name)) for name in ("reporter", "service", "security", "flags")), *sides)


@click.group()
def policy() -> None:
    """Ask what the policies would decide."""


_REQUEST = ("method", "path", "host", "headers", "claims", "token")
_LONGEST_TOKEN = 65_536


@examples(
    "meshctl policy check --from shop/client --to shop/web:80",
    "meshctl policy check --from shop/client --to shop/web:80 --method PUT --path /admin/users",
    "meshctl policy check --from shop/client --to shop/web:80 --header 'x-canary: yes' --path /cart",
    """meshctl policy check --from shop/app --to shop/web:80 --jwt-claims '{"iss": "https://issuer", "sub": "me"}'""",
    "meshctl policy check --from shop/app --to shop/web:80 --token token.jwt",
    "meshctl policy check --from - --to shop/web:80     # from outside the mesh",
    "meshctl policy check --from shop/client --to shop/web:80 --address 10.77.1.2 -o json",
)
@policy.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="NS/SA",
    shell_complete=identities,
    help="Who asks; - for a client outside the mesh.",
)
@click.option(
    "--to", "target", required=True, metavar="NS/SERVICE:PORT", shell_complete=service_ports, help="What is asked for."
)
@click.option("--address", help="The client's address, for policies with ipBlocks.")
@click.option("--method", help="Ask about a request with this method; GET if anything else of one is given.")
@click.option("--path", help="Its path, with the query; / by default.")
@click.option("--host", help="Its host; the service's name by default.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="One of its headers. Repeatable.")
@click.option("--jwt-claims", "claims", metavar="JSON", help="What its token says, taken as valid.")
@click.option(
    "--token",
    type=click.File(),
    metavar="FILE",
    help="A token (JWT) that it carries, checked as RequestAuthentications ask; - for standard input.",
)
@output_options
@click.pass_context
def check(
    context: click.Context,
    /,
    look: Look,
    source: str,
    target: str,
    address: str | None,
    headers: tuple[str, ...],
    token: TextIO | None,
    **request: str | None,
) -> None:
    """Say whether a connection or request would be allowed.

    A request goes the way that the routes send it, and is judged there; by which rule and why, is said clause by
    clause, and what would turn the verdict round. Of a connection -o wide says it. Exits 1 if any endpoint would
    refuse, or no route matches.
    """
    if source != "-" and source.count("/") != 1:
        raise click.BadParameter(f"{source!r} is not NAMESPACE/SERVICE-ACCOUNT", param_hint="--from")
    name, _, port = target.rpartition(":")
    if name.count("/") != 1 or not port:
        raise click.BadParameter(f"{target!r} is not NAMESPACE/SERVICE:PORT", param_hint="--to")
    for header in headers:
        if ":" not in header or "\n" in header:
            raise click.BadParameter(f"{header!r} is not 'NAME: VALUE'", param_hint="--header")
    if token is not None and request["claims"]:
        raise click.UsageError("a request has one token: --token or --jwt-claims")
    given = {"address": address, "headers": "\n".join(headers), **request, "token": token and _token(token)}
    query = {"from": source, "to": target} | {key: value for key, value in given.items() if value}
    client: Client = context.obj
    if token is None:
        answer = client.get("/v1/policy-check", **query)
    else:  # not where an address is written down
        answer = client.send("POST", "/v1/policy-check", query, doing="waiting for the controller")
    route = answer.get("route")
    if not answer["items"] and not route:
        raise Failure(f"{target} has no endpoint to connect to", f"meshctl describe service {name}")
    show(look, answer, columns.CHECK, empty="no endpoint is asked")
    if look.tabular:
        _tell(answer, why=look.output is Output.WIDE or any(query.get(key) for key in _REQUEST))
    refused = not all(row.get("allowed") for row in answer["items"])
    if refused or (route and route.get("steps") and not route.get("route")):
        context.exit(Exit.FAILED)


def _token(file: TextIO) -> str:
    try:
        text = file.read(_LONGEST_TOKEN).strip()
    except UnicodeDecodeError:
        text = ""
    text = text.removeprefix("Bearer ").strip()
    if not text.isascii() or not text or len(text.split()) != 1:
        raise click.BadParameter(f"{file.name} holds no token", param_hint="--token")
    return text


def _tell(answer: dict[str, Any], *, why: bool) -> None:
    """After the table: which way the request goes, and of endpoints with one explanation each explanation once."""
    rows = answer["items"]
    for note in dict.fromkeys(row.get("note") for row in rows if row.get("note")):
        click.echo(f"note: {note}", err=True)
    if versions := answer.get("versions"):
        click.echo("\n" + "\n".join(version_lines(versions)))
    if not why:
        return
    if route := answer.get("route"):
        click.echo("\n" + "\n".join(route_lines(route)))
    together: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("why"):
            together.setdefault("\n".join(verdict_lines(row["why"])), []).append(row)
    for text, those in together.items():
        click.echo(f"\n{', '.join(clean(str(row.get('workload'))) for row in those)}: {text}")


@examples("meshctl ca", "meshctl ca -o pem > roots.pem")
@click.group(invoke_without_command=True)
@click.option("-o", "--output", type=click.Choice(["table", "wide", "pem", "json", "yaml"]), default="table")
@click.pass_context
def ca(context: click.Context, output: str) -> None:
    """Show the certificate authority's roots, or rotate them."""
    if context.invoked_subcommand is not None:
        return
    client: Client = context.obj
    answer = client.get("/v1/ca")
    if output == "pem":
        click.echo("".join(str(root["pem"]).rstrip() + "\n" for root in answer["roots"]), nl=False)
        return
    look = Look(Output(output))
    if not look.tabular:
        show(look, answer, (), empty="")
        return
    pairs = [
        ("Trust domain", str(answer.get("trust_domain", ""))),
        ("Issued", f"{count(answer.get('issued', 0), 'certificate')} since it started"),
        ("Life", f"{answer.get('workload_certificate_hours')}h for a workload"),
    ]
    click.echo(fields(pairs) + "\n", nl=False)
    click.echo(look.table(answer.get("roots", []), columns.ROOTS, time.time()), nl=False)


ca.add_command(rotate)
