"""The load of `tools/bench l7`: wrk and nginx for HTTP/1.1, h2load and nghttpd for HTTP/2 and unary gRPC calls.

nghttpd serves a file for each: for gRPC a message, with `grpc-status: 0` in the trailers. Direct, both answer several
times what any proxy here asks of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import quantiles

from bench import load, work
from bench.load import LoadError, Requests
from bench.work import Protocol

_MESSAGE = b"\0\0\0\0\2\x08\x01"
"""Not compressed, two bytes: field 1 is 1."""
_BODIES = {"http/2": b"ok", "grpc": _MESSAGE}


def servers(folder: Path) -> list[list[str]]:
    """How to run the servers of all protocols, whose files are in `folder`."""
    types = folder / "types"
    types.write_text("application/grpc grpc\n")
    commands = [load.nginx_command(folder)]
    for protocol in work.PROTOCOLS:
        if protocol.http2:
            root = folder / str(protocol.target_port)
            file = root / protocol.path[1:]
            file.parent.mkdir(parents=True)
            file.write_bytes(_BODIES[protocol.name])
            command = ["nghttpd", "--no-tls", "-d", str(root), f"--mime-types-file={types}"]
            trailer = ["--trailer=grpc-status: 0"] if protocol is work.GRPC else []
            commands.append([*command, *trailer, str(protocol.target_port)])
    return commands


_NEW_PATHS = """
local number = 0
request = function()
   number = number + 1
   return wrk.format(nil, wrk.path .. "/" .. number)
end
"""


def requests(
    netns: str,
    protocol: Protocol,
    host: str,
    port: int,
    *,
    connections: int,
    seconds: float,
    folder: Path,
    new_paths: bool = False,
) -> Requests:
    """Load `host` from `netns`, with one request at a time on each connection. Raises `LoadError`.

    `new_paths`: no two requests of a run have the same path (HTTP/1.1 only).
    """
    url = f"http://{host}:{port}{protocol.path}"
    if not protocol.http2:
        script = folder / "report.lua"
        lua = _NEW_PATHS if new_paths else ""
        return load.requests(netns, url, connections=connections, seconds=seconds, script=script, lua=lua)
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{max(1, round(seconds))}", f"--log-file={log}"]
    if protocol is work.GRPC:
        message = folder / "message"
        message.write_bytes(_MESSAGE)
        command += [f"--data={message}", "-Hcontent-type: application/grpc", "-Hte: trailers"]
    output = load.run(netns, [*command, url], seconds)
    return report(output, log.read_text(), url, len(_BODIES[protocol.name]))


def report(output: str, log: str, url: str, size: int) -> Requests:
    """What h2load said and logged of a run in which each body has `size` bytes. Raises `LoadError`."""
    finished = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", output)
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    data = re.search(r"\((\d+)\) data", output)
    if finished is None or counts is None or data is None:
        raise LoadError(f"h2load reported nothing of {url}: {output[-500:]}")
    succeeded, failed, _, _ = map(int, counts.groups())
    if not succeeded:
        raise LoadError(f"no request got an answer from {url}")
    # A call that a proxy refuses has HTTP's status 200 too, but no message.
    missing = max(0, succeeded - int(data.group(1)) // size)
    taken = [int(line.split("\t")[2]) for line in log.splitlines() if line]
    shares = quantiles(taken, n=100) if len(taken) > 1 else [0.0] * 99
    return Requests(succeeded, float(finished.group(1)), shares[49], shares[98], failed + missing)
