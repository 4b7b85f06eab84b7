"""`tools/kubebed`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kubebed import cache, cluster, machine, product
from kubebed.cluster import Cluster, without_proxies
from kubebed.errors import KubebedError
from kubebed.status import render, status
from kubebed.steps import step
from testbed.network import NetworkError

_NAME = "kube"


def _parser() -> argparse.ArgumentParser:
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("-n", dest="name", metavar="NAME", default=argparse.SUPPRESS, help="which cluster")
    parser = argparse.ArgumentParser(
        prog="tools/kubebed",
        description="A real Kubernetes cluster on this machine, from Debian packages, in namespaces.",
        parents=[chooser],
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[chooser])

    command("build", "make the binaries and images that clusters need, if they are not there")
    up = command("up", "make a cluster (building first if needed) and wait until its nodes are Ready")
    up.add_argument("--nodes", type=int, default=2, metavar="N")
    command("image", "make this checkout's image, localhost/nodemesh:VERSION, and import it on the nodes")
    # Every option is kubectl's, and none begins with this.
    kubectl = commands.add_parser("kubectl", help="run kubectl", prefix_chars="\0", add_help=False)
    kubectl.add_argument("argv", nargs=argparse.REMAINDER)
    node = command("node", "run a command on a node, or beside the control plane: node NODE|control -- CMD...")
    node.add_argument("node", metavar="NODE|control")
    node.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    command("stop-node", "switch a node off, like pulling its plug").add_argument("node")
    command("start-node", "switch it on again").add_argument("node")
    command("stop-apiserver", "stop the API server alone")
    command("start-apiserver", "start it again")
    command("restart-apiserver", "stop it and start it again")
    command("status", "what is up").add_argument("-o", dest="output", choices=("table", "json"), default="table")
    command("down", "remove a cluster and everything it made").add_argument("down", nargs="?", metavar="NAME")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(argv)
    name: str = getattr(options, "name", "")
    try:
        match options.command:
            case "build":
                machine.check()
                cache.build()
                print(cache.folder())
                return 0
            case "up":
                machine.check()
                return _up(cluster.make(name or _NAME, options.nodes, cache.build()))
            case "down":
                return _down(options.down or name or cluster.BEDS.choose())
        return _use(cluster.find(name), options)
    except (KubebedError, NetworkError) as error:
        print(f"tools/kubebed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _use(bed: Cluster, options: argparse.Namespace) -> int:
    match options.command:
        case "kubectl":
            return _become(bed.kubectl_command(options.argv))
        case "node":
            return _become(bed.enter(options.node, _words(options.argv)))
        case "image":
            with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
                product.build(Path(archive.name))
                with step("importing it on the nodes"):
                    on = bed.load(Path(archive.name))
            print(f"{product.reference()} is on {', '.join(on)}")
        case "stop-node":
            bed.stop_node(options.node)
        case "start-node":
            bed.start_node(options.node)
        case "stop-apiserver":
            bed.control.stop_api_server()
        case "start-apiserver":
            bed.control.start_api_server()
        case "restart-apiserver":
            bed.control.stop_api_server()
            bed.control.start_api_server()
        case "status":
            facts = status(bed)
            print(json.dumps(facts, indent=2) if options.output == "json" else render(facts))
    return 0


def _up(bed: Cluster) -> int:
    print(f"{render(status(bed))}\n\nKUBECONFIG={bed.kubeconfig}\ntry: tools/kubebed kubectl get pods -A")
    return 0


def _down(name: str) -> int:
    with step(f"removing cluster {name}"):
        there = cluster.down(name)
    if not there:
        raise KubebedError(f"cluster {name} is not up")
    return 0


def _words(argv: list[str]) -> list[str]:
    words = argv[1:] if argv[:1] == ["--"] else argv
    return words or ["/bin/sh"]


def _become(argv: list[str]) -> int:
    sys.stdout.flush()
    os.execvpe(argv[0], argv, without_proxies())
