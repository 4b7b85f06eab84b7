"""nodectl: what this host's noded sees and does. A client of its HTTP API and nothing else."""

from __future__ import annotations

import click

from mesh.present.options import examples
from noded.control.cli import acting, completion, looking, requests
from noded.control.cli.client import SOCKET, SOCKET_VARIABLE, Client
from noded.control.cli.terminal import run
from noded.control.cli.why import why


@examples(
    "nodectl status",
    "nodectl connections --watch",
    "nodectl capture --verify",
)
@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket", envvar=SOCKET_VARIABLE, default=SOCKET, show_default=True, show_envvar=True, help="Where noded listens."
)
@click.version_option(package_name="nodemesh", prog_name="nodectl")
@click.pass_context
def cli(context: click.Context, socket: str) -> None:
    """See and steer this host's part of the mesh.

    Exits 0 when all is well, 1 when the answer is no or something failed, 2 when the command makes no sense,
    3 when noded does not answer.
    """
    context.obj = Client(socket)


for _command in (
    looking.status,
    looking.workloads,
    looking.services,
    looking.policies,
    looking.certs,
    looking.connections,
    looking.tunnels,
    requests.requests,
    requests.routes,
    requests.endpoints,
    looking.capture,
    looking.config,
    looking.metrics,
    why,
    acting.enroll,
    acting.remove,
    acting.log_level,
    acting.drain,
    completion.completion,
):
    cli.add_command(_command)


def main() -> None:
    """The installed command `nodectl`."""
    run(cli, "nodectl")
