"""What a testbed file says, and what follows from it alone: namespaces and addresses.

Every testbed has a fabric of its own, connected to nothing else, so all of them use the same subnets:

    nodes         172.30.0.<n>/24  fd30::<n>/64       the controller is number 254, the fabric's bridge 253
    pods          10.77.<n>.<m>    fd77:0:0:<n>::<m>  the m-th pod of the n-th node, from 2 up
    services      10.96.0.0/16
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from testbed.beds import NAME_RULE, is_name
from testbed.document import Map, SpecError, load

POD_RANGES = ("10.77.0.0/16", "fd77::/48")
SERVICE_RANGE = "10.96.0.0/16"
CONTROLLER_ADDRESS = "172.30.0.254"
FABRIC_ADDRESS = "172.30.0.253"
_RESERVED = ("controller", "fabric")


@dataclass(frozen=True)
class Pod:
    """A network namespace on a node, with a program in it if `run` is not empty."""

    name: str
    namespace: str
    node: str
    service_account: str
    labels: dict[str, str]
    mesh: bool
    run: tuple[str, ...]
    addresses: tuple[str, str]
    """IPv4 and IPv6."""

    @property
    def uid(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Node:
    """A host."""

    name: str
    number: int

    @property
    def address(self) -> str:
        """On the fabric."""
        return f"172.30.0.{self.number}"


@dataclass(frozen=True)
class Spec:
    """One testbed."""

    name: str
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    services: tuple[dict[str, Any], ...]
    """Kubernetes `Service` resources."""
    policies: tuple[Path, ...]
    noded: dict[str, Any]
    """Settings of noded.yaml that differ from the testbed's own."""
    controller: dict[str, Any]
    """The same of controller.yaml."""

    def netns(self, who: Node | Pod | str) -> str:
        """The network namespace of a node, a pod, `controller` or `fabric`."""
        if isinstance(who, Pod):
            return f"nm-{self.name}-{who.namespace}.{who.name}"
        return f"nm-{self.name}-{who.name if isinstance(who, Node) else who}"

    @cached_property
    def namespaces(self) -> tuple[str, ...]:
        """All of its network namespaces."""
        everyone: list[Node | Pod | str] = [*_RESERVED, *self.nodes, *self.pods]
        return tuple(map(self.netns, everyone))

    def node(self, name: str) -> Node:
        """A node by name. Raises `SpecError`."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise SpecError(f"testbed {self.name} has no node '{name}'; it has {', '.join(n.name for n in self.nodes)}")

    def pod(self, name: str) -> Pod:
        """A pod by `NAME` or `NAMESPACE/NAME`. Raises `SpecError`, also when a bare name means two."""
        found = [pod for pod in self.pods if name in (pod.name, pod.uid)]
        if len(found) > 1:
            raise SpecError(f"'{name}' is one of {', '.join(p.uid for p in found)}: say which")
        if not found:
            raise SpecError(f"testbed {self.name} has no pod '{name}'; it has {', '.join(p.uid for p in self.pods)}")
        return found[0]


def parse(text: str, file: Path, *, up: bool = False) -> Spec:
    """A testbed file, or (`up`) one that a testbed was made from, whose `policies` have been applied and may be gone.

    `policies` are relative to the file. Raises `SpecError` with everything that is wrong.
    """
    top, faults = load(text, str(file))
    top.only("name", "nodes", "pods", "services", "policies", "noded", "controller")
    name = top.text("name")
    if name and not is_name(name):
        faults.add(top.at("name"), f"name: '{name}' must be {NAME_RULE}")
    nodes = tuple(Node(node, number) for number, node in enumerate(top.texts("nodes"), 1))
    if not nodes:
        faults.add(top.at("nodes"), "nodes: at least one is needed, e.g. nodes: [node-a, node-b]")
    if len(nodes) > 250:
        faults.add(top.at("nodes"), "nodes: at most 250")
    for node in nodes:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", node.name) or node.name in _RESERVED:
            faults.add(
                top.at("nodes"), f"nodes: '{node.name}' can't be used: a DNS label, not {' or '.join(_RESERVED)}"
            )
    if len({node.name for node in nodes}) < len(nodes):
        faults.add(top.at("nodes"), "nodes: a name is given twice")
    pods = _pods(top, {node.name: node.number for node in nodes})
    services = tuple(_service(entry) for entry in top.maps("services"))
    policies = tuple(file.parent / policy for policy in top.texts("policies"))
    for policy in policies:
        if not up and not policy.is_file():
            faults.add(top.at("policies"), f"policies: there is no file {policy}")
    spec = Spec(name, nodes, pods, services, policies, top.anything("noded"), top.anything("controller"))
    faults.finish()
    return spec


def _pods(top: Map, numbers: dict[str, int]) -> tuple[Pod, ...]:
    pods: dict[str, Pod] = {}
    on_node = dict.fromkeys(numbers, 1)
    for entry in top.maps("pods"):
        entry.only("name", "node", "namespace", "serviceAccount", "labels", "mesh", "run")
        node = entry.text("node")
        if node and node not in numbers:
            entry.faults.add(entry.at("node"), f"{entry.where}.node: '{node}' is not one of nodes")
        on_node[node] = on_node.get(node, 1) + 1
        if on_node[node] > 254:
            entry.faults.add(entry.node, f"{entry.where}: a node takes at most 253 pods")
        number, last = numbers.get(node, 0), on_node[node]
        pod = Pod(
            name=entry.label("name"),
            namespace=entry.label("namespace", "default"),
            node=node,
            service_account=entry.label("serviceAccount", "default"),
            labels=entry.strings("labels"),
            mesh=entry.flag("mesh", True),
            run=entry.texts("run"),
            addresses=(f"10.77.{number}.{last}", f"fd77:0:0:{number:x}::{last:x}"),
        )
        if pod.uid in pods:
            entry.faults.add(entry.node, f"{entry.where}: there is a pod {pod.uid} already")
        pods[pod.uid] = pod
    return tuple(pods.values())


def _service(entry: Map) -> dict[str, Any]:
    entry.only("name", "namespace", "selector", "ports", "clusterIP")
    ports: list[dict[str, Any]] = []
    for port in entry.maps("ports", required=True):
        port.only("name", "port", "targetPort", "appProtocol")
        number = port.port("port")
        described: dict[str, Any] = {"port": number, "targetPort": port.port("targetPort", number)}
        for key in ("name", "appProtocol"):
            if value := port.text(key, ""):
                described[key] = value
        ports.append(described)
    if len(ports) > 1 and any("name" not in port for port in ports):
        entry.faults.add(entry.at("ports"), f"{entry.where}.ports: each of several ports needs a name")
    body: dict[str, Any] = {"selector": entry.strings("selector"), "ports": ports}
    if address := entry.text("clusterIP", ""):
        body["clusterIP"] = address
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": entry.label("name"), "namespace": entry.label("namespace", "default")},
        "spec": body,
    }
