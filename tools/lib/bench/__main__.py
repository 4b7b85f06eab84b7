"""`tools/bench`: the command line; `l4`: run the rounds, print the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from statistics import median
from types import FrameType

from bench import figures, kube, l7, load, paths, usage
from bench.figures import Results, Run, Series
from bench.paths import Proxied
from redirect.capture import CaptureError

CONNECTIONS = (1, 64)
_CONNECTING = 64


def measure(opened: list[Proxied], *, rounds: int, seconds: float, folder: Path) -> tuple[Results, float]:
    """Every figure of every path, `rounds` times over; and how busy the machine was without us (median, 0 to 1).

    The paths take turns within each kind of load, and another begins each round, so that what else the machine does
    meanwhile falls on all of them alike.
    """
    results = {path.name: Series({count: [] for count in CONNECTIONS}) for path in opened}
    script = folder / "report.lua"
    others = []

    def wrk(path: Proxied, connections: int, *, length: float = seconds, close: bool = False) -> Run:
        before = usage.cpu_us(path.processes.values())
        seen = load.requests(
            path.client,
            f"http://{path.address}:{load.HTTP_PORT}/",
            connections=connections,
            seconds=length,
            script=script,
            close=close,
        )
        run = Run(seen, usage.cpu_us(path.processes.values()) - before)
        if seen.errors:
            say(f"  {path.name}: {seen.errors} errors among {seen.requests} requests")
        return run

    for path in opened:
        say(f"warming up {path.name}")
        for count in CONNECTIONS:  # one first: then there is one tunnel, and the others share it
            wrk(path, count, length=1)
    for number in range(rounds):
        turn = number % len(opened)
        order = opened[turn:] + opened[:turn]
        others.append(usage.busy_share(0.5))
        say(f"round {number + 1} of {rounds}")
        for count in CONNECTIONS:
            for path in order:
                run = wrk(path, count)
                results[path.name].keep_alive[count].append(run)
                cpu = f"CPU {run.cpu_us_per_request:.1f} µs a request"
                say(f"  {path.name:9} {run.seen.rps:7.0f} requests/s at {count:2}, p50 {run.seen.p50_us:.0f} µs, {cpu}")
        for path in order:
            run = wrk(path, _CONNECTING, close=True)
            results[path.name].connects.append(run)
            say(f"  {path.name:9} {run.seen.rps:7.0f} new connections/s, CPU {run.cpu_us_per_request:.0f} µs each")
        for path in order:
            speed = load.bulk_gbps(path.client, path.address, seconds=seconds)
            results[path.name].bulk_gbps.append(speed)
            say(f"  {path.name:9} {speed:7.2f} Gb/s")
    for path in opened:
        results[path.name].rss_mb = {what: usage.rss_mb(pid) for what, pid in path.processes.items()}
    return results, median(others)


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure the mesh: a captured pod-to-pod path beside its peers, or the controller at scale.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    l4 = kinds.add_parser(
        "l4",
        help="TCP: beside the same path direct and through an Envoy pair speaking HBONE over mutual TLS",
        description="Requests/s, latency and CPU at 1 and 64 connections (wrk, nginx), new connections/s (wrk, one "
        "request each), bulk throughput (iperf3, one stream) and memory, of a pod-to-pod path across two nodes: "
        "direct, through a pair of Envoys with one worker each behind the same capture rules, and through Nodemesh "
        "with one worker a node. Several rounds in which the paths alternate; medians. CPU is that of all the "
        "proxies' processes on both sides together.",
    )
    l4.add_argument("--rounds", type=int, default=5, metavar="N", help="how many (default: %(default)s)")
    l4.add_argument("--seconds", type=float, default=4, metavar="S", help="of each measurement (default: %(default)s)")
    l4.add_argument(
        "--paths",
        type=lambda text: l7.chosen(text, paths.NAMES),
        default=paths.NAMES,
        metavar="LIST",
        help=f"which, of {','.join(paths.NAMES)} (default: all)",
    )
    l4.add_argument("--json", type=Path, metavar="FILE", help="write the medians there too")
    l7.add(kinds)
    kube.add(kinds)
    parsed = parser.parse_args()
    if parsed.kind in ("l4", "l7") and (parsed.rounds < 1 or parsed.seconds < 1):
        parser.error("--rounds and --seconds must be 1 or more")
    return parsed


def main() -> int:
    """Run it; 0, or 1 with the reason on stderr."""
    options = arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    if options.kind == "kube":
        return kube.run(options)
    if options.kind == "l7":
        return l7.run(options, say)
    try:
        with tempfile.TemporaryDirectory(prefix="nodemesh-bench-") as name:
            folder = Path(name)
            say(f"bringing up a testbed with the paths {', '.join(options.paths)}")
            with paths.opened(options.paths, folder) as opened:
                results, others = measure(opened, rounds=options.rounds, seconds=options.seconds, folder=folder)
    except (RuntimeError, OSError, CaptureError) as error:
        say(f"tools/bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("tools/bench: interrupted")
        return 130
    print(
        f"{os.cpu_count()} cores for the load, the server and the proxies together, "
        f"{others:.0%} busy with other things between rounds; Linux {platform.release()}; "
        f"medians of {options.rounds} rounds of {options.seconds:g} s\n"
    )
    print(figures.table(results))
    for path, series in results.items():
        if series.rss_mb:
            print(f"\n{path}: " + ", ".join(f"{what} {size:.0f} MB" for what, size in series.rss_mb.items()))
    if options.json:
        options.json.write_text(json.dumps(figures.document(results), indent=2) + "\n")
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
