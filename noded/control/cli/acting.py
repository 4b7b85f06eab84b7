"""nodectl's commands that change something."""

from __future__ import annotations

import os
import time

import click

from mesh.present.failure import Exit, Failure
from mesh.present.options import duration, examples, output_options
from mesh.present.table import Look
from mesh.present.units import age, count
from noded.control.cli import columns
from noded.control.cli.client import Client
from noded.control.cli.completion import bare_names
from noded.control.cli.terminal import progress, show

_ENROL_PATIENCE = 60.0
_LONGEST_DRAIN = 3600
"""What the API allows. Where noded's own configuration decides, it may be as long as that."""
_STOP_PATIENCE = 15.0
_LEVELS = ("debug", "info", "warning", "error")


@examples(
    "nodectl enroll web --netns web --namespace shop --service-account web --label app=web",
    "nodectl enroll db --netns /proc/4242/ns/net -n shop --service-account db -l app=db -l version=v2",
)
@click.command()
@click.argument("name")
@click.option("--netns", required=True, metavar="PATH", help="Its network namespace: a path, or a name of `ip netns`.")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--service-account", default="default", show_default=True, help="What its identity is made of.")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be given more than once.")
@click.option("--address", "addresses", multiple=True, help="Only these of the namespace's addresses.")
@output_options
@click.pass_obj
def enroll(
    client: Client,
    look: Look,
    name: str,
    netns: str,
    namespace: str,
    service_account: str,
    labels: tuple[str, ...],
    addresses: tuple[str, ...],
) -> None:
    """Take a workload into the mesh. Returns when its traffic is captured."""
    body: dict[str, object] = {
        "name": name,
        "namespace": namespace,
        "service_account": service_account,
        "labels": dict(_label(text) for text in labels),
        "netns": _netns(netns),
    }
    if addresses:
        body["addresses"] = list(addresses)
    doing = f"enrolling {namespace}/{name}"
    answer = client.send("POST", "/workloads", body, doing=doing, patience=_ENROL_PATIENCE)
    show(look, answer, columns.WORKLOADS, empty="")


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--label")
    return key, value


def _netns(text: str) -> str:
    """An absolute path that means the same to noded as to the user."""
    if "/" not in text:
        return f"/run/netns/{text}"
    path = os.path.abspath(text)
    if path.startswith(("/proc/self/", "/proc/thread-self/")):
        raise click.BadParameter(
            f"{path} would be noded's own namespace: write /proc/PID/ns/net or a path under /run/netns",
            param_hint="--netns",
        )
    return path


@examples(
    "nodectl remove web --namespace shop",
    "nodectl remove web --namespace shop --drain 0s",
)
@click.command()
@click.argument("name", shell_complete=bare_names)
@click.option("-n", "--namespace", default="default", show_default=True, is_eager=True)
@click.option("--drain", callback=duration, metavar="DURATION", help="Let its connections end for so long, then reset.")
@click.pass_obj
def remove(client: Client, name: str, namespace: str, drain: int | None) -> None:
    """Let a workload leave the mesh. Returns when capture is undone."""
    query = {} if drain is None else {"drain": str(drain)}
    patience = _ENROL_PATIENCE + (_LONGEST_DRAIN if drain is None else drain)
    doing = f"removing {namespace}/{name}"
    client.send("DELETE", f"/workloads/{namespace}/{name}", doing=doing, query=query, patience=patience)
    click.echo(f"{namespace}/{name} has left the mesh")


@examples(
    "nodectl log-level",
    "nodectl log-level debug",
)
@click.command("log-level")
@click.argument("level", required=False, type=click.Choice(_LEVELS))
@click.pass_obj
def log_level(client: Client, level: str | None) -> None:
    """Show the log level, or set it until noded ends."""
    if level is None:
        click.echo(client.get("/status")["log_level"])
        return
    client.send("PUT", "/log-level", {"level": level}, doing="setting the log level")
    click.echo(f"log level is {level}")


@examples(
    "nodectl drain",
    "nodectl drain --timeout 5m",
)
@click.command()
@click.option(
    "--timeout",
    callback=duration,
    metavar="DURATION",
    help="Then reset what is left.  [default: drainSeconds of its configuration]",
)
@click.pass_obj
def drain(client: Client, timeout: int | None) -> None:
    """Finish live connections and stop noded. Returns when it has ended."""
    body = {} if timeout is None else {"seconds": timeout}
    allowed = float(client.send("POST", "/drain", body, doing="asking noded to drain")["seconds"])
    deadline = time.monotonic() + allowed + _STOP_PATIENCE
    with progress(f"draining for up to {age(allowed)}"):
        while time.monotonic() < deadline:
            try:
                workers = client.get("/status")["workers"]
            except Failure as failure:
                if failure.status is not Exit.UNREACHABLE:
                    raise
                click.echo("drained: noded has ended")
                return
            time.sleep(0.2)
    left = sum(worker.get("connections", 0) for worker in workers)
    waited = age(allowed + _STOP_PATIENCE)
    raise Failure(f"noded still runs after {waited}, with {count(left, 'connection')}", "look at its log")
