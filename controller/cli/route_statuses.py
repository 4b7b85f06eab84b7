"""What the mesh has said in the statuses of Gateway API's routes, taken back: for `meshctl uninstall`."""

from __future__ import annotations

from controller.cli.cluster import Cluster, NotFound

_GATEWAY = "/apis/gateway.networking.k8s.io"
_ROUTES = ("v1/httproutes", "v1beta1/httproutes", "v1/grpcroutes", "v1alpha2/grpcroutes")
_OURS = "nodemesh.dev/controller"
_MERGE = "application/merge-patch+json"


def take_back(cluster: Cluster) -> None:
    """Remove the mesh's entries of `status.parents`; others' stay. Nobody may be writing them any more."""
    for collection in _ROUTES:
        for body in cluster.items(f"{_GATEWAY}/{collection}"):
            parents = (body.get("status") or {}).get("parents") or []
            others = [entry for entry in parents if entry.get("controllerName") != _OURS]
            if len(others) < len(parents):
                metadata = body["metadata"]
                version, _, plural = collection.partition("/")
                where = f"{_GATEWAY}/{version}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}/status"
                try:
                    cluster.ask("PATCH", where, {"status": {"parents": others}}, kind=_MERGE)
                except NotFound:
                    pass
