"""What a testbed consists of and how it is: the facts, and a table of them."""

from __future__ import annotations

from typing import Any

from testbed.api import ApiError, Unreachable
from testbed.mesh import Testbed
from testbed.spec import CONTROLLER_ADDRESS


def status(bed: Testbed) -> dict[str, Any]:
    """The facts, JSON-able. A daemon that doesn't answer shows as that and hides nothing else."""
    nodes, states = [], {}
    for node in bed.spec.nodes:
        alive, error, workloads = bed.processes.alive(f"node/{node.name}"), "", []
        try:
            workloads = bed.node_api(node, "GET", "/workloads")["items"]
        except (ApiError, Unreachable) as problem:
            error = str(problem)
        states.update({workload["uid"]: workload["state"] for workload in workloads})
        record = bed.processes.record(f"node/{node.name}")
        nodes.append(
            {
                "name": node.name,
                "address": node.address,
                "netns": bed.spec.netns(node),
                "noded": "running" if alive else "dead",
                "pid": record.pid if record and alive else None,
                "workloads": len(workloads),
                "error": error,
            }
        )
    services, error = [], ""
    try:
        services = bed.controller_api("GET", "/v1/services")["items"]
    except (ApiError, Unreachable) as problem:
        error = str(problem)
    record, alive = bed.processes.record("controller"), bed.processes.alive("controller")
    return {
        "name": bed.spec.name,
        "folder": str(bed.folder),
        "controller": {
            "address": CONTROLLER_ADDRESS,
            "netns": bed.spec.netns("controller"),
            "state": "running" if alive else "dead",
            "pid": record.pid if record and alive else None,
            "error": error,
        },
        "nodes": nodes,
        "pods": [
            {
                "name": pod.name,
                "namespace": pod.namespace,
                "node": pod.node,
                "addresses": list(pod.addresses),
                "netns": bed.spec.netns(pod),
                "mesh": states.get(pod.uid, "missing") if pod.mesh else states.get(pod.uid, "outside"),
                "program": _program(bed, f"pod/{pod.uid}") if pod.run else "none",
            }
            for pod in bed.spec.pods
        ],
        "services": [
            {
                "name": service["name"],
                "namespace": service["namespace"],
                "addresses": service["addresses"],
                "ports": [port["port"] for port in service["ports"]],
                "endpoints": len(service["endpoints"]),
            }
            for service in services
        ],
    }


def _program(bed: Testbed, name: str) -> str:
    return "running" if bed.processes.alive(name) else "ended"


def render(facts: dict[str, Any]) -> str:
    """The facts as tables."""
    controller = facts["controller"]
    hosts = [["controller", controller["address"], controller["state"], controller["netns"]]]
    hosts += [[n["name"], n["address"], n["noded"], n["netns"]] for n in facts["nodes"]]
    pods = [
        [f"{p['namespace']}/{p['name']}", p["node"], p["addresses"][0], p["mesh"], p["program"], p["netns"]]
        for p in facts["pods"]
    ]
    services = [
        [
            f"{s['namespace']}/{s['name']}",
            ",".join(s["addresses"]) or "None",
            ",".join(map(str, s["ports"])),
            s["endpoints"],
        ]
        for s in facts["services"]
    ]
    parts = [
        table(["HOST", "ADDRESS", "DAEMON", "NETNS"], hosts),
        table(["POD", "NODE", "ADDRESS", "MESH", "PROGRAM", "NETNS"], pods),
    ]
    if services:
        parts.append(table(["SERVICE", "ADDRESS", "PORTS", "ENDPOINTS"], services))
    errors = [
        f"{who.get('name', 'controller')}: {who['error']}" for who in (controller, *facts["nodes"]) if who["error"]
    ]
    return "\n\n".join([*parts, *errors])


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
