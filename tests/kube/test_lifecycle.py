"""`tools/kubebed` as it is typed: a cluster beside the one that the other tests use, from `up` to `down`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubebed import cluster as clusters
from kubebed import machine
from kubebed.cluster import Cluster
from kubebed.node import CGROUP
from kubebed.spec import DISKS, RUN
from testbed.network import NETNS, processes

NAME = f"o{os.getpid()}"


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "kubebed", *words]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def up(cluster: Cluster) -> Iterator[str]:
    """What `up` printed, of a cluster of one node; `cluster` has built what it needs."""
    try:
        done = typed("-n", NAME, "up", "--nodes", "1")
        assert done.returncode == 0, done.stderr
        yield done.stdout
    finally:
        clusters.down(NAME)


def test_up_says_what_there_is_and_status_says_it_again(up: str) -> None:
    assert "node-a" in up
    facts = json.loads(typed("-n", NAME, "status", "-o", "json").stdout)
    assert [(n["name"], n["power"], n["condition"]) for n in facts["nodes"]] == [("node-a", "on", "Ready")]
    assert {component["state"] for component in facts["components"]} == {"running"}
    assert f"KUBECONFIG={facts['kubeconfig']}\n" in up


def test_two_clusters_are_told_apart(up: str, cluster: Cluster) -> None:
    assert "choose with -n NAME" in typed("status").stderr
    here, there = (
        typed("-n", name, "kubectl", "get", "namespace", "default", "-o", "jsonpath={.metadata.uid}").stdout
        for name in (NAME, cluster.spec.name)
    )
    assert here
    assert there
    assert here != there


def test_options_of_kubectl_are_not_taken_for_ours(up: str) -> None:
    done = typed("-n", NAME, "kubectl", "-n", "kube-system", "get", "serviceaccount", "default", "-o", "name")
    assert (done.returncode, done.stdout) == (0, "serviceaccount/default\n"), done.stderr


def test_a_command_runs_on_a_node_and_beside_the_control_plane(up: str) -> None:
    assert typed("-n", NAME, "node", "node-a", "--", "hostname").stdout == "node-a\n"
    addresses = typed("-n", NAME, "node", "control", "--", "ip", "-br", "addr", "show", "br0").stdout
    assert "10.99.0.1/24" in addresses
    assert typed("-n", NAME, "node", "node-a", "--", "python3", "--version").returncode != 0


def test_up_of_a_cluster_that_is_up_leaves_it_alone(up: str) -> None:
    done = typed("-n", NAME, "up")
    assert (done.returncode, "is up already" in done.stderr) == (1, True)
    assert typed("-n", NAME, "kubectl", "get", "nodes").returncode == 0


def test_down_leaves_nothing_even_after_everything_crashed(up: str) -> None:
    bed = clusters.find(NAME)
    namespaces, leg = bed.spec.namespaces, Path("/sys/class/net") / bed.spec.leg
    assert leg.exists()
    for pid in processes(namespaces):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    (bed.folder / "spec.json").write_text("{")
    assert "is incomplete" in typed("-n", NAME, "status").stderr
    done = typed("down", NAME)
    assert done.returncode == 0, done.stderr
    assert not leg.exists()
    assert processes(namespaces) == []
    assert list(NETNS.glob(f"kb-{NAME}-*")) == []
    assert NAME not in Path("/proc/mounts").read_text()
    assert not any((path / CGROUP / NAME).exists() for path in machine.hierarchies().values())
    assert not any((folder / NAME).exists() for folder in (RUN, DISKS))
    assert "is not up" in typed("down", NAME).stderr


def test_down_of_what_is_no_cluster_removes_nothing(tmp_path: Path) -> None:
    name = os.path.relpath(tmp_path, RUN)
    done = typed("down", name)
    assert (done.returncode, "can't be a cluster's name" in done.stderr) == (1, True)
    assert tmp_path.is_dir()
