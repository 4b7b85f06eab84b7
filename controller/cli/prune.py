"""What an earlier release put on a cluster and this one does not hold any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controller.cli.cluster import MANAGER, NAMESPACE, Cluster
from controller.cli.deployment import PART_OF, name_of

_KINDS = (
    ("rbac.authorization.k8s.io/v1", ("clusterrolebindings", "clusterroles"), ("rolebindings", "roles")),
    ("apps/v1", (), ("deployments", "daemonsets")),
    ("policy/v1", (), ("poddisruptionbudgets",)),
    ("policy/v1beta1", (), ("poddisruptionbudgets",)),
    ("networking.k8s.io/v1", (), ("networkpolicies",)),
    ("v1", (), ("services", "configmaps", "serviceaccounts")),
)
"""API version, collections outside namespaces, collections in ours. No Secret, since the authority is in one, and no
CustomResourceDefinition, since the resources in it go with it: those are for `meshctl uninstall`."""

Json = dict[str, Any]


def dropped(cluster: Cluster, bodies: Iterable[Mapping[str, Any]]) -> list[tuple[str, Json]]:
    """Path and object of what meshctl has applied to the cluster and is not among the bodies, in order of deletion."""
    wanted = {name_of(body) for body in bodies}
    found: dict[str, tuple[str, Json]] = {}
    for version, wide, within in _KINDS:
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        ours = f"{base}/namespaces/{NAMESPACE}"
        for collection in (*(f"{base}/{name}" for name in wide), *(f"{ours}/{name}" for name in within)):
            for body in cluster.items(collection, labelSelector=PART_OF):
                if name_of(body) not in wanted and _ours(body):
                    found.setdefault(name_of(body), (f"{collection}/{body['metadata']['name']}", body))
    return list(found.values())


def _ours(body: Mapping[str, Any]) -> bool:
    """Whether meshctl has made it: the label alone may be anybody's."""
    fields = body["metadata"].get("managedFields") or ()
    return any((entry.get("manager"), entry.get("operation")) == (MANAGER, "Apply") for entry in fields)
