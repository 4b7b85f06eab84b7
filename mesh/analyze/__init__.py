"""Mistakes in resources that are valid one by one: `analyze(inventory)` finds them, each with a stable code.

Nothing here is checked when a resource is applied: what is wrong depends on what else is there, and may be right in a
minute. docs/reference/analyze.md explains every code.
"""

from __future__ import annotations

from mesh.analyze.enrolment import enrolment
from mesh.analyze.finding import CODES, Finding, Path, Ref, Severity
from mesh.analyze.inventory import MODE_LABEL, Inventory, ParentUse, Pods, Port, RouteUse, ServiceUse
from mesh.analyze.peer_authentications import peer_authentications
from mesh.analyze.policies import authorization_policies
from mesh.analyze.request_authentications import providers, request_authentications
from mesh.analyze.routes import routes
from mesh.analyze.services import services
from mesh.analyze.traffic_policies import traffic_policies

__all__ = [
    "CODES",
    "MODE_LABEL",
    "Finding",
    "Inventory",
    "ParentUse",
    "Path",
    "Pods",
    "Port",
    "Ref",
    "RouteUse",
    "ServiceUse",
    "Severity",
    "analyze",
]


def analyze(inventory: Inventory) -> list[Finding]:
    """All that is wrong with it, by object and place."""
    findings = [
        *authorization_policies(inventory),
        *providers(inventory),
        *request_authentications(inventory),
        *peer_authentications(inventory),
        *services(inventory),
        *enrolment(inventory),
        *routes(inventory),
        *traffic_policies(inventory),
    ]
    return sorted(findings, key=lambda f: (f.object, [str(part) for part in f.path], f.code, f.message))
