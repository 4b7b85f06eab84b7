"""The mesh on the cluster, and what tests of it put there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from kubebed.cluster import Cluster
from tests.kube.pods import Space, pod

MESHCTL = str(Path(sys.executable).with_name("meshctl"))
STRICT = {
    "apiVersion": "nodemesh.dev/v1alpha1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "default"},
    "spec": {"mtls": {"mode": "STRICT"}},
}


class Mesh:
    """meshctl, on this cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._installed = False

    def install(self) -> None:
        """Put it on the cluster."""
        self._installed = True
        self.ctl("install")

    def uninstall(self) -> None:
        """Take it away, if it is there."""
        if self._installed:
            self.ctl("uninstall", "--yes")
            self._installed = False

    def ctl(self, *argv: str, expect: int = 0) -> str:
        """What meshctl prints."""
        done = subprocess.run(
            [MESHCTL, *argv],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
        )
        assert done.returncode == expect, f"meshctl {' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def items(self, *argv: str) -> list[dict[str, Any]]:
        """The rows of a list."""
        rows: list[dict[str, Any]] = json.loads(self.ctl(*argv, "-o", "json"))["items"]
        return rows

    def meshed(self, namespace: str) -> set[str]:
        """Names of the pods of a namespace that are in the mesh."""
        return {row["name"] for row in self.items("workloads") if row["namespace"] == namespace and row["meshed"]}

    def opened(self) -> Counter[tuple[str, str, str]]:
        """Connections over mutual TLS by source, destination, and whose node has seen them (`source` or not)."""
        found: Counter[tuple[str, str, str]] = Counter()
        for edge in self.items("edges"):
            if edge["security"] == "mutual_tls":
                found[edge["source"]["workload"], edge["destination"]["workload"], edge["reporter"]] += edge["opened"]
        return found


def left(cluster: Cluster) -> dict[str, str]:
    """What an installation might leave: CNI entries and programs, rules of the hosts, our objects."""
    look = (
        "cat /etc/cni/net.d/*; ls /etc/cni/net.d /opt/cni/bin | sort; "
        "for t in raw nat mangle filter; do iptables-legacy-save -t $t; ip6tables-legacy-save -t $t; done "
        "| grep -i nodemesh; ip rule; ip -6 rule; "
        "ls /run/nodemesh /var/lib/cni/nodemesh 2>/dev/null; true"
    )
    found = {
        host.name: subprocess.run(
            cluster.enter(host.name, ["sh", "-c", look]), capture_output=True, text=True, check=True
        ).stdout
        for host in cluster.spec.nodes
    }
    kinds = "namespace,crd,clusterrole,clusterrolebinding,priorityclass"
    objects = cluster.kubectl("get", kinds, "-o", "name").splitlines()
    found["objects"] = "\n".join(name for name in objects if "nodemesh" in name)
    return found


def pod_networks(cluster: Cluster, node: str) -> dict[str, str]:
    """Rules and routes in the network namespace of each of a node's pods."""
    look = (
        "for netns in /run/netns/*; do echo @$netns; nsenter --net=$netns sh -c '"
        "iptables-legacy-save; ip6tables-legacy-save; ip rule; ip -6 rule; ip route show table all' "
        "| grep -v -e ^# -e ^: -e ^[*] -e ^COMMIT; done"  # a table without rules is there once somebody has looked
    )
    found = subprocess.run(cluster.enter(node, ["sh", "-c", look]), capture_output=True, text=True, check=True).stdout
    return {name: rest for name, _, rest in (part.partition("\n") for part in found.split("@")[1:])}


def service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    settings = {"selector": {"app": name}, "ports": ports} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": settings}


def idle(name: str, node: str, **spec: Any) -> dict[str, Any]:
    return pod(name, node, ["sleep", "100000"], **spec)


def vip(shop: Space, name: str) -> str:
    return str(shop.cluster.get("-n", shop.name, "service", name)["spec"]["clusterIP"])
