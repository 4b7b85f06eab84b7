"""Tells each node which of its pods are to be in the mesh, whenever that changes. A burst of changes is told once."""

from __future__ import annotations

import trio

from controller.kubernetes.cluster import Cluster
from controller.kubernetes.membership import assign
from controller.kubernetes.objects import Pod
from mesh.sync import Assign

_SETTLE_SECONDS = 0.02


class Assigner:
    """`cluster` is to be set before use; it calls `pod_changed` and `namespaces_changed`."""

    def __init__(self, root_namespace: str) -> None:
        self._root_namespace = root_namespace
        self._waiting: dict[str, trio.Event] = {}
        self.cluster: Cluster

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A pod came, changed or went."""
        for pod in (old, new):
            if pod is not None and (event := self._waiting.pop(pod.node, None)) is not None:
                event.set()

    def namespaces_changed(self) -> None:
        """A namespace came, changed or went."""
        for event in self._waiting.values():
            event.set()
        self._waiting.clear()

    async def next(self, node: str, last: Assign | None) -> Assign:
        """What the node is to enrol, once it is something else than `last`."""
        while True:
            changed = self._waiting.setdefault(node, trio.Event())
            namespaces = self.cluster.namespaces.objects
            now = assign(self.cluster.on_node(node).values(), namespaces, self._root_namespace)
            if now != last:
                return now
            await changed.wait()
            await trio.sleep(_SETTLE_SECONDS)
