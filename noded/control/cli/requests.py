"""nodectl's commands about requests."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from mesh.present.options import examples, output_options, qualified
from mesh.present.table import Look, Output, structured, table
from noded.control.cli import columns
from noded.control.cli.client import Client
from noded.control.cli.completion import service_names, workload_option
from noded.control.cli.terminal import show


@examples(
    "nodectl requests",
    "nodectl requests --watch --path '/api/*' --code 5xx",
    "nodectl requests --watch -o json | jq -r .request_id",
)
@click.command()
@workload_option
@click.option("--path", metavar="GLOB", help="Only these: `/api/*`.")
@click.option("--method", help="Only this one.")
@click.option("--code", metavar="CODE", help="Only this status: `503`, or `5xx`.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Go on showing those that end.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks."
)
@output_options
@click.pass_obj
def requests(
    client: Client,
    look: Look,
    workload: str | None,
    path: str | None,
    method: str | None,
    code: str | None,
    watching: bool,
    interval: float,
) -> None:
    """Show the requests that ended last, or those that end.

    Recent ones are known where there is an access log in JSON. While --watch runs all are seen, up to 1000 for each
    worker between two looks; with -o json each is one line.
    """
    given = {"workload": workload, "path": path, "method": method.upper() if method else None, "code": code}
    query = {name: value for name, value in given.items() if value}
    if not watching:
        such = " such" if query else ""
        empty = f"No{such} request of late. Where there is no access log in JSON, only --watch sees any."
        show(look, {"items": client.get("/requests", **query)["items"]}, columns.REQUESTS, empty=empty)
        return
    _follow(client, look, query, interval)


def _follow(client: Client, look: Look, query: dict[str, str], interval: float) -> None:
    after, headers = "", look.headers
    widths = [0] * sum(1 for column in columns.REQUESTS if look.output is Output.WIDE or not column.wide)
    try:
        while True:
            answer: dict[str, Any] = client.get("/requests", **query, **({"after": after} if after else {}))
            after, rows = answer["after"], answer["items"]
            if look.output is Output.JSON:
                text = "".join(json.dumps(row) + "\n" for row in rows)
            elif look.output is Output.YAML:
                text = "".join("---\n" + structured(row, Output.YAML) for row in rows)
            elif rows:
                wide = look.output is Output.WIDE
                text = table(rows, columns.REQUESTS, now=time.time(), wide=wide, headers=headers, colour=look.colour,
                             widths=widths)  # fmt: skip
                headers = False
            else:
                text = ""
            click.echo(text, nl=False)
            time.sleep(interval)
    except KeyboardInterrupt:
        pass


@examples("nodectl routes", "nodectl routes -o wide")
@click.command()
@output_options
@click.pass_obj
def routes(client: Client, look: Look) -> None:
    """List the routes that requests of this node may take.

    -o wide also shows what they match: `GET =/exact ?page=2 x-beta~y.*`, where = is the whole value, ~ a regular
    expression, and a path without either a prefix.
    """
    show(look, client.get("/mesh/routes"), columns.ROUTES, empty="No route in the snapshot.")


@examples("nodectl endpoints", "nodectl endpoints --service shop/web -o wide")
@click.command()
@click.option("--service", metavar="NS/NAME", callback=qualified, shell_complete=service_names, help="Only this one's.")
@output_options
@click.pass_obj
def endpoints(client: Client, look: Look, service: str | None) -> None:
    """List the endpoints of services, and how they fare.

    Requests under way, latency, ejected or not, as this node's workloads see them, at ports that are declared HTTP, or
    nothing; `unused`: none of them has sent any there since noded started. Latency is the peak-sensitive average that
    balancing uses.
    """
    query = {"service": service} if service else {}
    empty = f"{service or 'No service'} has {'no' if service else 'an'} endpoint that requests can be sent to."
    show(look, client.get("/endpoints", **query), columns.ENDPOINTS, empty=empty)
