"""A node: a host with a disk, namespaces, and cgroups of its own, that can be switched off and on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kubebed import machine
from kubebed.cache import Parts
from kubebed.errors import KubebedError
from kubebed.spec import POD_RANGE, Node, Spec
from testbed.network import NETNS
from testbed.processes import Processes

_BOOT = Path(__file__).with_name("boot.sh")
_SERVICES = Path(__file__).with_name("services.sh")
_SECONDS = 60.0
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=xterm")
CGROUP = "nodemesh-kubebed"


class Host:
    """One node of one cluster; `disk` is where it writes, which outlives a `stop`."""

    def __init__(self, spec: Spec, node: Node, parts: Parts, pki: Path, disk: Path, processes: Processes) -> None:
        self.node = node
        self._spec, self._parts, self._pki, self._disk, self._processes = spec, parts, pki, disk, processes

    @property
    def on(self) -> bool:
        """Whether it is switched on."""
        return self._processes.alive(self.node.name)

    @property
    def root(self) -> Path:
        """Where its own changes to its file system are, as the machine sees them."""
        return self._disk / "upper"

    def install(self) -> None:
        """Make its disk: configuration and credentials on the system that the build made."""
        for name in ("upper", "work", "root", "containerd", "kubelet"):
            (self._disk / name).mkdir(parents=True)
        (self.root / "etc/kubernetes/manifests").mkdir(parents=True)
        files = {
            "etc/hostname": f"{self.node.name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n{self.node.address} {self.node.name}\n",
            # There is no cluster DNS, and this machine's is nothing that pods could reach.
            "etc/resolv.conf": "",
            "etc/machine-id": f"{uuid.uuid4().hex}\n",
            "etc/cni/net.d/10-kubebed.conflist": json.dumps(_cni(self.node), indent=2),
            "etc/containerd/config.toml": _CONTAINERD,
            "etc/kubernetes/address": self.node.address,
            "etc/kubernetes/kubelet.yaml": yaml.safe_dump(_KUBELET),
            "etc/kubernetes/kube-proxy.yaml": yaml.safe_dump(_KUBE_PROXY),
            "etc/kubebed/services": _SERVICES.read_text(),
        }
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        credentials = {
            "ca.crt": "ca.crt",
            f"{self.node.name}.kubeconfig": "kubelet.kubeconfig",
            f"{self.node.name}-server.crt": "kubelet.crt",
            f"{self.node.name}-server.key": "kubelet.key",
            "kube-proxy.kubeconfig": "kube-proxy.kubeconfig",
        }
        for source, target in credentials.items():
            shutil.copy(self._pki / source, self.root / "etc/kubernetes" / target)

    def boot(self) -> None:
        """Switch it on; returns when containerd answers. Its network is there already."""
        hierarchies = machine.hierarchies()
        groups = self._cgroups()
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
            _inherit_cpuset(group)
        lower = f"{self._parts.kubernetes / 'node'}:{self._parts.node}"
        # Namespaces are entered by what is in their cgroups already: a cgroup namespace begins where its maker is.
        enter = "".join(f"echo $$ >{group}/cgroup.procs; " for group in groups)
        boot = ["sh", str(_BOOT), str(self._disk), lower, self.node.name, *hierarchies]
        argv = ["nsenter", f"--net={NETNS / self._spec.netns(self.node)}", "unshare", "--mount", "--uts", "--ipc"]
        argv += ["--cgroup", "--pid", "--fork", "--kill-child", *boot]
        self._processes.start(self.node.name, ["sh", "-ec", f'{enter}exec "$@"', "sh", *argv], "")
        self._await(lambda: self.run(["ctr", "version"]).returncode == 0, "start containerd")

    def load(self, images: list[Path]) -> None:
        """Import images that it doesn't have yet."""
        for image in images:
            with image.open("rb") as file:
                done = self.run(["ctr", "-n", "k8s.io", "images", "import", "-"], stdin=file)
            if done.returncode:
                raise KubebedError(f"{self.node.name} can't import {image}: {done.stderr.strip()}")

    def start_kubelet(self) -> None:
        """Let kubelet and kube-proxy start, now that the images are there."""
        self.run(["touch", "/run/kubebed/images"])

    def enter(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` on the node. Raises `KubebedError` if it is off."""
        init = self._init()
        if init is None:
            raise KubebedError(f"{self.node.name} is off; switch it on with: tools/kubebed start-node {self.node.name}")
        namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup"]
        return ["nsenter", f"--target={init}", *namespaces, "--", "env", "-i", *_ENVIRONMENT, *argv]

    def run(self, argv: list[str], stdin: Any = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        """Run a program on the node and keep what it says."""
        return subprocess.run(self.enter(argv), stdin=stdin, capture_output=True, text=True)

    def stop(self) -> None:
        """Switch it off, like pulling its plug: every process ends; what it wrote stays."""
        self._processes.kill(self.node.name)
        remove_cgroups(self._cgroups())

    def log(self, daemon: str) -> Path:
        """The log of `containerd`, `kubelet` or `kube-proxy`."""
        return self.root / f"var/log/{daemon}.log"

    def _cgroups(self) -> list[Path]:
        return [path / CGROUP / self._spec.name / self.node.name for path in machine.hierarchies().values()]

    def _init(self) -> int | None:
        """The process on the machine that is number 1 on the node."""
        record = self._processes.record(self.node.name)
        if record is None or not record.alive:
            return None
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    if int(parent) == record.pid:
                        return int(entry.name)
        return None

    def _await(self, ready: Any, what: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while self._init() is None or not ready():
            if not self.on:
                raise KubebedError(f"{self.node.name} didn't boot:\n{self._processes.tail(self.node.name)}")
            if time.monotonic() > deadline:
                raise KubebedError(
                    f"{self.node.name} took more than {_SECONDS:.0f} s to {what}: see {self.root}/var/log"
                )
            time.sleep(0.1)


def _inherit_cpuset(group: Path) -> None:
    """A new cpuset is empty, and nothing can run in it, until it is told which CPUs and memory; from the top down."""
    for child in (group.parent.parent, group.parent, group):
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (child / name).exists() and not (child / name).read_text().strip():
                (child / name).write_text((child.parent / name).read_text())


def remove_cgroups(groups: list[Path]) -> None:
    """Remove these cgroups and those below, once their processes have ended. Raises `KubebedError`."""
    deadline = time.monotonic() + 10
    while left := [group for group in groups if group.exists()]:
        for group in left:
            for path, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)
        if time.monotonic() > deadline:
            raise KubebedError(f"processes are left in {', '.join(map(str, left))}")
        time.sleep(0.02)


def _cni(node: Node) -> dict[str, Any]:
    addresses = {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "mtu": 1500,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "kubebed", "plugins": [bridge, ports]}


_CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:3"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
_KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
    },
    "authorization": {"mode": "Webhook"},
    "tlsCertFile": "/etc/kubernetes/kubelet.crt",
    "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
    "staticPodPath": "/etc/kubernetes/manifests",
    "cgroupDriver": "cgroupfs",
    "failSwapOn": False,
    "resolvConf": "",
    "clusterDomain": "cluster.local",
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "1%",
        "imagefs.available": "1%",
        "nodefs.inodesFree": "1%",
    },
    # No image is ever removed: it couldn't be pulled again.
    "imageGCHighThresholdPercent": 100,
    "imageGCLowThresholdPercent": 99,
    "nodeStatusUpdateFrequency": "1s",
    "nodeStatusReportFrequency": "10s",
    # A quarter of it passes between signs of life.
    "nodeLeaseDurationSeconds": 16,
    "featureGates": {"BoundServiceAccountTokenVolume": True},
}
_KUBE_PROXY = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "iptables",
    "clusterCIDR": POD_RANGE,
    "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
    # The machine's settings, not the node's: hands off.
    "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
}
