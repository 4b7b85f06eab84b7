"""The two sides of an edge as labels of Istio's metrics; what isn't known is `unknown`, as there."""

from __future__ import annotations

from mesh.model import EdgeKey, Party

_OF_ONE = (
    "workload",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "canonical_service",
    "canonical_revision",
)
LABELS = (
    "reporter",
    *(f"source_{name}" for name in _OF_ONE),
    *(f"destination_{name}" for name in _OF_ONE),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
)


def values(key: EdgeKey) -> list[str]:
    """Those of `LABELS`."""
    name, _, rest = key.service.partition(".")
    namespace = rest.partition(".")[0]
    return [
        key.reporter,
        *_party(key.source),
        *_party(key.destination),
        key.service or "unknown",
        name or "unknown",
        namespace or key.destination.namespace or "unknown",
    ]


def _party(party: Party) -> list[str]:
    known = [party.workload, party.namespace, party.principal, party.app, party.version]
    found = [value or "unknown" for value in known]
    return [*found, found[3], found[4]]
