"""Shell completion: the scripts, and names of local workloads asked from noded while the user waits."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from mesh.present.failure import Failure
from mesh.present.options import examples, qualified
from noded.control.cli.client import Client

_PATIENCE = 0.5


def workload_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`namespace/name` of the local workloads that begin so; none if noded doesn't say at once."""
    return [uid for uid in _local(context) if uid.startswith(incomplete)]


workload_option = click.option(
    "--workload",
    metavar="NS/NAME",
    callback=qualified,
    shell_complete=workload_names,
    help="Only this local workload's.",
)


def service_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`namespace/name` of the services in the snapshot that begin so."""
    found = [f"{item['namespace']}/{item['name']}" for item in _items(context, "/mesh/services")]
    return [key for key in found if key.startswith(incomplete)]


def bare_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names alone, within `--namespace`."""
    prefix = f"{context.params.get('namespace') or 'default'}/{incomplete}"
    return [uid.partition("/")[2] for uid in _local(context) if uid.startswith(prefix)]


def failed_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of what was denied or failed, and of the open connections."""
    rows = [*_items(context, "/why"), *_items(context, "/connections")]
    return [one for row in rows if (one := str(row.get("id", ""))).startswith(incomplete)]


def _local(context: click.Context) -> list[str]:
    return [f"{item['namespace']}/{item['name']}" for item in _items(context, "/workloads")]


def _items(context: click.Context, path: str) -> list[dict[str, Any]]:
    socket = context.find_root().params.get("socket")
    if not socket:
        return []
    try:
        items: list[dict[str, Any]] = Client(socket, _PATIENCE).get(path)["items"]
    except (Failure, LookupError):
        return []
    return items


@examples(
    "source <(nodectl completion bash)",
    'nodectl completion zsh > "${fpath[1]}/_nodectl"',
    "nodectl completion fish > ~/.config/fish/completions/nodectl.fish",
)
@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that teaches a shell to complete nodectl."""
    script = get_completion_class(shell)
    assert script is not None, "click knows all the choices"
    click.echo(script(context.find_root().command, {}, "nodectl", "_NODECTL_COMPLETE").source())
