"""nodectl's commands that only look."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh.present import columns as mesh_columns
from mesh.present.failure import Exit
from mesh.present.options import examples, output_options, watch_options
from mesh.present.table import Look, Output, fields, structured, table
from mesh.present.units import age, ago, count
from mesh.present.watch import Watch
from noded.control.cli import columns
from noded.control.cli.client import Client
from noded.control.cli.completion import workload_option
from noded.control.cli.terminal import show, watch


@examples(
    "nodectl status",
    "nodectl status -o json | jq .snapshot.revision",
)
@click.command()
@output_options
@click.pass_obj
def status(client: Client, look: Look) -> None:
    """Show this node's controller, snapshot and workers."""
    answer, now = client.get("/status"), time.time()
    if not look.tabular:
        click.echo(structured(answer, look.output), nl=False)
        return
    controller, snapshot = answer.get("controller") or {}, answer.get("snapshot") or {}
    pairs = [
        ("Node", str(answer.get("node", ""))),
        ("Version", f"{answer.get('version')} (pid {answer.get('pid')}, up {age(answer.get('uptime_seconds') or 0)})"),
        ("Controller", _link(controller, now)),
        ("Snapshot", _snapshot(snapshot)),
        ("Workloads", f"{answer.get('workloads', 0)} enrolled here"),
        ("State", _state(answer)),
        ("Log level", str(answer.get("log_level", ""))),
        ("Access log", "on" if answer.get("access_log") else "off"),
    ]
    click.echo(fields(pairs, colour=look.colour) + "\n", nl=False)
    workers = answer.get("workers") or []
    click.echo(table(workers, columns.WORKERS, now=now, headers=look.headers, colour=look.colour), nl=False)


def _state(answer: dict[str, Any]) -> str:
    if answer.get("draining"):
        return "draining"
    return "ready" if (answer.get("snapshot") or {}).get("epoch") else "pending: no snapshot yet"


def _link(controller: dict[str, Any], now: float) -> str:
    since = ago(controller.get("since") or 0, now)
    state = "connected" if controller.get("connected") else "disconnected"
    text = f"{state} for {since}" if since else state
    error = "" if controller.get("connected") else controller.get("last_error")
    return f"{text} ({controller.get('address', '')})" + (f": {error}" if error else "")


def _snapshot(snapshot: dict[str, Any]) -> str:
    if not snapshot.get("epoch"):
        return "none yet: connections are held until the controller sends one"
    parts = [count(snapshot.get(f"{noun}s", 0), noun) for noun in ("workload", "service")]
    parts.append(count(snapshot.get("policies", 0), "policy"))
    revision, old = snapshot.get("revision"), age(snapshot.get("age_seconds") or 0)
    return f"revision {revision}, {', '.join(parts)}, received {old} ago"


@examples(
    "nodectl workloads",
    "nodectl workloads -o wide",
    "nodectl workloads --all",
)
@click.command()
@click.option("-A", "--all", "everywhere", is_flag=True, help="All workloads this node knows of, not only its own.")
@output_options
@click.pass_obj
def workloads(client: Client, look: Look, everywhere: bool) -> None:
    """List this node's workloads, or all of the mesh's."""
    if everywhere:
        show(look, client.get("/mesh/workloads"), mesh_columns.WORKLOADS, empty="No workload in the snapshot.")
    else:
        empty = "No workload enrolled on this node. `nodectl enroll --help` shows how."
        show(look, client.get("/workloads"), columns.WORKLOADS, empty=empty)


@examples(
    "nodectl services",
    "nodectl services -o wide",
)
@click.command()
@output_options
@click.pass_obj
def services(client: Client, look: Look) -> None:
    """List the services this node knows of."""
    show(look, client.get("/mesh/services"), mesh_columns.SERVICES, empty="No service in the snapshot.")


@examples(
    "nodectl policies",
    "nodectl policies -o yaml",
)
@click.command()
@output_options
@click.pass_obj
def policies(client: Client, look: Look) -> None:
    """List the policies this node enforces, and on whom."""
    show(look, client.get("/mesh/policies"), columns.POLICIES, empty="No policy applies to this node's workloads.")


@examples(
    "nodectl certs",
    "nodectl certs -o json | jq '.items[] | select(.state != \"valid\")'",
)
@click.command()
@output_options
@click.pass_obj
def certs(client: Client, look: Look) -> None:
    """List the certificates this node holds."""
    show(look, client.get("/certs"), columns.CERTS, empty="No certificate yet.")


@examples(
    "nodectl connections",
    "nodectl connections --workload shop/web --watch",
    "nodectl connections --watch -o json | jq -r 'select(.type == \"DELETED\").object.source'",
)
@click.command()
@workload_option
@watch_options
@output_options
@click.pass_obj
def connections(client: Client, look: Look, workload: str | None, watching: bool, interval: float) -> None:
    """List live connections, or watch them.

    On a terminal --watch redraws the table; elsewhere it prints a line for each connection that is new, changed
    or gone.
    """
    query = {"workload": workload} if workload else {}
    if not watching:
        show(look, client.get("/connections", **query), columns.CONNECTIONS, empty="No live connection.")
        return
    shown = (*columns.CONNECTIONS, *mesh_columns.RATES)
    view = Watch.of(look, shown, lambda row: (row.get("worker"), row.get("id")), rates=("received", "sent"))
    title = "nodectl connections" + (f" --workload {workload}" if workload else "")
    watch(lambda: client.get("/connections", **query)["items"], view, interval=interval, title=title)


@examples(
    "nodectl tunnels",
    "nodectl tunnels -o wide",
)
@click.command()
@output_options
@click.pass_obj
def tunnels(client: Client, look: Look) -> None:
    """List the mTLS tunnels to and from this node."""
    show(look, client.get("/tunnels"), columns.TUNNELS, empty="No tunnel open.")


@examples(
    "nodectl capture",
    "nodectl capture --verify || echo 'somebody changed the rules'",
    "nodectl capture -o wide        # with the rules themselves",
)
@click.command()
@click.option(
    "--verify", is_flag=True, help="Read the kernel's rules back; exit 1 if they are not what they should be."
)
@output_options
@click.pass_context
def capture(context: click.Context, look: Look, verify: bool) -> None:
    """Show or check how traffic is captured."""
    client: Client = context.obj
    query = {"verify": "1"} if verify else {}
    answer = client.get("/capture", "reading the rules back", **query)
    show(look, answer, columns.CAPTURE, empty="No workload enrolled on this node.")
    rows = answer.get("items", [])
    for row in rows if look.tabular else ():
        for line in (row.get("rules") or []) if look.output is Output.WIDE else []:
            click.echo(fields([(str(row.get("uid")), line)]), nl=False)
        for line in row.get("drift") or []:
            click.echo(fields([(f"{row.get('uid')} drift", line)]), nl=False)
    staying = [row for row in rows if row.get("state") != "draining"]
    if any(row.get("drift") or (verify and not row.get("installed")) for row in staying):
        context.exit(Exit.FAILED)


@examples(
    "nodectl config",
    "nodectl config -o json | jq .controller",
)
@click.command()
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@click.pass_obj
def config(client: Client, output: str) -> None:
    """Print the configuration in force, secrets left out."""
    click.echo(structured(client.get("/config"), Output(output)), nl=False)


@examples(
    "nodectl metrics | grep istio_tcp_connections_opened_total",
)
@click.command()
@click.pass_obj
def metrics(client: Client) -> None:
    """Print this node's metrics as Prometheus reads them."""
    click.echo(client.text("/metrics"), nl=False)
