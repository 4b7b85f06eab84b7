"""meshctl ca rotate: a new root in the old one's place, a step at a time."""

from __future__ import annotations

import time

import click

from controller.cli.client import Client
from controller.cli.terminal import progress
from mesh.present.failure import Failure
from mesh.present.options import duration, examples

_AGAIN_SECONDS = 2.0
_DONE = {
    "add": "a new root is trusted beside the old one",
    "sign": "the new root signs",
    "drop": "the old root is not trusted any more",
}


@examples("meshctl ca rotate", "meshctl ca rotate --step add")
@click.command()
@click.option("--step", type=click.Choice(list(_DONE)), help="Take this step alone; all that are left by default.")
@click.option("--force", is_flag=True, help="Do not wait for nodes. Those left behind lose their connections.")
@click.option(
    "--timeout", callback=duration, default="10m", show_default=True, metavar="DURATION", help="How long to wait."
)
@click.pass_obj
def rotate(client: Client, step: str | None, force: bool, timeout: int) -> None:
    """Replace the certificate authority's root.

    Each step waits until all nodes have followed the one before, so no connection fails. Stopped half-way, everything
    goes on working; run it again to go on.
    """
    end = time.monotonic() + timeout
    while True:
        following = _ready(client, force, end)
        if step is not None and following != step:
            raise Failure(f"the next step is {following!r}, not {step!r}", f"meshctl ca rotate --step {following}")
        client.send("POST", "/v1/ca/rotate", {"step": following, "force": force}, doing=f"step {following}")
        click.echo(f"{following}: {_DONE[following]}")
        if step is not None or following == "drop":
            return


def _ready(client: Client, force: bool, end: float) -> str:
    """The next step, once nothing stands against it."""
    while True:
        rotation = client.get("/v1/ca")["rotation"]
        if force or not rotation["waiting"]:
            return str(rotation["next"])
        waiting = "; ".join(rotation["waiting"])
        if time.monotonic() > end:
            remedy = "run it again to go on waiting, or with --force to go on without them"
            raise Failure(f"step {rotation['next']!r} cannot be taken yet: {waiting}", remedy)
        with progress(f"waiting: {waiting}"):
            time.sleep(_AGAIN_SECONDS)
