"""The four paths of `tools/bench l7`: through Nodemesh, a pair of Envoys, a pair of HAProxies, and direct.

As in `paths`, each has pods of its own in one testbed. All but the direct one capture what goes to a service's address.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench import envoy, envoy_http, haproxy, http_load, mesh_http, paths, usage, work
from bench.certificates import Authority, Credentials
from bench.work import Protocol
from redirect.capture import Capture, new_mark

NAMES = ("nodemesh", "envoy", "haproxy", "direct")
LABELS = {"app": "server"}
ACCOUNT = "cluster.local/ns/bench/sa/client"


@dataclass(frozen=True)
class Proxied:
    """A path as the load sees it."""

    name: str
    client: str
    """Network namespace to send from."""
    server: str
    """Address of the server's pod."""
    processes: dict[str, int] = field(default_factory=dict)
    """The proxies of both sides: what it is -> process id."""

    def target(self, protocol: Protocol) -> tuple[str, int]:
        """Where to send requests: the service's address, or without a proxy the pod's own."""
        return (work.VIP, protocol.port) if self.processes else (self.server, protocol.target_port)

    def cpu_us(self) -> float:
        """What the proxies have had of the processor."""
        return usage.cpu_us(self.processes.values())

    def open_files(self) -> int:
        """Most of them are connections."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes.values())

    def memory(self) -> dict[str, float]:
        """MB that are resident, by process."""
        return {what: usage.rss_mb(pid) for what, pid in self.processes.items()}


@contextlib.contextmanager
def opened(names: Sequence[str], folder: Path) -> Iterator[list[Proxied]]:
    """Bring up a testbed and the paths; all of it is gone afterwards, whatever happened. `folder` holds the files."""
    manifests = folder / "mesh.yaml"
    manifests.write_text(yaml.safe_dump_all([*mesh_http.routes(), *mesh_http.policies(LABELS, ACCOUNT)]))
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(paths.testbed(_document(names, manifests), folder))
        pods = {pod["name"]: pod for pod in status["pods"]}
        made = []
        for name in names:
            client, server = pods[f"{name}-client"], pods[f"{name}-server"]
            address = server["addresses"][0]
            files = folder / name
            files.mkdir()
            for number, command in enumerate(http_load.servers(files)):
                paths.serve(stack, server["netns"], command, files / f"server{number}.log")
            processes: dict[str, int] = {}
            if name == "nodemesh":
                processes = paths.noded(status)
            elif name == "envoy":
                processes = _envoys(stack, client["netns"], server["netns"], address, files)
            elif name == "haproxy":
                processes = _haproxies(stack, client["netns"], server["netns"], address, files)
            made.append(Proxied(name, client["netns"], address, processes))
        yield made


def _document(names: Sequence[str], manifests: Path) -> dict[str, Any]:
    pods = paths.testbed_pods(names)
    for pod in pods:
        if pod["mesh"] and pod["serviceAccount"] == "server":
            pod["labels"] = LABELS
    if "nodemesh" not in names:
        return {"pods": pods}
    return {"pods": pods, "services": [mesh_http.service(LABELS)], "policies": [str(manifests)]}


def _issue(folder: Path) -> tuple[dict[str, Credentials], dict[str, str]]:
    authority = Authority(folder)
    identities = {side: f"spiffe://bench.local/ns/bench/sa/{side}" for side in ("client", "server")}
    return {side: authority.issue(side, uri) for side, uri in identities.items()}, identities


def _envoys(stack: contextlib.ExitStack, client: str, server: str, address: str, folder: Path) -> dict[str, int]:
    credentials, identities = _issue(folder)
    marks = {client: new_mark(), server: new_mark()}
    for netns, mark in marks.items():
        Capture(f"/run/netns/{netns}", mark).apply()
    configurations = {
        "client": envoy_http.client(
            credentials["client"],
            server=address,
            mark=marks[client],
            accepts=[identities["server"]],
            log=folder / "client.access.log",
        ),
        "server": envoy_http.server(
            credentials["server"],
            pod=address,
            mark=marks[server],
            accepts=[identities["client"]],
            log=folder / "server.access.log",
        ),
    }
    processes = {}
    for side, netns in (("client", client), ("server", server)):
        running = envoy.Envoy(side, configurations[side], netns=netns, folder=folder, extensions=envoy_http.EXTENSIONS)
        processes[f"envoy {side}"] = stack.enter_context(running).pid
    return processes


def _haproxies(stack: contextlib.ExitStack, client: str, server: str, address: str, folder: Path) -> dict[str, int]:
    credentials, _ = _issue(folder)
    paths.run(haproxy.capture(client))
    configurations = {
        "client": haproxy.client(credentials["client"], server=address),
        "server": haproxy.server(credentials["server"]),
    }
    processes = {}
    for side, netns in (("server", server), ("client", client)):
        file = folder / f"{side}.cfg"
        file.write_text(configurations[side])
        paths.run(["haproxy", "-c", "-f", str(file)])
        command = ["haproxy", "-db", "-f", str(file)]
        processes[f"haproxy {side}"] = paths.serve(stack, netns, command, folder / f"{side}.access.log", daemon=True)
    return processes
