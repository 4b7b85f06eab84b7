"""meshctl: the whole mesh, as its controller holds and sees it. A client of its HTTP API and nothing else."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from controller.cli import access, analyze, check, completion, describing, install, looking, relay, requests, resources
from controller.cli.client import SOCKET, SOCKET_VARIABLE, Client
from controller.cli.cluster import ClusterClient, Target
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
@click.option("--kubeconfig", metavar="FILE", help="The mesh on this cluster.  [default: $KUBECONFIG, ~/.kube/config]")
@click.option("--context", "kube_context", metavar="NAME", help="Of the kubeconfig.  [default: its current one]")
@click.version_option(package_name="nodemesh", prog_name="meshctl")
@click.pass_context
def cli(context: click.Context, socket: str, kubeconfig: str | None, kube_context: str | None) -> None:
    """Say what the mesh should be, and see what it is.

    Which mesh: that of --socket; else that of --kubeconfig or --context; else the one of this host, if mesh-controller
    listens on it; else the one of the current cluster.

    Exits 0 when all is well, 1 when the answer is no or something failed, 2 when the command makes no sense,
    3 when mesh-controller does not answer.
    """
    target = Target(kubeconfig or "", kube_context or "")
    stated = context.get_parameter_source("socket") is not ParameterSource.DEFAULT
    if stated and (kubeconfig or kube_context):
        raise click.UsageError("--socket names one mesh, --kubeconfig and --context another")
    here = stated or (not (kubeconfig or kube_context) and Path(socket).exists())
    context.obj = Client(socket) if here or not target.stated() else ClusterClient(target)


for _command in (
    resources.apply,
    resources.delete,
    resources.get,
    describing.describe,
    looking.nodes,
    looking.workloads,
    looking.services,
    looking.edges,
    requests.top,
    requests.routes,
    looking.policy,
    looking.ca,
    analyze.analyze,
    install.install,
    install.upgrade,
    install.uninstall,
    check.check,
    access.token,
    access.node,
    relay.relay,
    completion.completion,
):
    cli.add_command(_command)


def main() -> None:
    """The installed command `meshctl`."""
    run(cli, "meshctl")
