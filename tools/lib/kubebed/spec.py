"""The names and addresses of a cluster, which follow from its name and its number of nodes.

All of it is in network namespaces, so every cluster has the same addresses inside:

    nodes         10.99.0.<10+n>     the control plane is 10.99.0.1
    pods          10.244.<n>.0/24    of the n-th node
    services      10.96.0.0/16       the API server is 10.96.0.1

The machine itself reaches the API server, and nothing else, over a veth in 198.18.<cluster's number>.0/24, a range that
no network uses (RFC 2544).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kubebed.errors import KubebedError
from testbed.beds import NAME_RULE, is_name

POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
CONTROL_ADDRESS = "10.99.0.1"
CONTROL = "control"
MOST_NODES = 9
RUN = Path("/run/nodemesh-kubebed")
"""`NAME/` is a tmpfs for each cluster: its keys, etcd's data, logs, process ids, and what it was made from."""
DISKS = Path("/var/lib/nodemesh-kubebed")
"""`NAME/NODE/` is a node's disk."""


@dataclass(frozen=True)
class Node:
    """A host of the cluster."""

    number: int
    """From 1."""

    @property
    def name(self) -> str:
        """`node-a`, `node-b`, …"""
        return f"node-{chr(ord('a') + self.number - 1)}"

    @property
    def address(self) -> str:
        """On the network between the hosts."""
        return f"10.99.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The range of its pods' addresses."""
        return f"10.244.{self.number}.0/24"


@dataclass(frozen=True)
class Spec:
    """One cluster."""

    name: str
    number: int
    """1 to 254; no two clusters that are up have the same."""
    nodes: tuple[Node, ...]

    def netns(self, who: Node | str) -> str:
        """The network namespace of a node or of `control`."""
        return f"kb-{self.name}-{who.name if isinstance(who, Node) else who}"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All of its network namespaces."""
        return (self.netns(CONTROL), *map(self.netns, self.nodes))

    @property
    def leg(self) -> str:
        """The machine's interface to the control plane."""
        return f"kubebed{self.number}"

    @property
    def api_address(self) -> str:
        """The API server, as the machine sees it."""
        return f"198.18.{self.number}.1"

    @property
    def machine_address(self) -> str:
        """The machine, as the control plane sees it."""
        return f"198.18.{self.number}.254"

    def node(self, name: str) -> Node:
        """A node by name. Raises `KubebedError`."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KubebedError(f"cluster {self.name} has no node '{name}'; it has {', '.join(n.name for n in self.nodes)}")


def make(name: str, number: int, nodes: int) -> Spec:
    """A cluster of so many nodes. Raises `KubebedError`."""
    if not is_name(name):
        raise KubebedError(f"'{name}' can't be a cluster's name: it is {NAME_RULE}")
    if not 1 <= nodes <= MOST_NODES:
        raise KubebedError(f"a cluster has 1 to {MOST_NODES} nodes, not {nodes}")
    return Spec(name, number, tuple(map(Node, range(1, nodes + 1))))
