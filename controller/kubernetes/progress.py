"""How far the nodes of each replica are, told to the leader: `Programmed` is about all nodes, wherever they connect.

Each replica has an annotation of its own on the Lease: for each kind, the resourceVersion up to which all nodes that
are connected to it have acknowledged what is declared. It is written when something declared has changed, at most once
a second. It needs no heartbeat, since the pods say whom to wait for: the nodes of a replica that is not ready go to
others, and those of one that is ready but cut off from the API server have indeed not heard of what is new.

resourceVersions of one kind grow and may be compared ("Resource versions", Kubernetes API concepts).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import trio

from controller.kubernetes.client import Client, ClusterError, Json
from controller.kubernetes.cluster import Cluster
from controller.kubernetes.leadership import LEASE
from controller.kubernetes.mirror import Mirror
from controller.publish import Publisher
from controller.session import NodeStatus

_log = logging.getLogger(__name__)
ACCOUNT = "controller"
_PREFIX = "progress.nodemesh.dev/"
_SECONDS = 1.0
_LOOK_SECONDS = 0.1

Versions = Mapping[str, int]
"""By kind."""


class Progress:
    """One replica's part. `replicas` and `run` must be running."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        pod: str,
        cluster: Cluster,
        publisher: Publisher,
        nodes: Callable[[], Mapping[str, NodeStatus]],
    ) -> None:
        """`pod` is this replica's."""
        self._client, self._pod, self._cluster, self._publisher, self._nodes = client, pod, cluster, publisher, nodes
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
        self.replicas: Mirror[bool] = Mirror(
            client,
            [f"/api/v1/namespaces/{namespace}/pods"],
            _ready,
            lambda *_: None,
            fields=f"spec.serviceAccountName={ACCOUNT}",
        )
        """The controller's pods, and whether they are ready."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Tell until cancelled; reports when it has told, or tried to, for the first time."""
        told: Versions | None = None
        while True:
            changed, versions = self._cluster.declared_changed, self._versions()
            await self._publisher.settled()
            revision = self._publisher.revision
            while self.behind(revision):  # noqa: ASYNC110 - acknowledgements are many, and this wait is rare
                await trio.sleep(_LOOK_SECONDS)
            complete = len(versions) == sum(mirror.served for mirror in self._cluster.declared.values())
            try:
                if complete and versions != told:
                    await self._write({_key(self._pod): json.dumps(versions, separators=(",", ":"))})
                    told = versions
            except ClusterError as error:
                _log.warning("cannot tell how far the nodes are", extra={"reason": str(error)})
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(_SECONDS)
            if complete and versions == told:
                await changed.wait()

    def behind(self, revision: int) -> list[str]:
        """The nodes connected to this replica that have not acknowledged this revision of it."""
        return [n for n, status in self._nodes().items() if status.connected and (status.acked or -1) < revision]

    async def others(self) -> Mapping[str, Versions]:
        """How far the nodes of each other replica are; nothing of one that has not said. Raises `ClusterError`."""
        ready = {key.partition("/")[2]: ready for key, ready in self.replicas.objects.items()}
        annotations = (await self._client.get(self._path))["metadata"].get("annotations") or {}
        wanted = {_key(name) for name in (*ready, self._pod)}
        if left := [key for key in annotations if key.startswith(_PREFIX) and key not in wanted]:
            await self._write(dict.fromkeys(left))
        names = (name for name in ready if ready[name] and name != self._pod)
        return {name: _versions(annotations.get(_key(name), "")) for name in names}

    def _versions(self) -> Versions:
        """What this replica has read of each kind that is there; nothing of one that it is just listing again."""
        mirrors = self._cluster.declared
        return {kind: int(mirror.version) for kind, mirror in mirrors.items() if mirror.served and mirror.version}

    async def _write(self, annotations: Mapping[str, str | None]) -> None:
        await self._client.merge(self._path, {"metadata": {"annotations": dict(annotations)}})


def late(others: Mapping[str, Versions], kind: str, version: int) -> Iterable[str]:
    """The replicas of which it is not known that all of their nodes have this version."""
    return sorted(name for name, versions in others.items() if versions.get(kind, -1) < version)


def _ready(body: Json) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _key(pod: str) -> str:
    return _PREFIX + pod[-63:].lstrip("-_.")


def _versions(text: str) -> Versions:
    try:
        return {str(kind): int(version) for kind, version in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
