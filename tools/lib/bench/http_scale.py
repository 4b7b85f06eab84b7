"""`tools/bench l7 --scale`: CPU a request where there are few policies, routes or endpoints, and where there are many.

For each of the three there are two testbeds at once, which differ in nothing else, and which take turns.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import http_load, http_paths, load, mesh_http, paths, work
from bench.figures import Run
from bench.http_paths import Proxied
from bench.mesh_http import Resource

FEW, MANY = 10, 10_000
CONNECTIONS = 64
WANTED = 1.1
"""The most that a request may cost with many of something, compared to few."""
_A_FILE = 1000
_A_ROUTE = 16
_WARMING = 40
"""Most runs to warm up with."""
_ENDPOINTS = ipaddress.ip_network("10.77.64.0/18")
"""Of the testbed's range of pods; its nodes have the first few /24."""


@dataclass(frozen=True)
class Compared:
    """A round for each of these runs."""

    what: str
    few: list[Run]
    many: list[Run]
    wanted: float | None = WANTED

    @property
    def ratios(self) -> list[float]:
        """Of CPU a request, by round."""
        return [many.cpu_us_per_request / few.cpu_us_per_request for few, many in zip(self.few, self.many, strict=True)]


def _policies(number: int) -> list[Resource]:
    return mesh_http.policies(http_paths.LABELS, http_paths.ACCOUNT, number)


def _routes(number: int) -> list[Resource]:
    prefixes = [f"/route-{at:05}" for at in range(number - 1)] + [work.ROUTE]
    return [
        mesh_http.route(f"routes-{at:05}", tuple(prefixes[at : at + _A_ROUTE])) for at in range(0, number, _A_ROUTE)
    ]


def _endpoints(number: int) -> list[Resource]:
    """Workloads outside the mesh, one for each address; all of them are one pod's."""
    return [
        {
            "apiVersion": "nodemesh.dev/v1alpha1",
            "kind": "Workload",
            "metadata": {"name": f"endpoint-{at:05}", "namespace": mesh_http.NAMESPACE, "labels": http_paths.LABELS},
            "spec": {"addresses": [str(_ENDPOINTS[at + 1])], "serviceAccount": "endpoint"},
        }
        for at in range(number)
    ]


def _hashed(number: int) -> list[Resource]:
    """The same, of which one client's requests all go to one."""
    policy = {
        "apiVersion": "nodemesh.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": mesh_http.SERVICE, "namespace": mesh_http.NAMESPACE},
        "spec": {"targetRef": {"name": mesh_http.SERVICE}, "loadBalancing": {"policy": "Maglev"}},
    }
    return [policy, *_endpoints(number)]


@dataclass(frozen=True)
class _Dimension:
    name: str
    resources: Callable[[int], list[Resource]]
    wanted: float | None = WANTED
    new_paths: bool = False
    """Whether no two requests have the same path, so that no verdict and no route can be remembered."""
    meshed: bool = True
    """Whether the server is in the mesh; endpoints are not, so that there can be many."""


_DIMENSIONS = (
    _Dimension("policies", _policies),
    _Dimension("policies, paths new", _policies, new_paths=True),
    _Dimension("routes", _routes),
    _Dimension("routes, paths new", _routes, new_paths=True),
    _Dimension("endpoints", _hashed, meshed=False),
    # Each has a connection and counters of its own, so this has no bound: it is what the others leave out.
    _Dimension("endpoints in use", _endpoints, wanted=None, meshed=False),
)


def measure(rounds: int, seconds: float, folder: Path, say: Callable[[str], None]) -> list[Compared]:
    """All of them. HTTP/1.1 at `CONNECTIONS` connections."""
    compared = []
    for dimension in _DIMENSIONS:
        say(f"bringing up a testbed with {FEW} {dimension.name}, and one with {MANY}")
        with contextlib.ExitStack() as stack:
            few, many = (stack.enter_context(_opened(dimension, number, folder)) for number in (FEW, MANY))
            found = Compared(dimension.name, [], [], dimension.wanted)
            for path in (few, many):
                _warm(path, dimension, folder, say)
            for number in range(rounds):
                order = ((few, found.few), (many, found.many))
                for path, runs in order if number % 2 == 0 else order[::-1]:
                    runs.append(_run(path, dimension, seconds, folder, say))
            compared.append(found)
    return compared


def _warm(path: Proxied, dimension: _Dimension, folder: Path, say: Callable[[str], None]) -> None:
    """Until no more connections are added: each endpoint in use has one."""
    for _ in range(_WARMING):
        before = path.open_files()
        _run(path, dimension, 3, folder, say)
        if path.open_files() <= 1.01 * before:
            return


def _run(path: Proxied, dimension: _Dimension, seconds: float, folder: Path, say: Callable[[str], None]) -> Run:
    host, port = path.target(work.HTTP1)
    before = path.cpu_us()
    seen = http_load.requests(
        path.client,
        work.HTTP1,
        host,
        port,
        connections=CONNECTIONS,
        seconds=seconds,
        folder=folder,
        new_paths=dimension.new_paths,
    )
    run = Run(seen, path.cpu_us() - before)
    if seen.errors:
        say(f"  {path.name}: {seen.errors} errors among {seen.requests} requests")
    say(f"  {path.name:26} {seen.rps:7.0f} requests/s, CPU {run.cpu_us_per_request:.1f} µs a request")
    return run


@contextlib.contextmanager
def _opened(dimension: _Dimension, number: int, folder: Path) -> Iterator[Proxied]:
    files = folder / f"{dimension.name}-{number}".replace(" ", "-").replace(",", "")
    files.mkdir()
    resources = dimension.resources(number)
    manifests = []
    for at in range(0, len(resources), _A_FILE):
        manifest = files / f"{at:05}.yaml"
        manifest.write_text("\n---\n".join(map(json.dumps, resources[at : at + _A_FILE])))
        manifests.append(str(manifest))
    pods: list[dict[str, Any]] = [
        {"name": "client", "node": "node-a", "namespace": mesh_http.NAMESPACE, "serviceAccount": "client"},
        {
            "name": "server",
            "node": "node-b",
            "namespace": mesh_http.NAMESPACE,
            "serviceAccount": "server",
            "mesh": dimension.meshed,
            "labels": http_paths.LABELS if dimension.meshed else {},
        },
    ]
    document = {"pods": pods, "services": [mesh_http.service(http_paths.LABELS)], "policies": manifests}
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(paths.testbed(document, files))
        client, server = status["pods"]
        if not dimension.meshed:
            _lead_to(server, status)
        paths.serve(stack, server["netns"], load.nginx_command(files), files / "nginx.log")
        yield Proxied(f"{number} {dimension.name}", client["netns"], server["addresses"][0], paths.noded(status))


def _lead_to(pod: dict[str, Any], status: dict[str, Any]) -> None:
    """Let all addresses of the endpoints be this pod's."""
    nodes = {node["name"]: node for node in status["nodes"]}
    network, address = str(_ENDPOINTS), pod["addresses"][0]
    paths.run(["ip", "-n", pod["netns"], "route", "add", "local", network, "dev", "lo"])
    there = nodes[pod["node"]]
    (route,) = json.loads(paths.run(["ip", "-j", "-n", there["netns"], "route", "get", address]))
    paths.run(["ip", "-n", there["netns"], "route", "add", network, "via", address, "dev", route["dev"], "onlink"])
    for node in nodes.values():
        # What the testbed has in place of kube-proxy has one rule an endpoint, which each new connection would meet.
        paths.run(["ip", "netns", "exec", node["netns"], "iptables", "-t", "nat", "-F"])
        if node is not there:
            paths.run(["ip", "-n", node["netns"], "route", "add", network, "via", there["address"]])


def table(compared: list[Compared]) -> str:
    """A line for each, in Markdown."""
    many = f"{MANY:,}".replace(",", " ")
    lines = [f"| CPU µs a request | at {FEW} | at {many} | ratio | range | wanted |", "| --- " * 6 + "|"]
    for found in compared:
        few, most = (median(run.cpu_us_per_request for run in runs) for runs in (found.few, found.many))
        ratios = found.ratios
        lines.append(
            f"| {found.what} | {few:.1f} | {most:.1f} | {median(ratios):.2f} "
            f"| {min(ratios):.2f}–{max(ratios):.2f} | {f'≤ {found.wanted}' if found.wanted else ''} |"
        )
    return "\n".join(lines)


def document(compared: list[Compared]) -> list[dict[str, Any]]:
    """What `--json` writes: medians."""
    return [
        {
            "of": found.what,
            "number": number,
            "connections": CONNECTIONS,
            "rps": round(median(run.seen.rps for run in runs), 1),
            "cpu_us_per_request": round(median(run.cpu_us_per_request for run in runs), 2),
        }
        for found in compared
        for number, runs in ((FEW, found.few), (MANY, found.many))
    ]
