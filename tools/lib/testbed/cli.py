"""`tools/testbed`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed import mesh
from testbed.api import ApiError, Unreachable
from testbed.document import SpecError
from testbed.mesh import BEDS, Testbed, TestbedError
from testbed.network import NetworkError
from testbed.report import render, status
from testbed.spec import Spec, parse

_FILE = """\
The file:

  name: shop
  nodes: [node-a, node-b]
  pods:
    - {name: client, node: node-a, namespace: shop, serviceAccount: client, labels: {app: client}}
    - {name: web, node: node-b, namespace: shop, serviceAccount: web, labels: {app: web},
       run: [python3, -m, http.server, "8080"]}
    - {name: outsider, node: node-b, namespace: other, mesh: false}
  services:
    - {name: web, namespace: shop, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
  policies: [policy.yaml]           # what `meshctl apply -f` takes
  noded: {accessLog: false}         # optional: settings for every noded.yaml; likewise `controller`
"""


def _parser() -> argparse.ArgumentParser:
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("-n", dest="name", metavar="NAME", default=argparse.SUPPRESS, help="which testbed")
    parser = argparse.ArgumentParser(
        prog="tools/testbed",
        description="A mesh of several hosts on this machine, in network namespaces.",
        epilog=_FILE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[chooser],
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, rest: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[chooser])
        made.set_defaults(rest=rest)
        return made

    command("up", "make a testbed and wait until every workload is enrolled").add_argument("file", type=Path)
    for name, subject, text in (
        ("exec", "pod", "run a command in a pod: exec POD -- CMD..."),
        ("node", "node", "run a command on a node, where nodectl works: node NODE -- CMD..."),
    ):
        made = command(name, text)
        made.add_argument(subject)
        made.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    made = commands.add_parser(
        "meshctl", help="run meshctl on the controller's host", parents=[chooser], add_help=False
    )
    made.add_argument("argv", nargs=argparse.REMAINDER)
    command("status", "what is up").add_argument("-o", dest="output", choices=("table", "json"), default="table")
    logs = command("logs", "a daemon's log, or a pod's program's")
    logs.add_argument("who", metavar="NODE|controller|POD")
    logs.add_argument("-f", dest="follow", action="store_true", help="go on as it grows")
    command("kill", "kill -9 a node's noded, or the controller").add_argument("who", metavar="NODE|controller")
    command("restart", "restart it, in order if it runs").add_argument("who", metavar="NODE|controller")
    command("down", "remove a testbed and everything it made").add_argument("down", nargs="?", metavar="NAME")
    return parser


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Options of `meshctl` are its own, also before its first word (`meshctl --version`)."""
    parser = _parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown and options.command != "meshctl":
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        options.argv = [*unknown, *options.argv]
    return options


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit code."""
    options = arguments(argv)
    name = getattr(options, "name", "")
    try:
        match options.command:
            case "up":
                return _up(options.file, name)
            case "down":
                return _down(options.down or name or BEDS.choose())
        bed = mesh.find(name)
        match options.command:
            case "exec":
                return _become(bed.enter(bed.spec.pod(options.pod), _words(options.argv)), {})
            case "node":
                node = bed.spec.node(options.node)
                return _become(bed.enter(node, _words(options.argv)), bed.environment(node))
            case "meshctl":
                return _meshctl(bed, options.argv)
            case "status":
                facts = status(bed)
                print(json.dumps(facts, indent=2) if options.output == "json" else render(facts))
            case "logs":
                return _logs(bed, options.who, options.follow)
            case "kill":
                if not bed.processes.kill(_process(bed.spec, options.who)):
                    raise TestbedError(
                        f"{options.who} is not running; start it with: tools/testbed restart {options.who}"
                    )
            case "restart":
                _restart(bed, options.who)
    except (SpecError, TestbedError, NetworkError, ApiError, Unreachable) as error:
        print(f"tools/testbed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _up(file: Path, name: str) -> int:
    try:
        text = file.read_text()
    except OSError as error:
        raise TestbedError(f"{file}: {error.strerror}") from None
    bed = Testbed(parse(text, file))
    if name and name != bed.spec.name:
        raise TestbedError(f"{file} is called '{bed.spec.name}', not '{name}'")
    with BEDS.claim(bed.spec.name):
        if bed.spec.name in mesh.names():
            raise TestbedError(
                f"testbed '{bed.spec.name}' is up already; remove it with: tools/testbed down {bed.spec.name}"
            )
        try:
            bed.up(text, file, lambda line: print(line, flush=True))
        except BaseException as error:
            mesh.down(bed.spec.name)
            if isinstance(error, KeyboardInterrupt):
                print(f"\ntools/testbed: interrupted, and '{bed.spec.name}' taken down again", file=sys.stderr)
            raise
    print(f"\n{render(status(bed))}\n\ntry: tools/testbed exec POD -- CMD, tools/testbed node NODE -- nodectl status")
    return 0


def _down(name: str) -> int:
    with BEDS.claim(name):
        if not mesh.down(name):
            raise TestbedError(f"testbed '{name}' is not up")
    print(f"testbed '{name}' is gone")
    return 0


def _words(argv: list[str]) -> list[str]:
    words = argv[1:] if argv[:1] == ["--"] else argv
    return words or [os.environ.get("SHELL", "/bin/sh")]


def _become(argv: list[str], environment: dict[str, str]) -> int:
    sys.stdout.flush()
    os.execvpe(argv[0], argv, os.environ | environment)


def _meshctl(bed: Testbed, argv: list[str]) -> int:
    code = subprocess.call(bed.enter("controller", ["meshctl", *argv]), env=os.environ | bed.environment(None))
    if not {"apply", "delete"}.isdisjoint(argv):
        bed.publish()
    return code


def _process(spec: Spec, who: str) -> str:
    return who if who == "controller" else f"node/{spec.node(who).name}"


def _restart(bed: Testbed, who: str) -> None:
    process = _process(bed.spec, who)
    bed.processes.stop(process, 40)
    if who == "controller":
        bed.start_controller()
    else:
        bed.start_node(bed.spec.node(who))


def _logs(bed: Testbed, who: str, follow: bool) -> int:
    hosts = ("controller", *(node.name for node in bed.spec.nodes))
    log = bed.processes.log(_process(bed.spec, who) if who in hosts else f"pod/{bed.spec.pod(who).uid}")
    if not log.exists():
        raise TestbedError(f"{who} has no log: nothing was started there")
    return _become(["tail", "-n", "+1", *(["-f"] if follow else []), str(log)], {})
