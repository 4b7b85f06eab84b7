"""meshctl: the whole mesh, as its controller holds and sees it. A client of its HTTP API and nothing else."""

from __future__ import annotations

import click

from controller.cli import access, analyze, completion, describing, looking, resources
from controller.cli.client import SOCKET, SOCKET_VARIABLE, Client
from controller.cli.terminal import run
from mesh.present.options import examples


@examples(
    "meshctl apply -f policy.yaml",
    "meshctl get authorizationpolicies -A",
    "meshctl policy check --from shop/client --to shop/web:80",
    "meshctl edges --watch",
)
@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    envvar=SOCKET_VARIABLE,
    default=SOCKET,
    show_default=True,
    show_envvar=True,
    help="Where mesh-controller listens.",
)
@click.version_option(package_name="nodemesh", prog_name="meshctl")
@click.pass_context
def cli(context: click.Context, socket: str) -> None:
    """Say what the mesh should be, and see what it is.

    Exits 0 when all is well, 1 when the answer is no or something failed, 2 when the command makes no sense,
    3 when mesh-controller does not answer.
    """
    context.obj = Client(socket)


for _command in (
    resources.apply,
    resources.delete,
    resources.get,
    describing.describe,
    looking.nodes,
    looking.workloads,
    looking.services,
    looking.edges,
    looking.policy,
    looking.ca,
    analyze.analyze,
    access.token,
    access.node,
    completion.completion,
):
    cli.add_command(_command)


def main() -> None:
    """The installed command `meshctl`."""
    run(cli, "meshctl")
