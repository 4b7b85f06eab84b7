"""The network of a testbed: namespaces, a bridge between the hosts, a veth for each pod.

A pod's only neighbour is its node (169.254.1.1 and fe80::1, as CNI plug-ins do it), and a node routes the pods of
others over the fabric. Everything is in namespaces called `nm-<testbed>-…`, so that is all `destroy` has to know.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from testbed.spec import CONTROLLER_ADDRESS, FABRIC_ADDRESS, Pod, Spec

NETNS = Path("/run/netns")
ETC = Path("/etc/netns")
"""`ip netns exec NAME` mounts the files of `/etc/netns/NAME` over those of `/etc`."""


class NetworkError(Exception):
    """A command of iproute2 or iptables failed."""


def run(argv: list[str], stdin: str = "") -> str:
    """Run a command. Raises `NetworkError` with what it said."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def create(spec: Spec) -> None:
    """Make it all. Raises `NetworkError`; what was made by then is `destroy`'s to remove."""
    run(["ip", "-batch", "-"], "".join(f"netns add {namespace}\n" for namespace in spec.namespaces))
    ipv6 = Path("/proc/sys/net/ipv6").exists()
    fabric, controller = spec.netns("fabric"), spec.netns("controller")
    for namespace in spec.namespaces:
        if ipv6:
            _sysctl(namespace, "ipv6/conf/all/disable_ipv6=0", "ipv6/conf/default/disable_ipv6=0")
        _ip(namespace, "link set lo up")
    _ip(
        fabric,
        "link add br0 type bridge",
        "link set br0 up",
        f"addr add {FABRIC_ADDRESS}/24 dev br0",
        *(["addr add fd30::fd/64 dev br0 nodad"] if ipv6 else []),
        *(f"route add 10.77.{node.number}.0/24 via {node.address}" for node in spec.nodes),
        *(f"route add fd77:0:0:{n.number:x}::/64 via fd30::{n.number:x}" for n in spec.nodes if ipv6),
    )
    hosts = [(spec.netns(node), node.number) for node in spec.nodes]
    for namespace, number in [*hosts, (controller, int(CONTROLLER_ADDRESS.rsplit(".", 1)[1]))]:
        port = f"port{number}"
        _ip(
            fabric,
            f"link add {port} type veth peer name eth0 netns {namespace}",
            f"link set {port} master br0",
            f"link set {port} up",
        )
        _ip(
            namespace,
            f"addr add 172.30.0.{number}/24 dev eth0",
            *([f"addr add fd30::{number:x}/64 dev eth0 nodad"] if ipv6 else []),
            "link set eth0 up",
        )
    for node in spec.nodes:
        namespace = spec.netns(node)
        _sysctl(
            namespace,
            "ipv4/ip_forward=1",
            "ipv4/conf/all/rp_filter=0",
            "ipv4/conf/default/rp_filter=0",
            "ipv4/conf/eth0/rp_filter=0",
            *(["ipv6/conf/all/forwarding=1"] if ipv6 else []),
        )
        others = [other for other in spec.nodes if other != node]
        _ip(
            namespace,
            "addr add 169.254.1.1/32 dev lo scope link",
            f"route add default via {FABRIC_ADDRESS}",
            *(["route add default via fd30::fd"] if ipv6 else []),
            *(f"route add 10.77.{other.number}.0/24 via {other.address}" for other in others),
            *(f"route add fd77:0:0:{o.number:x}::/64 via fd30::{o.number:x}" for o in others if ipv6),
        )
        for index, pod in enumerate((pod for pod in spec.pods if pod.node == node.name), 1):
            _connect(spec, pod, namespace, f"pod{index}", node.address, ipv6)


def _connect(spec: Spec, pod: Pod, node: str, veth: str, node_address: str, ipv6: bool) -> None:
    v4, v6 = pod.addresses
    _ip(
        spec.netns(pod),
        f"link add eth0 type veth peer name {veth} netns {node}",
        f"addr add {v4}/32 dev eth0",
        *([f"addr add {v6}/128 dev eth0 nodad"] if ipv6 else []),
        "link set eth0 up",
    )
    _ip(
        node,
        *([f"addr add fe80::1/64 dev {veth} nodad"] if ipv6 else []),
        f"link set {veth} up",
        f"route add {v4}/32 dev {veth} src {node_address}",
        *([f"route add {v6}/128 dev {veth}"] if ipv6 else []),
    )
    _ip(
        spec.netns(pod),
        "route add 169.254.1.1 dev eth0",
        "route add default via 169.254.1.1",
        *(["route add default via fe80::1 dev eth0"] if ipv6 else []),
    )


def _ip(namespace: str, *commands: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], "\n".join(commands) + "\n")


def _sysctl(namespace: str, *settings: str) -> None:
    script = "".join(f"echo {value} >/proc/sys/net/{key}\n" for key, value in (s.split("=") for s in settings))
    run(["nsenter", f"--net={NETNS / namespace}", "sh", "-e"], script)


def remaining(testbed: str) -> list[str]:
    """The network namespaces and `/etc/netns` entries that a testbed of this name has now."""
    names = {path.name for folder in (NETNS, ETC) for path in folder.glob(f"nm-{testbed}-*")}
    return sorted(names)


def processes(namespaces: Iterable[str]) -> list[int]:
    """The ids of all processes in these network namespaces."""
    inodes = set()
    for namespace in namespaces:
        with suppress(OSError):
            inodes.add((NETNS / namespace).stat().st_ino)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "ns/net").stat().st_ino in inodes:
                    found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def destroy(testbed: str) -> None:
    """End every process in the testbed's namespaces and remove them. Right at any stage, also when nothing is there."""
    names = remaining(testbed)
    deadline = time.monotonic() + 10
    while (left := processes(names)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for name in names:
        if (NETNS / name).exists():
            run(["ip", "netns", "del", name])
        shutil.rmtree(ETC / name, ignore_errors=True)
    with suppress(OSError):
        ETC.rmdir()
