"""`tools/bench l7`: HTTP/1.1, HTTP/2 and gRPC through Nodemesh beside Envoy and HAProxy doing the same work."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import http_figures, http_load, http_paths, http_scale, usage, work
from bench.figures import Run
from bench.http_figures import Idle, Results, Series
from bench.http_paths import Proxied
from bench.load import LoadError
from bench.work import Protocol
from redirect.capture import CaptureError

CONNECTIONS = (1, 64)
IDLE = 5000


def add(kinds: Any) -> None:
    """The command's options."""
    parser = kinds.add_parser(
        "l7",
        help="HTTP/1.1, HTTP/2 and gRPC: beside the same path direct and through pairs of Envoys and of HAProxies",
        description="Requests/s, latency and CPU of a pod-to-pod path across two nodes at 1 and 64 connections, with "
        "one request at a time on each (wrk and nginx for HTTP/1.1, h2load and nghttpd for HTTP/2 and unary gRPC), "
        "and memory with many idle connections. Each proxy is a pair with one worker a side, and does the same: a few "
        f"routes by header and path at the source; at the destination {work.POLICIES} policies by identity, method and "
        "path, of which the last permits the load; mutual TLS between; statistics; a line of JSON for each request on "
        "either side. Envoy tunnels in HBONE as Nodemesh does; HAProxy cannot, so HTTP itself crosses between its two. "
        "Several rounds in which the paths alternate; medians. CPU is that of all the proxies' processes on both sides "
        "together.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=4, metavar="S", help="of each measurement (default: %(default)s)"
    )
    names = ",".join(http_paths.NAMES)
    parser.add_argument(
        "--paths",
        type=lambda text: chosen(text, http_paths.NAMES),
        default=http_paths.NAMES,
        metavar="LIST",
        help=f"which, of {names} (default: all)",
    )
    protocols = tuple(protocol.name for protocol in work.PROTOCOLS)
    parser.add_argument(
        "--protocols",
        type=lambda text: chosen(text, protocols),
        default=protocols,
        metavar="LIST",
        help=f"which, of {','.join(protocols)} (default: all)",
    )
    parser.add_argument(
        "--idle",
        type=int,
        default=IDLE,
        metavar="N",
        help="idle connections for the memory's figures; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        action="store_true",
        help=f"instead: CPU a request through Nodemesh at {http_scale.FEW} and {http_scale.MANY} policies, routes, "
        "endpoints, and endpoints that are all in use, each alone (HTTP/1.1)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians there too")


def chosen(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """An option's list of some of these names, in their order."""
    wanted = text.split(",")
    for name in wanted:
        if name not in names:
            raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(names)}")
    return tuple(name for name in names if name in wanted)


def run(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Run it; 0, or 1 with the reason on stderr."""
    try:
        with tempfile.TemporaryDirectory(prefix="nodemesh-bench-") as name:
            measure = _scale if options.scale else _compare
            document = measure(options, Path(name), say)
    except (RuntimeError, OSError, CaptureError) as error:
        say(f"tools/bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("tools/bench: interrupted")
        return 130
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _scale(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    others = usage.busy_share(0.5)
    compared = http_scale.measure(options.rounds, options.seconds, folder, say)
    _conditions(options, others)
    print(http_scale.table(compared))
    return {"scale": http_scale.document(compared)}


def _compare(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    protocols = [protocol for protocol in work.PROTOCOLS if protocol.name in options.protocols]
    say(f"bringing up a testbed with the paths {', '.join(options.paths)}")
    with http_paths.opened(options.paths, folder) as opened:
        bench = _Bench(opened, protocols, folder, say)
        others = bench.measure(options.rounds, options.seconds)
        if options.idle:
            bench.measure_idle(options.idle)
    _conditions(options, others)
    print(http_figures.table(bench.results))
    for path, series in bench.results.items():
        if series.idle is not None:
            print(f"\n{path}: " + ", ".join(f"{what} {size:.0f} MB" for what, size in series.idle.after.items()))
    return http_figures.document(bench.results)


def _conditions(options: argparse.Namespace, others: float) -> None:
    print(
        f"{os.cpu_count()} cores for the load, the server and the proxies together, "
        f"{others:.0%} busy with other things between rounds; Linux {platform.release()}; "
        f"medians of {options.rounds} rounds of {options.seconds:g} s\n"
    )


class _Bench:
    """The measurements."""

    def __init__(
        self, opened: list[Proxied], protocols: list[Protocol], folder: Path, say: Callable[[str], None]
    ) -> None:
        self._opened, self._protocols, self._folder, self._say = opened, protocols, folder, say
        self.results: Results = {path.name: Series() for path in opened}

    def measure(self, rounds: int, seconds: float) -> float:
        """Every kind of load on every path, `rounds` times over; how busy the machine was without us (median, 0 to 1).

        The paths take turns within each kind of load, and another begins each round.
        """
        others = []
        kinds = [(protocol, count) for protocol in self._protocols for count in CONNECTIONS]
        for path in self._opened:
            self._say(f"warming up {path.name}")
            for protocol, count in kinds:
                self._load(path, protocol, count, 1)
        for number in range(rounds):
            turn = number % len(self._opened)
            others.append(usage.busy_share(0.5))
            self._say(f"round {number + 1} of {rounds}")
            for protocol, count in kinds:
                for path in self._opened[turn:] + self._opened[:turn]:
                    run = self._load(path, protocol, count, seconds)
                    self.results[path.name].runs.setdefault((protocol.name, count), []).append(run)
                    self._say(
                        f"  {path.name:9} {protocol.name:8} {run.seen.rps:7.0f} requests/s at {count:2}, "
                        f"p50 {run.seen.p50_us:.0f} µs, CPU {run.cpu_us_per_request:.1f} µs a request"
                    )
        return median(others)

    def _load(self, path: Proxied, protocol: Protocol, connections: int, seconds: float) -> Run:
        before = path.cpu_us()
        host, port = path.target(protocol)
        try:
            seen = http_load.requests(
                path.client, protocol, host, port, connections=connections, seconds=seconds, folder=self._folder
            )
        except LoadError as error:
            raise LoadError(f"{path.name}, {protocol.name}: {error}") from error
        taken = path.cpu_us() - before
        if seen.errors:
            self._say(f"  {path.name}: {seen.errors} errors among {seen.requests} requests of {protocol.name}")
        return Run(seen, taken)

    def measure_idle(self, connections: int) -> None:
        """Memory of each path's proxies with so many idle connections of HTTP/1.1."""
        for path in self._opened:
            if not path.processes:
                continue
            self._say(f"opening {connections} connections through {path.name}")
            before = path.memory()
            host, port = path.target(work.HTTP1)
            arguments = [host, str(port), work.HTTP1.path, str(connections)]
            command = ["ip", "netns", "exec", path.client, sys.executable, "-P", "-m", "bench.idle", *arguments]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise LoadError(f"{path.name}: could not open {connections} connections")
                self.results[path.name].idle = Idle(connections, before, path.memory())
                process.communicate()
