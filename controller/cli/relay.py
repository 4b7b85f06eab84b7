"""meshctl relay: requests on standard input to mesh-controller's socket, one JSON line each, answers likewise.

`meshctl` elsewhere runs it in a controller's pod, so that all that is asked of a mesh on Kubernetes goes through the
cluster's own authentication (`pods/exec` in nodemesh-system) and the socket stays a socket.
"""

from __future__ import annotations

import json
import sys

import click

from controller.cli.client import Client
from mesh.present.failure import Exit, Failure
from mesh.present.options import examples


@examples("meshctl relay < requests.jsonl")
@click.command(hidden=True)
@click.pass_obj
def relay(client: Client) -> None:
    """Pass on requests from standard input: what meshctl runs in a controller's pod."""
    for line in sys.stdin.buffer:
        try:
            asked = json.loads(line)
            request = [asked[name] for name in ("method", "path", "query", "body", "patience")]
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(f"not a request: {type(error).__name__}: {error}", "", Exit.USAGE) from None
        status, content = client.request(*request)
        answer = json.dumps({"status": status, "content": content.decode(errors="replace")})
        click.echo(answer.encode() + b"\n", nl=False)
