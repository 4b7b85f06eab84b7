"""A cluster that is up, and making and removing one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kubebed import machine, network, pki, spec
from kubebed.cache import Parts
from kubebed.control import SILENCE_SECONDS, ControlPlane
from kubebed.errors import KubebedError
from kubebed.node import CGROUP, Host, remove_cgroups
from kubebed.spec import CONTROL, DISKS, RUN, Spec
from kubebed.steps import step
from testbed.beds import Beds
from testbed.network import NETNS, processes, run
from testbed.processes import Processes


def names() -> list[str]:
    """The clusters there are, in whatever state."""
    groups = [path / CGROUP for path in machine.hierarchies().values()]
    found = {
        path.name for folder in (RUN, DISKS, *groups) if folder.is_dir() for path in folder.iterdir() if path.is_dir()
    }
    return sorted(found | {path.name.split("-")[1] for path in NETNS.glob("kb-*-*")})


BEDS = Beds("cluster", "kubebed", KubebedError, names)


def find(name: str = "") -> Cluster:
    """The cluster of this name, or the only one. Raises `KubebedError`."""
    folder = RUN / BEDS.choose(name)
    try:
        facts = json.loads((folder / "spec.json").read_text())
        return Cluster(
            spec.make(folder.name, facts["number"], facts["nodes"]),
            Parts(**{part: Path(path) for part, path in facts["parts"].items()}),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise KubebedError(
            f"cluster {folder.name} is incomplete; remove it with: tools/kubebed -n {folder.name} down"
        ) from None


class Cluster:
    """One cluster."""

    def __init__(self, spec: Spec, parts: Parts) -> None:
        self.spec, self.parts = spec, parts
        self.folder, self.disks = RUN / spec.name, DISKS / spec.name
        self.processes = Processes(self.folder)
        self.control = ControlPlane(spec, parts, self.folder, self.processes)
        self.hosts = {
            node.name: Host(spec, node, parts, self.folder / "pki", self.disks / node.name, self.processes)
            for node in spec.nodes
        }

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for use on this machine; it holds its own certificates."""
        return self.folder / "pki/admin.kubeconfig"

    def host(self, name: str) -> Host:
        """A node by name. Raises `KubebedError`."""
        return self.hosts[self.spec.node(name).name]

    # Using it.

    def kubectl_command(self, argv: Iterable[str]) -> list[str]:
        """The command line of a kubectl for this cluster."""
        return [str(self.parts.program("kubectl")), f"--kubeconfig={self.kubeconfig}", *argv]

    def kubectl(self, *argv: str, stdin: str = "") -> str:
        """What kubectl says. Raises `KubebedError`."""
        done = subprocess.run(
            self.kubectl_command(argv), input=stdin, capture_output=True, text=True, env=without_proxies()
        )
        if done.returncode:
            raise KubebedError(f"kubectl {' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *argv: str) -> Any:
        """`kubectl get -o json`. Raises `KubebedError`."""
        return json.loads(self.kubectl("get", "-o", "json", *argv))

    def enter(self, who: str, argv: list[str]) -> list[str]:
        """The command line that runs `argv` on a node, or beside the control plane (`control`)."""
        if who == CONTROL:
            return ["nsenter", f"--net={NETNS / self.spec.netns(CONTROL)}", "--", *argv]
        return self.host(who).enter(argv)

    # Making it.

    def up(self, silence_seconds: int = SILENCE_SECONDS) -> None:
        """Make it and wait until its nodes are Ready. Raises whatever was in the way, half-made."""
        self.folder.mkdir(parents=True)
        run(["mount", "-t", "tmpfs", "-o", "mode=0700", "nodemesh-kubebed", str(self.folder)])
        facts = {"number": self.spec.number, "nodes": len(self.spec.nodes), "parts": self.parts.paths}
        (self.folder / "spec.json").write_text(json.dumps(facts))
        with step("starting the control plane"):
            network.create(self.spec)
            pki.create(self.folder / "pki", self.spec)
            self.control.start(silence_seconds)
        with step(f"starting {', '.join(self.hosts)}"):
            for host in self.hosts.values():
                network.connect(self.spec, host.node)
                host.install()
            images = sorted(self.parts.images.glob("*.tar"))
            self._on_each(self.hosts.values(), lambda host: self._boot(host, images))

    def start_node(self, name: str) -> None:
        """Switch a node on and wait until it is Ready."""
        host = self.host(name)
        if host.on:
            raise KubebedError(f"{name} is on already")
        with step(f"starting {name}"):
            network.connect(self.spec, host.node)
            self._boot(host, [])

    def stop_node(self, name: str) -> None:
        """Switch a node off, like pulling its plug."""
        host = self.host(name)
        host.stop()
        network.remove(self.spec.netns(host.node))

    def load(self, image: Path) -> list[str]:
        """Import an image on every node that is on; their names."""
        hosts = [host for host in self.hosts.values() if host.on]
        self._on_each(hosts, lambda host: host.load([image]))
        return [host.node.name for host in hosts]

    def _boot(self, host: Host, images: list[Path]) -> None:
        name = host.node.name
        _, before = self._readiness(name)
        host.boot()
        host.load(images)
        host.start_kubelet()
        self.control.await_true(name, lambda: self._ready_since(name, before), "be Ready")
        self.kubectl(
            "patch", "node", name, "-p", json.dumps({"spec": {"podCIDR": host.node.pods, "podCIDRs": [host.node.pods]}})
        )

    def _ready_since(self, name: str, before: str) -> bool:
        """Whether it has said, after a heartbeat of `before`, that it is ready."""
        status, heartbeat = self._readiness(name)
        return status == "True" and heartbeat != before

    def _readiness(self, name: str) -> tuple[str, str]:
        """The status of a node's Ready condition and the time of the heartbeat that said so."""
        with contextlib.suppress(KubebedError):
            for condition in self.get("node", name)["status"].get("conditions", []):
                if condition["type"] == "Ready":
                    return condition["status"], condition["lastHeartbeatTime"]
        return "Unknown", ""

    @staticmethod
    def _on_each(hosts: Iterable[Host], act: Callable[[Host], None]) -> None:
        """At the same time."""
        with ThreadPoolExecutor(spec.MOST_NODES) as pool:
            list(pool.map(act, hosts))


def without_proxies() -> dict[str, str]:
    """Our environment, but nothing that makes kubectl look for the cluster behind a proxy."""
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    return {key: value for key, value in os.environ.items() if key.lower() not in proxies}


def make(name: str, nodes: int, parts: Parts, silence_seconds: int = SILENCE_SECONDS) -> Cluster:
    """Make a cluster and wait until it is ready; removed again if that fails. Raises `KubebedError`.

    A node is NotReady when nothing was heard of it for `silence_seconds`.
    """
    with BEDS.claim(name):
        spec.make(name, 1, nodes)
        if name in names():
            raise KubebedError(f"cluster {name} is up already; remove it with: tools/kubebed -n {name} down")
        try:
            cluster = Cluster(spec.make(name, network.reserve(name), nodes), parts)
            cluster.up(silence_seconds)
        except BaseException:
            _remove(name)
            raise
        return cluster


def down(name: str) -> bool:
    """Remove a cluster, whatever became of it. False if there was nothing to remove."""
    with BEDS.claim(name):
        if name not in names():
            return False
        _remove(name)
        return True


def _remove(name: str) -> None:
    """Right at any stage, also when nothing is there."""
    namespaces = [path.name for path in NETNS.glob(f"kb-{name}-*")]
    groups = [path / CGROUP / name for path in machine.hierarchies().values()]
    deadline = time.monotonic() + 20
    while (left := {*processes(namespaces), *_members(groups)}) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    remove_cgroups(groups)
    for namespace in namespaces:
        network.remove(namespace)
    for folder in (RUN / name, DISKS / name):
        while folder.is_mount():
            run(["umount", "--lazy", str(folder)])
        if folder.exists():
            shutil.rmtree(folder)
    for shared in (RUN, DISKS, *(group.parent for group in groups)):
        with contextlib.suppress(OSError):
            shared.rmdir()


def _members(groups: list[Path]) -> set[int]:
    """The processes in these cgroups and those below."""
    pids: set[int] = set()
    for group in groups:
        for file in group.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                pids.update(map(int, file.read_text().split()))
    return pids
