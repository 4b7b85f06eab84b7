"""`tools/bench kube`: how the controller fares with many pods and nodes, on a real API server.

A cluster of `tools/kubebed` of its own, the mesh put there by `meshctl install`, then what `population` measures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from bench import scale
from bench.fleet import FleetError
from bench.population import measure
from bench.scale import Scale
from bench.simulated import Plan
from controller.kubernetes.client import ClusterError
from kubebed import cache, machine, product
from kubebed import cluster as clusters
from kubebed.cluster import Cluster
from kubebed.errors import KubebedError
from kubebed.steps import say
from testbed.network import NetworkError

_SILENCE_SECONDS = 300
"""Long, so that a machine that is busy does not make the cluster take simulated nodes for lost."""


def add(kinds: Any) -> None:
    """The command's options."""
    parser = kinds.add_parser(
        "kube",
        help="the controller with many simulated pods and nodes, against a real API server",
        description="Makes a cluster of its own (as tools/kubebed does), installs the mesh, adds simulated nodes, "
        "which speak the node's side of the protocol, and creates simulated pods as fast as the API server takes them. "
        "Then, with all of them there, single changes: a pod becomes ready, unready, ready again, and is deleted; a "
        "policy is applied and deleted. Measured: the time until the last node knows, the bytes sent to a node, and "
        "memory and CPU of the controller's replicas.",
    )
    parser.add_argument("--pods", type=int, default=2000, metavar="N", help="default: %(default)s")
    parser.add_argument("--nodes", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--changes", type=int, default=50, metavar="N", help="of each kind (default: %(default)s)")
    parser.add_argument(
        "--idle", type=float, default=20, metavar="S", help="measured with no change (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def run(options: argparse.Namespace) -> int:
    """Run it; 0, or 1 with the reason on stderr."""
    figures: Scale | None = None
    try:
        plan = Plan(options.pods, options.nodes)
        with _installed() as bed:
            figures = trio.run(measure, bed, plan, options.changes, options.idle)
    except* (KubebedError, NetworkError, ClusterError, FleetError, trio.TooSlowError, ValueError, OSError) as group:
        for error in _leaves(group):
            say(f"tools/bench: {error or type(error).__name__}")
    except* KeyboardInterrupt:
        say("tools/bench: interrupted")
    if figures is None:
        return 1
    others = " and ".join(f"{share:.0%} during {when}" for when, share in figures.others_share.items())
    print(
        f"{os.cpu_count()} cores for the API server, etcd, {plan.nodes} simulated nodes and the controllers together, "
        f"of which processes besides took {others}\n\n{scale.tables(figures)}"
    )
    if options.json:
        options.json.write_text(json.dumps(scale.document(figures), indent=2) + "\n")
    return 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@contextlib.contextmanager
def _installed() -> Iterator[Cluster]:
    """A cluster with this checkout's mesh, gone afterwards."""
    machine.check()
    name = f"bench{secrets.token_hex(3)}"
    try:
        bed = clusters.make(name, 2, cache.build(), _SILENCE_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.tar"
            product.build(image)
            bed.load(image)
        meshctl = Path(sys.executable).with_name("meshctl")
        done = subprocess.run(
            [meshctl, "--kubeconfig", bed.kubeconfig, "install"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise KubebedError(f"meshctl install: {done.stdout}{done.stderr}")
        yield bed
    finally:
        clusters.down(name)
