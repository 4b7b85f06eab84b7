"""What can be wrong with a `TrafficPolicy`."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.analyze.finding import Finding, Ref
from mesh.analyze.inventory import Inventory
from mesh.model import version_of
from mesh.traffic import TrafficPolicy


def traffic_policies(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every one."""
    holding: dict[str, TrafficPolicy] = {}
    services = inventory.protocols()
    for policy in sorted(inventory.traffic, key=lambda p: (p.created, p.key)):
        ref, at = Ref("TrafficPolicy", policy.namespace, policy.name), ("spec", "targetRef")
        protocols = services.get(policy.service, {})
        if policy.service not in services and inventory.knows_services_of(policy.namespace):
            there = sorted(s.ref.name for s in inventory.services if s.ref.namespace == policy.namespace)[:8]
            message = f"there is no service {policy.service}"
            yield Finding("NM0601", ref, at, message, f"there are: {', '.join(there) or 'none'}")
        if (other := holding.setdefault(policy.service, policy)) is not policy:
            message = f"TrafficPolicy {other.key} is for service {policy.service}, too; the older one holds, not this"
            yield Finding("NM0602", ref, at, message, "make one of the two")
        if (parts := _of_requests(policy)) and protocols and set(protocols.values()) == {"tcp"}:
            message = f"every port of service {policy.service} is declared to be TCP, where there are no requests"
            remedy = "if one is HTTP, say so with appProtocol: http (http2, grpc), or begin the port's name with it"
            yield Finding("NM0603", ref, ("spec", parts[0]), message, remedy)
        yield from _absent_versions(policy, ref, inventory)


def _absent_versions(policy: TrafficPolicy, ref: Ref, inventory: Inventory) -> Iterator[Finding]:
    service = next((s for s in inventory.services if f"{s.ref.namespace}/{s.ref.name}" == policy.service), None)
    if service is None or not service.selector:
        return
    chosen = [p for p in inventory.pods if p.ref.namespace == policy.namespace]
    there = {version_of(p.labels) for p in chosen if service.selector.items() <= p.labels.items()}
    given = {version for version, weight in policy.versions.items() if weight}
    outcome = "requests are answered 503" if given.isdisjoint(there) else "its share goes to the others"
    for version in sorted(given - there) if there else ():
        message = f"no workload of service {policy.service} is of version {version}: {outcome}"
        yield Finding("NM0604", ref, ("spec", "versions", version), message, f"there are: {', '.join(sorted(there))}")


def _of_requests(policy: TrafficPolicy) -> list[str]:
    """The parts that are about requests, not connections."""
    fault = policy.fault
    of_connections = fault and not fault.headers and (fault.delay or fault.reset_share or fault.bandwidth)
    parts = {
        "retries": policy.retries,
        "retryBudget": policy.retry_budget,
        "timeout": policy.timeout,
        "fault": None if of_connections else fault,
        "rateLimits": policy.rate_limits,
    }
    return [name for name, part in parts.items() if part]
