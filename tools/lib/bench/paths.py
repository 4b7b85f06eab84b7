"""The three paths between two pods on two nodes: direct, through a pair of Envoys, and through Nodemesh.

Each has a client and a server pod of its own in one testbed, so that all cross the same fabric. The testbed makes and
captures Nodemesh's pods; of the other two it knows only that they are outside the mesh, and Envoy's get the same
capture rules here.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import envoy, load, usage
from bench.certificates import Authority
from redirect.capture import Capture, new_mark

NAMES = ("nodemesh", "envoy", "direct")
TESTBED = Path(__file__).resolve().parents[2] / "testbed"

# wrk opens more connections in a few seconds than the default range of ports has room for while they are in TIME_WAIT.
_POD_SYSCTLS = ("net.ipv4.ip_local_port_range=1024 65000", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=4096")


@dataclass(frozen=True)
class Proxied:
    """A path as the load sees it."""

    name: str
    client: str
    """Network namespace to send from."""
    address: str
    """Of the server's pod."""
    processes: dict[str, int] = field(default_factory=dict)
    """The proxies of both sides, every process of theirs: what it is -> process id."""


@contextlib.contextmanager
def opened(names: Sequence[str], folder: Path) -> Iterator[list[Proxied]]:
    """Bring up a testbed and the paths; all of it is gone afterwards, whatever happened. `folder` holds the files."""
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(testbed({"pods": testbed_pods(names)}, folder))
        pods = {pod["name"]: pod for pod in status["pods"]}
        paths = []
        for name in names:
            client, server = pods[f"{name}-client"], pods[f"{name}-server"]
            files = folder / name
            files.mkdir()
            for command in (load.nginx_command(files), ["iperf3", "-s", "-p", str(load.BULK_PORT)]):
                serve(stack, server["netns"], command, files / f"{command[0]}.log")
            processes = {}
            if name == "envoy":
                processes = _envoys(stack, client["netns"], server["netns"], files)
            elif name == "nodemesh":
                processes = noded(status)
            paths.append(Proxied(name, client["netns"], server["addresses"][0], processes))
        yield paths


@contextlib.contextmanager
def testbed(document: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """A testbed of two nodes with one worker each, and what else the document says; yields its status.

    It is gone afterwards, whatever happened.
    """
    bed = f"bench{secrets.token_hex(4)}"
    file = folder / "testbed.yaml"
    file.write_text(json.dumps({"name": bed, "nodes": ["node-a", "node-b"], "noded": {"workers": 1}} | document))
    try:
        run([str(TESTBED), "up", str(file)])
    except BaseException:
        subprocess.run([TESTBED, "down", bed], capture_output=True)  # what an interrupted `up` may have left
        raise
    try:
        status: dict[str, Any] = json.loads(run([str(TESTBED), "-n", bed, "status", "-o", "json"]))
        for pod in status["pods"]:
            for setting in _POD_SYSCTLS:
                run(["ip", "netns", "exec", pod["netns"], "sysctl", "-qw", setting])
        yield status
    finally:
        run([str(TESTBED), "down", bed])


def testbed_pods(names: Sequence[str]) -> list[dict[str, Any]]:
    """A client on one node and a server on the other for each path; only Nodemesh's are in the mesh."""
    return [
        {
            "name": f"{name}-{side}",
            "node": node,
            "namespace": "bench",
            "serviceAccount": side,
            "mesh": name == "nodemesh",
        }
        for name in names
        for side, node in (("client", "node-a"), ("server", "node-b"))
    ]


def serve(stack: contextlib.ExitStack, netns: str, command: Sequence[str], log: Path, *, daemon: bool = False) -> int:
    """Run a program in a pod until the stack is closed; its process id. `daemon`: in a session of its own."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["ip", "netns", "exec", netns, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=daemon,
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process.pid


def _envoys(stack: contextlib.ExitStack, client: str, server: str, folder: Path) -> dict[str, int]:
    authority = Authority(folder)
    identities = {side: f"spiffe://bench.local/ns/bench/sa/{side}" for side in ("client", "server")}
    processes = {}
    for side, netns, peer, configure in (
        ("client", client, "server", envoy.client),
        ("server", server, "client", envoy.server),
    ):
        mark = new_mark()
        Capture(f"/run/netns/{netns}", mark).apply()
        configuration = configure(
            authority.issue(side, identities[side]),
            mark=mark,
            accepts=[identities[peer]],
            log=folder / f"{side}.access.log",
        )
        running = stack.enter_context(envoy.Envoy(side, configuration, netns=netns, folder=folder))
        processes[f"envoy {side}"] = running.pid
    return processes


def noded(status: dict[str, Any]) -> dict[str, int]:
    """Every process of both nodes: what it is -> process id."""
    processes = {}
    for node in status["nodes"]:
        control, *workers = usage.family(node["pid"])
        processes[f"{node['name']} control"] = control
        processes.update({f"{node['name']} worker {index}": pid for index, pid in enumerate(workers)})
    return processes


def run(command: Sequence[str]) -> str:
    """The output of a command that must succeed. Raises `RuntimeError` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
