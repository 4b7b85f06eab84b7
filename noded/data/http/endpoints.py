"""The endpoints that this worker sends requests to, as it sees them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf
from typing import Any

from mesh.balance import VersionedHosts
from noded.data.http.destinations import Destination


def rows(destination: Destination) -> Iterator[dict[str, Any]]:
    """One for each endpoint of a service's port."""
    now = time.monotonic()
    service, hosts = destination.service, destination.hosts
    shares = hosts.shares(now) if isinstance(hosts, VersionedHosts) else {}
    for host in hosts.all:
        ejected = host.ejected_until
        yield {
            "service": service.key,
            "port": destination.port,
            "address": host.address,
            "target_port": host.port,
            "workload": host.uid,
            "local": host.local,
            "active": host.active,
            "ejected_seconds": max(0.0, ejected - now) if ejected and ejected != inf else 0.0,
            "ewma_ms": host.ewma * 1000,
            "consecutive_errors": host.errors,
            "version_share": shares[hosts.version_of(host)] if isinstance(hosts, VersionedHosts) else None,
        }
