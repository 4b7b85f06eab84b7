"""The statuses of Gateway API's routes, written by the leader.

Of `status.parents` only the mesh's own entries are written. Whoever else writes there does so, too: a write holds only
for the version that was read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import trio

from controller.kubernetes.client import Client, ClusterError, Json, Refused
from controller.kubernetes.cluster import Cluster
from controller.kubernetes.routes import DeclaredRoute
from controller.publish import Publisher
from controller.translate import CONTROLLER, Condition, ParentStatus, status_entries, status_entry

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 1.0


class RouteStatusWriter:
    """Compares what is said of each route with what should be, when either changes, and writes the difference."""

    def __init__(self, client: Client, cluster: Cluster, publisher: Publisher, clock: Callable[[], float]) -> None:
        self._client, self._cluster, self._publisher, self._clock = client, cluster, publisher, clock
        self._done: dict[str, tuple[DeclaredRoute, tuple[ParentStatus, ...]]] = {}
        """What was looked at and found right, by the routes' keys."""

    async def run(self) -> NoReturn:
        """Write until cancelled."""
        while True:
            changed = self._cluster.routes_changed
            await self._publisher.settled()
            revision = self._publisher.revision
            pending = not await self._all()
            with trio.move_on_after(_AGAIN_SECONDS if pending else float("inf")):
                async with trio.open_nursery() as nursery:
                    for wait in (changed.wait, partial(self._publisher.newer_than, revision)):
                        nursery.start_soon(_first, wait, nursery.cancel_scope)

    async def _all(self) -> bool:
        """Write what is to be written; whether nothing is left."""
        known, self._done, complete = self._done, {}, True
        statuses = self._publisher.world.route_statuses
        for kind, mirror in self._cluster.routes.items():
            for name, route in list(mirror.objects.items()):
                key = f"{kind}/{name}"
                said = statuses.get(key, ()) if route.resource is not None else ()
                before = known.get(key)
                if before is not None and before[0] is route and before[1] is said:
                    self._done[key] = before
                elif await self._one(key, route, said):
                    self._done[key] = route, said
                else:
                    complete = False
        return complete

    async def _one(self, key: str, route: DeclaredRoute, said: tuple[ParentStatus, ...]) -> bool:
        wanted = _wanted(route, said)
        if [_said(entry) for entry in wanted] == [_said(entry) for entry in route.ours]:
            return True
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        others = [entry for entry in route.parents if entry.get("controllerName") != CONTROLLER]
        parents = [*others, *(_timed(entry, route.ours, now) for entry in wanted)]
        body = {"metadata": {"resourceVersion": route.version}, "status": {"parents": parents}}
        try:
            await self._client.merge(route.path, body)
        except Refused as error:
            if error.code == 404:  # gone meanwhile, or about to be: the watch says so
                return True
            if error.code != 409:
                _log.warning("cannot write a status", extra={"resource": key, "reason": str(error)})
            return False
        except ClusterError as error:
            _log.warning("cannot write a status", extra={"resource": key, "reason": str(error)})
            return False
        return True


async def _first(wait: Callable[[], Any], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


def _wanted(route: DeclaredRoute, said: tuple[ParentStatus, ...]) -> list[Json]:
    if route.problem:
        accepted = {"Accepted": Condition(False, "UnsupportedValue", route.problem)}
        return [status_entry(reference, route.generation, accepted) for _index, reference in route.references]
    return status_entries(dict(route.references), route.generation, said)


def _said(entry: Json) -> Any:
    """All but the times."""
    conditions = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in entry.get("conditions") or ()]
    return entry.get("parentRef"), sorted(conditions, key=lambda c: str(c.get("type")))


def _timed(entry: Json, before: list[Json], now: str) -> Json:
    """With the time of each condition's last turn."""
    same = next((old for old in before if old.get("parentRef") == entry["parentRef"]), {})
    turned = {(c.get("type"), c.get("status")): c.get("lastTransitionTime") for c in same.get("conditions") or ()}
    timed = [{**c, "lastTransitionTime": turned.get((c["type"], c["status"])) or now} for c in entry["conditions"]]
    return {**entry, "conditions": timed}
