"""What a cluster's DNS and kube-proxy do, from the services that the controller lists.

Names: a hosts file for each pod. Addresses: DNAT on each node, for pods outside the mesh. A pod in the mesh has its
connections captured before they get there.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from testbed.network import ETC, NETNS, run
from testbed.spec import Pod, Spec


def publish(spec: Spec, services: list[dict[str, Any]]) -> None:
    """Bring hosts files and DNAT rules in line with these services (fields of `mesh.model.Service`)."""
    for pod in spec.pods:
        folder = ETC / spec.netns(pod)
        folder.mkdir(parents=True, exist_ok=True)
        # Written in place: programs that run already have this very file mounted.
        (folder / "hosts").write_text(hosts(pod, services))
        if Path("/etc/resolv.conf").exists():
            (folder / "resolv.conf").write_text("# There is no DNS in a testbed; /etc/hosts knows its services.\n")
    for node in spec.nodes:
        for restore, version in (("iptables-restore", 4), ("ip6tables-restore", 6)):
            if version == 4 or Path("/proc/sys/net/ipv6").exists():
                rules = translation(services, version)
                run(["nsenter", f"--net={NETNS / spec.netns(node)}", restore, "-w"], rules)


def hosts(pod: Pod, services: list[dict[str, Any]]) -> str:
    """The pod's /etc/hosts: a headless service has its endpoints' addresses."""
    lines = ["127.0.0.1 localhost", "::1 localhost", *(f"{address} {pod.name}" for address in pod.addresses)]
    for service in services:
        name, namespace = service["name"], service["namespace"]
        names = [f"{name}.{namespace}.svc.cluster.local", f"{name}.{namespace}.svc", f"{name}.{namespace}"]
        if namespace == pod.namespace:
            names.append(name)
        addresses = service["addresses"] or [endpoint["address"] for endpoint in service["endpoints"]]
        lines += [f"{address} {' '.join(names)}" for address in addresses]
    return "\n".join(lines) + "\n"


def translation(services: list[dict[str, Any]], version: int) -> str:
    """Input for `iptables-restore` (version 4) or `ip6tables-restore` (6): the nat table and nothing else."""
    lines = ["*nat", ":PREROUTING ACCEPT", ":OUTPUT ACCEPT", ":services -", "-F"]
    lines += ["-A PREROUTING -j services", "-A OUTPUT -j services"]
    for service in services:
        for address in service["addresses"]:
            if ipaddress.ip_address(address).version != version:
                continue
            for index, port in enumerate(service["ports"]):
                targets = [
                    (endpoint["address"], endpoint["ports"][index])
                    for endpoint in service["endpoints"]
                    if endpoint["ports"][index] and ipaddress.ip_address(endpoint["address"]).version == version
                ]
                for left, (target, target_port) in zip(range(len(targets), 0, -1), targets, strict=True):
                    share = f"-m statistic --mode random --probability {1 / left:.6f} " if left > 1 else ""
                    shown = f"[{target}]" if version == 6 else target
                    lines.append(
                        f"-A services -d {address} -p tcp --dport {port['port']} {share}"
                        f"-j DNAT --to-destination {shown}:{target_port}"
                    )
    return "\n".join([*lines, "COMMIT", ""])
