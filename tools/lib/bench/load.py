"""The load: wrk for requests and new connections, iperf3 for bulk, nginx and `iperf3 -s` behind the path."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

HTTP_PORT = 8080
BULK_PORT = 5201

# wrk's own text rounds; its Lua hook has the figures. With `done` alone no Lua runs while it measures.
_REPORT = """
done = function(summary, latency, requests)
   local e = summary.errors
   io.write(string.format('{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      e.connect + e.read + e.write + e.status + e.timeout))
end
"""

# One worker is enough: direct, it answers more than twice what any proxy here asks of it.
_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 16384; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 600;
    server {{ listen {port} backlog=4096; location / {{ return 200 "ok"; }} }}
}}
"""


class LoadError(RuntimeError):
    """A load generator did not do its work, so there is no figure."""


@dataclass(frozen=True)
class Requests:
    """What one run of wrk saw."""

    requests: int
    rps: float
    p50_us: float
    p99_us: float
    errors: int


def nginx_command(folder: Path) -> list[str]:
    """How to run the HTTP server, whose files are in `folder`."""
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=HTTP_PORT))
    return ["nginx", "-c", str(config), "-e", str(folder / "nginx.err")]


def requests(
    netns: str, url: str, *, connections: int, seconds: float, script: Path, close: bool = False, lua: str = ""
) -> Requests:
    """Run wrk in `netns`, one thread, against `url`; with `close`, each request on a connection of its own.

    `lua`: what makes its requests, where not all are alike; `script` is the file for it and for our own.
    """
    script.write_text(_REPORT + lua)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    if close:
        command += ["-H", "Connection: close"]
    output = run(netns, [*command, url], seconds)
    _, brace, report = output.rpartition("{")
    if not brace:
        raise LoadError(f"wrk reported nothing: {output[-500:]}")
    seen = json.loads(brace + report)
    if not seen["requests"]:
        raise LoadError(f"no request got an answer from {url}")
    return Requests(
        requests=seen["requests"],
        rps=seen["requests"] / seen["us"] * 1e6,
        p50_us=seen["p50"],
        p99_us=seen["p99"],
        errors=seen["errors"],
    )


def bulk_gbps(netns: str, address: str, *, seconds: float) -> float:
    """Send on one TCP connection from `netns` to iperf3 at `address`; Gb/s as received, the first second left out."""
    command = ["iperf3", "-c", address, "-p", str(BULK_PORT), "-t", str(max(1, round(seconds))), "-O", "1", "-J"]
    output = run(netns, command, seconds + 1)
    report = json.loads(output)
    if "error" in report or "sum_received" not in report.get("end", {}):
        raise LoadError(f"iperf3 to {address}: {report.get('error', 'no result')}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def run(netns: str, command: list[str], seconds: float) -> str:
    """The output of a load generator that runs for `seconds`. Raises `LoadError`."""
    try:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *command], capture_output=True, text=True, timeout=seconds + 30
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{command[0]} did not end within {error.timeout:.0f} s") from error
    if done.returncode and not done.stdout.strip():
        raise LoadError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
