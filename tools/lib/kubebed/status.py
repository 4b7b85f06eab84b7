"""What a cluster is doing, as facts and as tables."""

from __future__ import annotations

from typing import Any

from kubebed.cluster import Cluster
from kubebed.errors import KubebedError
from kubebed.spec import CONTROL_ADDRESS
from testbed.report import table

_COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def status(bed: Cluster) -> dict[str, Any]:
    """JSON-ready facts; `error` says why the API server's part of them is missing."""
    conditions: dict[str, str] = {}
    error = ""
    try:
        for node in bed.get("nodes")["items"]:
            ready = [c["status"] for c in node["status"].get("conditions", []) if c["type"] == "Ready"]
            conditions[node["metadata"]["name"]] = {"True": "Ready"}.get(ready[0], "NotReady") if ready else "NotReady"
    except KubebedError as problem:
        error = str(problem)
    return {
        "name": bed.spec.name,
        "folder": str(bed.folder),
        "disks": str(bed.disks),
        "kubeconfig": str(bed.kubeconfig),
        "components": [
            {
                "name": name,
                "state": "running" if bed.processes.alive(name) else "dead",
                "log": str(bed.processes.log(name)),
            }
            for name in _COMPONENTS
        ],
        "nodes": [
            {
                "name": host.node.name,
                "address": host.node.address,
                "pods": host.node.pods,
                "power": "on" if host.on else "off",
                "condition": conditions.get(host.node.name, "unknown"),
                "log": str(host.log("kubelet")),
            }
            for host in bed.hosts.values()
        ],
        "error": error,
    }


def render(facts: dict[str, Any]) -> str:
    """The facts as tables."""
    components = [[c["name"], CONTROL_ADDRESS, c["state"], c["log"]] for c in facts["components"]]
    nodes = [[n["name"], n["address"], n["pods"], n["power"], n["condition"], n["log"]] for n in facts["nodes"]]
    parts = [
        table(["CONTROL PLANE", "ADDRESS", "STATE", "LOG"], components),
        table(["NODE", "ADDRESS", "PODS", "POWER", "CONDITION", "LOG"], nodes),
    ]
    return "\n\n".join([*parts, facts["error"]] if facts["error"] else parts)
