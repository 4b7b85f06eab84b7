"""The API's view of resources that live in the Kubernetes API: to be read here, and written there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from controller.kubernetes.client import Client, Json
from controller.kubernetes.cluster import Cluster
from controller.kubernetes.objects import seconds
from controller.resources import Elsewhere, Result
from controller.store import Key, Resource
from mesh.names import is_label


class ClusterResources:
    """As `controller.resources.Resources`, of which it refuses what writes."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self._cluster, self._client = cluster, client

    async def of_kind(self, kind: str, namespace: str = "") -> list[Resource]:
        """Those of a namespace, or all; in no order. Raises `ClusterError`.

        Services are asked of the API server: more of them is shown than what the mirror keeps.
        """
        if kind == "Service":
            return [_service(body) async for body in self._services(namespace)]
        return [r for r in self._cluster.resources() if r.kind == kind and namespace in ("", r.namespace)]

    async def _services(self, namespace: str) -> AsyncGenerator[Json, None]:
        if namespace and not is_label(namespace):  # it becomes part of a path
            return
        path = f"/api/v1/namespaces/{namespace}/services" if namespace else "/api/v1/services"
        query = {"limit": "500"}
        while True:
            page = await self._client.get(path, **query)
            for body in page.get("items") or ():
                yield body
            if not (more := (page.get("metadata") or {}).get("continue")):
                return
            query["continue"] = more

    def apply(self, files: Iterable[tuple[str, str]], *, dry_run: bool = False) -> list[Result]:
        """Raises `Elsewhere`."""
        raise Elsewhere("apply")

    def delete_files(self, files: Iterable[tuple[str, str]]) -> list[Result]:
        """Raises `Elsewhere`."""
        raise Elsewhere("delete")

    def delete(self, keys: Iterable[Key]) -> set[Key]:
        """Raises `Elsewhere`."""
        raise Elsewhere("delete")


def _service(body: Json) -> Resource:
    metadata = body["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if metadata.get(key)}
    whole = {"apiVersion": "v1", "kind": "Service", "metadata": kept, "spec": body.get("spec") or {}}
    names = "Service", metadata["namespace"], metadata["name"]
    return Resource(*names, whole, metadata["uid"], 1, int(metadata["resourceVersion"]), seconds(metadata))
