"""The API's view of resources that live in the Kubernetes API: to be read here, and written there."""

from __future__ import annotations

from collections.abc import Iterable

from controller.kubernetes.cluster import Cluster
from controller.resources import Elsewhere, Result
from controller.store import Key, Resource


class ClusterResources:
    """As `controller.resources.Resources`, of which it refuses what writes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def all(self) -> Iterable[Resource]:
        """In no order."""
        return self._cluster.resources()

    def get(self, key: Key) -> Resource | None:
        """One, by (kind, namespace, name)."""
        return next((resource for resource in self.all() if resource.key == key), None)

    def apply(self, files: Iterable[tuple[str, str]], *, dry_run: bool = False) -> list[Result]:
        """Raises `Elsewhere`."""
        raise Elsewhere("apply")

    def delete_files(self, files: Iterable[tuple[str, str]]) -> list[Result]:
        """Raises `Elsewhere`."""
        raise Elsewhere("delete")

    def delete(self, keys: Iterable[Key]) -> set[Key]:
        """Raises `Elsewhere`."""
        raise Elsewhere("delete")
