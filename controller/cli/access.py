"""meshctl's commands about who may join: join tokens and nodes."""

from __future__ import annotations

import os
from typing import Any

import click

from controller.cli import columns
from controller.cli.client import Client
from controller.cli.completion import node_names, token_ids
from controller.cli.terminal import show
from mesh.present.failure import Failure
from mesh.present.options import duration, examples, output_options
from mesh.present.table import Look
from mesh.present.units import stamp


@click.group()
def token() -> None:
    """Make, list and revoke join tokens."""


@examples(
    "meshctl token create --allow 'shop/*' --node node-a --uses 1 --output-file node-a.token",
    "meshctl token create --allow shop/web --allow shop/api --ttl 1h",
)
@token.command()
@click.option(
    "--allow",
    multiple=True,
    required=True,
    metavar="NS/SA",
    help="A service account the node may enrol workloads of; NS/* for all of a namespace. Repeatable.",
)
@click.option("--node", help="Only a node of this name may use it.")
@click.option(
    "--ttl", callback=duration, default="24h", show_default=True, metavar="DURATION", help="How long it can be used."
)
@click.option("--uses", type=click.IntRange(min=1), help="How many times it can be used; any number by default.")
@click.option("--description", help="Shown by `meshctl token list`.")
@click.option("--output-file", type=click.Path(dir_okay=False), help="Write it there, readable by you alone.")
@output_options
@click.pass_obj
def create(
    client: Client,
    look: Look,
    allow: tuple[str, ...],
    node: str | None,
    ttl: int,
    uses: int | None,
    description: str | None,
    output_file: str | None,
) -> None:
    """Make a token with which a node joins the mesh. It is shown once."""
    for scope in allow:
        if scope.count("/") != 1 or scope.startswith("/") or scope.endswith("/"):
            raise click.BadParameter(f"{scope!r} is not NAMESPACE/SERVICE-ACCOUNT or NAMESPACE/*", param_hint="--allow")
    optional = {"node": node, "uses": uses, "description": description}
    body = {"allow": list(allow), "ttl_seconds": ttl} | {name: v for name, v in optional.items() if v is not None}
    if output_file is None:
        answer = client.send("POST", "/v1/tokens", body, doing="making a token")
        _announce(look, answer, str(answer["token"]))
        return
    with _SecretFile(output_file) as file:  # first, so that no token is made that cannot be kept
        answer = client.send("POST", "/v1/tokens", body, doing="making a token")
        file.write(answer.pop("token") + "\n")
    _announce(look, answer, output_file)


def _announce(look: Look, answer: Any, first: str) -> None:
    if not look.tabular:
        show(look, answer, (), empty="")
        return
    click.echo(first)
    click.echo(f"token {answer['id']} can be used until {stamp(answer['expires'])}", err=True)


class _SecretFile:
    """A new file that only its owner can read; removed again if the body fails."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise Failure(f"{self._path} exists", "a token is not written over a file: remove it first") from None
        except OSError as error:
            raise Failure(f"{self._path}: {error.strerror}") from None
        self._file = os.fdopen(descriptor, "w")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is not None:
            os.unlink(self._path)


@examples("meshctl token list")
@token.command("list")
@output_options
@click.pass_obj
def list_(client: Client, look: Look) -> None:
    """List tokens, without their secrets."""
    show(look, client.get("/v1/tokens"), columns.TOKENS, empty="No token.")


@examples("meshctl token revoke 3f9a2c")
@token.command()
@click.argument("token_id", metavar="ID", shell_complete=token_ids)
@click.pass_obj
def revoke(client: Client, token_id: str) -> None:
    """Make a token useless. Nodes that joined with it stay: see `meshctl node forget`."""
    client.send("DELETE", f"/v1/tokens/{token_id}", doing="revoking the token")
    click.echo(f"token {token_id} revoked")


@click.group()
def node() -> None:
    """Manage nodes."""


@examples("meshctl node forget node-a")
@node.command()
@click.argument("name", shell_complete=node_names)
@click.pass_obj
def forget(client: Client, name: str) -> None:
    """Refuse a node's credential from now on and remove its workloads."""
    client.send("DELETE", f"/v1/nodes/{name}", doing=f"forgetting {name}")
    click.echo(f"node {name} forgotten; it needs a new token to come back")
