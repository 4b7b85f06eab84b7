"""Shell completion: the scripts, and names asked from the controller while the user waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import get_completion_class

from controller.cli.client import Client
from controller.cli.kinds import PLURALS, plural
from mesh.present.failure import Failure
from mesh.present.options import examples
from mesh.present.table import dig

_PATIENCE = 0.5
_Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def kinds(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Plurals of the known kinds."""
    return [name for name in PLURALS.values() if name.startswith(incomplete.lower())]


def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the stored resources of the kind that was typed, in the namespace that was typed."""
    kind, namespace = context.params.get("kind"), context.params.get("namespace") or "default"
    return _ask(context, f"/v1/resources/{plural(kind)}", "metadata.name", incomplete, namespace) if kind else []


def _asking(path: str, field: str) -> _Completer:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return _ask(context, path, field, incomplete)

    return complete


node_names = _asking("/v1/nodes", "name")
token_ids = _asking("/v1/tokens", "id")


def identities(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`namespace/service-account` of the known workloads."""
    found = (f"{one.get('namespace')}/{one.get('service_account')}" for one in _items(context, "/v1/workloads"))
    return sorted({identity for identity in found if identity.startswith(incomplete)})


def namespaces(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those of the known workloads and services."""
    every = (*_items(context, "/v1/workloads"), *_items(context, "/v1/services"))
    return sorted({name for one in every if (name := str(one.get("namespace"))).startswith(incomplete)})


def service_ports(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`namespace/name:port` of the services."""
    every = (
        f"{one.get('namespace')}/{one.get('name')}:{port.get('port')}"
        for one in _items(context, "/v1/services")
        for port in one.get("ports", ())
    )
    return [one for one in every if one.startswith(incomplete)]


def _ask(context: click.Context, path: str, field: str, incomplete: str, namespace: str = "") -> list[str]:
    """Values of `field` that begin so."""
    items = _items(context, path, **({"namespace": namespace} if namespace else {}))
    return [value for item in items if (value := str(dig(item, field) or "")).startswith(incomplete)]


def _items(context: click.Context, path: str, **query: str) -> list[dict[str, Any]]:
    """None if the controller doesn't say at once."""
    socket = context.find_root().params.get("socket")
    if not socket:
        return []
    try:
        items: list[dict[str, Any]] = Client(socket, _PATIENCE).get(path, **query)["items"]
    except (Failure, LookupError):
        return []
    return items


@examples(
    "source <(meshctl completion bash)",
    'meshctl completion zsh > "${fpath[1]}/_meshctl"',
    "meshctl completion fish > ~/.config/fish/completions/meshctl.fish",
)
@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that teaches a shell to complete meshctl."""
    script = get_completion_class(shell)
    assert script is not None, "click knows all the choices"
    click.echo(script(context.find_root().command, {}, "meshctl", "_MESHCTL_COMPLETE").source())
