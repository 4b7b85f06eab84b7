"""meshctl's commands that say how requests fare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from controller.cli import columns
from controller.cli.client import Client
from controller.cli.looking import within_namespace
from controller.cli.requests_summary import GROUPS, summarise
from controller.cli.terminal import show, watch
from mesh.present.options import examples, output_options, watch_options
from mesh.present.table import Column, Look
from mesh.present.watch import Watch

_NAMES = {"services": ("service",), "routes": ("route",), "edges": ("source", "destination", "service")}


def _fetch(client: Client, by: str, namespace: str | None) -> list[dict[str, Any]]:
    lines = summarise(client.get("/v1/requests")["items"], by)
    if namespace is None:
        return lines
    return [line for line in lines if any(line[name].startswith(f"{namespace}/") for name in _NAMES[by])]


def _present(
    client: Client, look: Look, by: str, namespace: str | None, watching: bool, interval: float, title: str
) -> None:
    shown: Sequence[Column] = columns.REQUESTS[by]
    if not watching:
        what = "No route has taken a request" if by == "routes" else "No request was seen"
        empty = f"{what}{f' in namespace {namespace}' if namespace else ''} since the controller started."
        show(look, {"items": _fetch(client, by, namespace)}, shown, empty=empty)
        return
    view = Watch.of(look, shown, lambda row: tuple(row.get(name) for name in (*_NAMES[by], "kind", "security")))
    if namespace:
        title += f" -n {namespace}"
    watch(lambda: _busiest(_fetch(client, by, namespace)), view, interval=interval, title=title)


def _busiest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(lines, key=lambda line: -float(line["rate"]))


@examples(
    "meshctl top",
    "meshctl top edges -n shop --watch",
    "meshctl top services -o json | jq '.items[] | select(.success < 0.99)'",
)
@click.command()
@click.argument("by", type=click.Choice(list(GROUPS)), default="services", metavar="[services|routes|edges]")
@within_namespace
@watch_options
@output_options
@click.pass_obj
def top(client: Client, look: Look, by: str, namespace: str | None, watching: bool, interval: float) -> None:
    """Show the rate, success and latency of requests.

    All are of the last minute. A request inside the mesh counts once, as its source saw it. It succeeds unless its
    answer is a 5xx or a gRPC status that is the server's fault. With --watch the busiest come first.
    """
    _present(client, look, by, namespace, watching, interval, f"meshctl top {by}")


@examples("meshctl routes", "meshctl routes -n shop --watch")
@click.command()
@within_namespace
@watch_options
@output_options
@click.pass_obj
def routes(client: Client, look: Look, namespace: str | None, watching: bool, interval: float) -> None:
    """Show how requests fare by route: `meshctl top routes`."""
    _present(client, look, "routes", namespace, watching, interval, "meshctl routes")
