"""Status conditions of our resources, written by the leader.

`Accepted`: whether the resource makes sense. `Programmed`: whether all nodes that are connected to any replica have
acknowledged it; once true, it is so until the resource changes, since no node goes back. `KeysFetched`: whether the
keys that a `RequestAuthentication` names were fetched the last time. Condition fields as in Kubernetes' API
conventions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NoReturn

import trio

from controller.kubernetes.client import Client, ClusterError
from controller.kubernetes.cluster import OURS, PLURALS, Cluster
from controller.kubernetes.policies import Condition, Declared
from controller.kubernetes.progress import Progress, Versions, late
from controller.publish import Publisher

_log = logging.getLogger(__name__)
_MAX_MESSAGE = 1024
_AGAIN_SECONDS = 1.0


class StatusWriter:
    """Compares what the conditions are with what they should be, at each change, and writes the difference."""

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        publisher: Publisher,
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self._client, self._cluster, self._publisher = client, cluster, publisher
        self._progress, self._clock = progress, clock
        self._since: dict[tuple[str, str, int], int] = {}
        """The first revision that holds a resource's generation, by (kind, key, generation)."""

    async def run(self) -> NoReturn:
        """Write until cancelled."""
        while True:
            changed = self._cluster.declared_changed
            await self._publisher.settled()
            if await self._all():
                await changed.wait()
            else:
                with trio.move_on_after(_AGAIN_SECONDS):
                    await changed.wait()

    async def _all(self) -> bool:
        """Write what is to be written; whether nothing is pending."""
        done, known = True, self._since
        self._since = {}
        others: Mapping[str, Versions] | None = None
        for kind, mirror in self._cluster.declared.items():
            for key, entry in list(mirror.objects.items()):
                mark = (kind, key, entry.generation)
                since = self._since[mark] = known.get(mark, self._publisher.revision)
                resource = None if _programmed(entry) else entry.resource
                pending = resource is not None and bool(self._progress.behind(since))
                if resource is not None and not pending:
                    others = await self._others() if others is None else others
                    pending = others is None or bool(late(others, kind, resource.version))
                wanted: tuple[Condition, ...] = _wanted(entry, pending=pending)
                done = done and wanted[1].status != "Unknown"
                if kind == "RequestAuthentication" and not entry.problem:
                    wanted = (*wanted, *_fetched(entry, self._publisher.world.key_problems.get(key)))
                if {c.kind: c.said for c in entry.conditions} != {c.kind: c.said for c in wanted}:
                    done = await self._write(kind, key, entry, wanted) and done
        return done

    async def _others(self) -> Mapping[str, Versions] | None:
        """How far the other replicas' nodes are; None if that cannot be known now."""
        try:
            return await self._progress.others()
        except ClusterError as error:
            _log.warning("cannot read how far the nodes are", extra={"reason": str(error)})
            return None

    async def _write(self, kind: str, key: str, entry: Declared, wanted: tuple[Condition, ...]) -> bool:
        namespace, _, name = key.partition("/")
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = {c.kind: c for c in entry.conditions}
        body = []
        for condition in wanted:
            same = before.get(condition.kind)
            turned = same.turned if same is not None and same.status == condition.status else now
            body.append(
                {
                    "type": condition.kind,
                    "status": condition.status,
                    "reason": condition.reason,
                    "message": condition.message,
                    "observedGeneration": condition.observed,
                    "lastTransitionTime": turned or now,
                }
            )
        path = f"{OURS}/namespaces/{namespace}/{PLURALS[kind]}/{name}/status"
        try:
            await self._client.merge(path, {"status": {"conditions": body}})
        except ClusterError as error:
            _log.warning("cannot write a status", extra={"kind": kind, "resource": key, "reason": str(error)})
            return False
        return True


def _fetched(entry: Declared, problem: str | None) -> list[Condition]:
    """What became of the keys that are fetched for it; nothing if none are."""
    if problem is None:
        return []
    if problem:
        return [Condition("KeysFetched", "False", "FetchFailed", problem[:_MAX_MESSAGE], entry.generation)]
    return [Condition("KeysFetched", "True", "Fetched", "the issuers' keys are known", entry.generation)]


def _programmed(entry: Declared) -> bool:
    """Whether its conditions say so already."""
    return any((c.kind, c.status, c.observed) == ("Programmed", "True", entry.generation) for c in entry.conditions)


def _wanted(entry: Declared, *, pending: bool) -> tuple[Condition, Condition]:
    of = entry.generation
    if entry.problem:
        closed = "; what it selects is closed" if entry.resource is not None else ""
        accepted = Condition("Accepted", "False", "Invalid", (entry.problem + closed)[:_MAX_MESSAGE], of)
        return accepted, Condition("Programmed", "False", "Invalid", "the nodes are not told of it as it is", of)
    # No message is empty: API servers of 1.20 that a newer Go built take an empty text for null, and refuse it.
    accepted = Condition("Accepted", "True", "Valid", "every field is understood", of)
    if pending:
        message = "nodes have not acknowledged it yet: see `meshctl nodes`"
        return accepted, Condition("Programmed", "Unknown", "Pending", message, of)
    return accepted, Condition("Programmed", "True", "Acknowledged", "all connected nodes have it", of)
