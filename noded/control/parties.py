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
    "cluster",
)
LABELS = (
    "reporter",
    *(f"source_{name}" for name in _OF_ONE),
    *(f"destination_{name}" for name in _OF_ONE),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
)


def values(key: EdgeKey, cluster: str) -> list[str]:
    """Those of `LABELS`. `cluster` is the mesh's: of workloads elsewhere nothing is known."""
    name, _, rest = key.service.partition(".")
    namespace = rest.partition(".")[0]
    return [
        key.reporter,
        *_party(key.source, cluster),
        *_party(key.destination, cluster),
        key.service or "unknown",
        name or "unknown",
        namespace or key.destination.namespace or "unknown",
    ]


def _party(party: Party, cluster: str) -> list[str]:
    known = [party.workload, party.namespace, party.principal, party.app, party.version]
    found = [value or "unknown" for value in known]
    return [*found, found[3], found[4], cluster if found[0] != "unknown" else "unknown"]
