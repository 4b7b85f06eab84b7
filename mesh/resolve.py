"""From a captured connection's original destination to what is to be done with it.

Called once a connection: a few dict look-ups whatever the size of the mesh. The answer holds for this snapshot only; a
held connection asks again when there is a newer one.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from mesh.model import PROXY_PORTS, Service, Workload
from mesh.snapshot import Snapshot

NO_ENDPOINT = "the service has no endpoint for this port"
NO_VERSION = "no endpoint of the service is of a version to which its TrafficPolicy gives weight"


class Kind(enum.Enum):
    """What to do with a connection."""

    TUNNEL = "tunnel"
    """Open a stream to `address:port` in a tunnel to the workload."""
    PLAINTEXT = "plaintext"
    """Connect to `address:port` as it is: not in the mesh."""
    HOLD = "hold"
    """Not known yet: ask again with newer snapshots for a bounded time, then reset."""
    REFUSE = "refuse"
    """Reset now."""


class Target(NamedTuple):
    """Where a connection goes. `address` and `port` are after the choice of an endpoint."""

    kind: Kind
    address: str
    port: int
    workload: Workload | None
    """The destination workload; never None for a TUNNEL."""
    service: Service | None
    """The service that was addressed, if one was."""
    reason: str
    """For people: why this kind."""
    flags: str
    """Envoy's response flags if the connection ends here (`UH`: no endpoint, `NR`: no such destination), else `-`."""


def resolve(snapshot: Snapshot, address: str, port: int, pick: int) -> Target:
    """Decide on a connection to `address:port`; `pick`, any integer, chooses among a service's endpoints.

    Raises `ValueError` if `address` is not an IP address in canonical form.
    """
    if port in PROXY_PORTS:
        return _looping(address, port, None)
    if not snapshot.ready:
        return Target(Kind.HOLD, address, port, None, None, "no snapshot of the mesh yet", "NR")
    if (vip := snapshot.vip_at(address, port)) is None:
        if snapshot.knows_service_address(address):
            return Target(Kind.REFUSE, address, port, None, None, "no service has this port at this address", "NR")
        return _direct(snapshot, address, port, None)
    service, _, backends = vip
    if not backends:
        return Target(Kind.REFUSE, address, port, None, service, NO_ENDPOINT, "UH")
    if (split := snapshot.split_at(vip)) is None:
        return to_endpoint(snapshot, service, *backends[pick % len(backends)])
    if (backend := split.pick(pick)) is None:
        return Target(Kind.REFUSE, address, port, None, service, NO_VERSION, "UH")
    return to_endpoint(snapshot, service, *backend)


def to_endpoint(snapshot: Snapshot, service: Service, address: str, port: int, uid: str) -> Target:
    """Decide on a connection to one endpoint of a service; `uid` is its workload, or `""`."""
    if port in PROXY_PORTS:
        return _looping(address, port, service)
    if not uid:
        return _direct(snapshot, address, port, service)
    if (workload := snapshot.workloads.get(uid)) is None:
        return Target(Kind.HOLD, address, port, None, service, "the endpoint's workload is not known yet", "NR")
    if not workload.meshed and (owner := snapshot.workload_at(address)) is not None and owner.meshed:
        # A stale endpoint: what had the address has left and a workload of the mesh has it now. Into a tunnel it could
        # go unchecked, since there the peer must prove who it is; not into plaintext.
        return Target(Kind.HOLD, address, port, owner, service, "the endpoint's address has a new owner", "NR")
    return _to_workload(workload, address, port, service)


def _direct(snapshot: Snapshot, address: str, port: int, service: Service | None) -> Target:
    if (workload := snapshot.workload_at(address)) is not None:
        return _to_workload(workload, address, port, service)
    if snapshot.in_ranges(address):
        return Target(Kind.HOLD, address, port, None, service, "in the mesh's ranges but not known yet", "NR")
    return Target(Kind.PLAINTEXT, address, port, None, service, "outside the mesh", "-")


def _to_workload(workload: Workload, address: str, port: int, service: Service | None) -> Target:
    if workload.meshed:
        return Target(Kind.TUNNEL, address, port, workload, service, "the workload is in the mesh", "-")
    return Target(Kind.PLAINTEXT, address, port, workload, service, "the workload is not in the mesh", "-")


def _looping(address: str, port: int, service: Service | None) -> Target:
    return Target(Kind.REFUSE, address, port, None, service, "one of the proxy's own ports: it would loop", "NR")
