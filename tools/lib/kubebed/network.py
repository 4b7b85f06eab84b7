"""The network of a cluster: its hosts' namespaces, a bridge between them, and the machine's leg to the API server."""

from __future__ import annotations

import subprocess

from kubebed.errors import KubebedError
from kubebed.spec import CONTROL, CONTROL_ADDRESS, Node, Spec, make
from testbed.network import NETNS, NetworkError, run

_BRIDGE_MAC = "02:00:0a:63:00:01"
"""Fixed: a bridge otherwise takes its lowest port's, and what its neighbours know is wrong when a port comes."""


def reserve(name: str) -> int:
    """Make the control plane's namespace and the machine's leg to it; the cluster's number, the first that is free.

    The kernel decides: two legs can't have one name. Raises `KubebedError`, `NetworkError`.
    """
    control = make(name, 1, 1).netns(CONTROL)
    run(["ip", "netns", "add", control])
    for number in range(1, 255):
        try:
            run(
                [
                    "ip",
                    "link",
                    "add",
                    make(name, number, 1).leg,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "machine",
                    "netns",
                    control,
                ]
            )
        except NetworkError as error:
            if "exists" not in str(error):
                raise
        else:
            return number
    raise KubebedError("254 clusters are up, which is all there can be")


def create(spec: Spec) -> None:
    """The network between the hosts, without any node, on what `reserve` made. Raises `NetworkError`."""
    control = spec.netns(CONTROL)
    _ip(
        control,
        "link set lo up",
        f"link add br0 address {_BRIDGE_MAC} type bridge",
        f"addr add {CONTROL_ADDRESS}/24 dev br0",
        "link set br0 up",
    )
    _forward(control)
    run(["ip", "addr", "add", f"{spec.machine_address}/24", "dev", spec.leg])
    run(["ip", "link", "set", spec.leg, "up"])
    _ip(control, f"addr add {spec.api_address}/24 dev machine", "link set machine up")


def connect(spec: Spec, node: Node) -> None:
    """A node's namespace, its cable, and the routes to its pods and to those of others."""
    control, namespace = spec.netns(CONTROL), spec.netns(node)
    run(["ip", "netns", "add", namespace])
    _ip(
        control,
        f"link add {node.name} type veth peer name eth0 netns {namespace}",
        f"link set {node.name} master br0 up",
    )
    _ip(
        namespace,
        "link set lo up",
        f"addr add {node.address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {CONTROL_ADDRESS}",
        # This kubelet asks a cloud's metadata service at start; no answer costs 11 s.
        "route add unreachable 169.254.169.254/32",
        *(f"route add {other.pods} via {other.address}" for other in spec.nodes if other != node),
    )
    _forward(namespace)
    _ip(control, f"route replace {node.pods} via {node.address}")


def remove(namespace: str) -> None:
    """Remove a host's namespace, in which nothing runs any more, and the cables to it."""
    if not (NETNS / namespace).exists():
        return
    # The kernel would remove them too, some time after the namespace.
    for cable in ("eth0", "machine"):
        subprocess.run(["ip", "-n", namespace, "link", "del", cable], capture_output=True)
    run(["ip", "netns", "del", namespace])


def _ip(namespace: str, *commands: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], "\n".join(commands) + "\n")


def _forward(namespace: str) -> None:
    script = "echo 1 >/proc/sys/net/ipv4/ip_forward"
    run(["nsenter", f"--net={NETNS / namespace}", "sh", "-ec", script])
