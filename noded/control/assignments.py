"""On Kubernetes: bring the pods that the controller has assigned to this node into the mesh, and others out of it.

Two ways in, one `enrol`: `admit`, by which the CNI plug-in waits until its pod is captured, and a loop that compares
what runs with what is assigned, for pods that ran before, whose labels change, or whose plug-in was not there. Which
pod a local workload is, its network namespace tells: a successor of the same name has another.

A pod whose namespace is gone is forgotten at once; one that goes on outside the mesh leaves with time to drain.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mesh.model import Enrolment
from mesh.names import is_label
from mesh.sync import POD_UID, STATIC_UID, Assign, Assignment, outside
from noded.control import pods
from noded.control.capture import Namespaces
from noded.control.enrolment import Enrolments, Local, State
from noded.control.failure import Failure, NotReady
from noded.control.pods import Sandbox
from noded.control.records import NamespaceId, Request
from redirect.netns import NamespaceError

_log = logging.getLogger(__name__)
_AGAIN_SECONDS, _LOOK_SECONDS = 5.0, 30.0
_AT_ONCE = 8
_MARKED_SECONDS, _UNMARKED_SECONDS = 15.0, 2.0
_ADMIT_SECONDS = 60.0


class Markers:
    """A file for each namespace whose pods must not start without `noded`. They outlive a reboot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, namespace: str) -> bool:
        return is_label(namespace) and (self._folder / namespace).exists()

    def set(self, namespaces: tuple[str, ...]) -> None:
        """Exactly these. Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = {name for name in namespaces if is_label(name)}
        there = {path.name for path in self._folder.iterdir()}
        for name in wanted - there:
            (self._folder / name).touch()
        for name in there - wanted:
            (self._folder / name).unlink(missing_ok=True)


class Assignments:
    """The pods of this node that are to be in the mesh."""

    def __init__(
        self,
        enrolments: Enrolments,
        namespaces: Namespaces,
        markers: Markers,
        connected: Callable[[], bool],
        proc: Path = Path("/proc"),
    ) -> None:
        """`connected` says whether the controller is there; `proc` is where processes of the whole host are seen."""
        self._enrolments, self._namespaces, self._markers = enrolments, namespaces, markers
        self._connected, self._proc = connected, proc
        self._assigned: Assign | None = None
        self._pods: dict[str, Assignment] = {}
        self._others: frozenset[str] = frozenset()
        self._changed = trio.Event()
        self._locks: dict[str, trio.Lock] = {}
        self._said: dict[str, str] = {}
        self._enrolled_as: dict[str, str] = {}
        """Which pod, by its own UID, a local workload is; after a restart, its namespace says so first."""
        self._slots = trio.CapacityLimiter(_AT_ONCE)

    def assigned(self, assign: Assign) -> None:
        """The controller says what is to be in the mesh."""
        self._assigned = assign
        self._pods = {f"{pod.namespace}/{pod.name}": pod for pod in assign.pods}
        self._others = frozenset(assign.others)
        live = {*self._pods, *(local.uid for local in self._enrolments)}
        for remembered in (self._said, self._enrolled_as):
            for uid in remembered.keys() - live:
                del remembered[uid]
        try:
            self._markers.set(assign.namespaces)
        except OSError as error:
            _log.error("markers for the CNI plug-in not written", extra={"error": str(error)})
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # What the CNI plug-in asks.

    async def admit(self, uid: str, pod: str, netns: str, addresses: tuple[str, ...]) -> bool:
        """A pod's network is made: return when it is captured (True), or is to stay outside (False).

        `uid` is `<namespace>/<name>`, `pod` the pod's own UID or empty. Raises `Failure` if the pod must not start now.
        """
        marked = uid.partition("/")[0] in self._markers
        assignment: Assignment | None = None
        if self._connected() or marked:
            with trio.move_on_after(_MARKED_SECONDS if marked else _UNMARKED_SECONDS):
                while (assignment := self._assignment(uid, pod)) is None and outside(pod, uid) not in self._others:
                    await self._changed.wait()
        if assignment is None:
            if marked and outside(pod, uid) not in self._others:
                raise NotReady(
                    f"the controller has not said whether {uid} is to be in the mesh", "see whether it runs; wait"
                )
            return False
        with trio.move_on_after(_ADMIT_SECONDS) as scope:
            async with self._alone(uid):
                await self._admit(uid, assignment, netns, addresses)
        if scope.cancelled_caught:
            raise NotReady(f"{uid} was not enrolled in {_ADMIT_SECONDS:g} s", "see the log of noded")
        return True

    def _assignment(self, uid: str, pod: str) -> Assignment | None:
        found = self._pods.get(uid)
        return found if found is not None and pod in ("", found.pod) else None

    async def _admit(self, uid: str, assignment: Assignment, netns: str, addresses: tuple[str, ...]) -> None:
        path = pods.visible(netns, self._proc)
        fd = self._namespaces.open(path)
        try:
            there = self._namespaces.identify(fd)
            await self._namespaces.raise_loopback(fd)  # runtimes may run the plug-in for it later
        finally:
            os.close(fd)
        local = self._enrolments.find(uid)
        if local is not None and local.record.namespace_id != there:
            await self._enrolments.discard(uid)  # a pod has one sandbox: the one before is dead
        await self._enrol(uid, assignment, path, addresses, there)

    async def gone(self, uid: str, netns: str) -> None:
        """A pod's network is being taken down: forget the pod now, if this is what it was enrolled with."""
        if self._enrolments.find(uid) is None:
            return
        path = pods.visible(netns, self._proc) if netns else ""
        async with self._alone(uid):  # and only then look: a successor may be on its way in
            local = self._enrolments.find(uid)
            if local is not None and (
                local.record.netns == path or not self._namespaces.vanished(path, local.record.namespace_id)
            ):
                await self._enrolments.discard(uid)

    # What runs and what should.

    async def run(self) -> None:
        """Compare and act whenever either may have changed; for ever. Start it when earlier enrolments are back."""
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._changed
                if self._assigned is not None:
                    running = await trio.to_thread.run_sync(pods.sandboxes, self._proc)
                    for uid in {*self._pods, *(local.uid for local in self._enrolments)} - self._locks.keys():
                        nursery.start_soon(self._settle, uid, running)
                with trio.move_on_after(_AGAIN_SECONDS if self._unsettled() else _LOOK_SECONDS):
                    await changed.wait()

    def _unsettled(self) -> bool:
        return bool(self._locks) or {local.uid for local in self._enrolments if local.state is State.READY} != {
            *self._pods
        }

    async def _settle(self, uid: str, running: Mapping[str, Sandbox]) -> None:
        async with self._alone(uid):
            try:
                await self._bring(uid, running)
            except (Failure, NamespaceError, OSError) as error:
                if self._said.get(uid) != str(error):
                    _log.warning("pod not as assigned", extra={"uid": uid, "error": str(error)})
                self._said[uid] = str(error)
            else:
                self._said.pop(uid, None)

    async def _bring(self, uid: str, running: Mapping[str, Sandbox]) -> None:
        local, assignment = self._enrolments.find(uid), self._pods.get(uid)
        if local is not None and self._namespaces.vanished(local.record.netns, local.record.namespace_id):
            await self._enrolments.discard(uid)
            local = None
        if assignment is None or self._enrolled_as.get(uid, assignment.pod) != assignment.pod:
            if local is not None:
                await self._enrolments.remove(uid)
            self._enrolled_as.pop(uid, None)
            if assignment is None:
                return
        sandbox = running.get(assignment.pod)
        if sandbox is None or (STATIC_UID.fullmatch(assignment.pod) and not assignment.addresses):
            return  # it doesn't run yet, or not any more; or anybody may have said that it is this one
        path = sandbox.netns(self._proc)
        there = self._identify(path)
        if not sandbox.runs(self._proc):
            return  # another pod's process may have its number by now
        if local is not None and local.record.namespace_id != there:
            await self._enrolments.discard(uid)
        elif local is not None:
            path = local.record.netns
        if (local := self._enrolments.find(uid)) is not None and _as_assigned(local, assignment):
            self._enrolled_as[uid] = assignment.pod
            return
        async with self._slots:
            await self._enrol(uid, assignment, path, assignment.addresses, there)

    async def _enrol(
        self, uid: str, pod: Assignment, netns: str, addresses: tuple[str, ...], there: NamespaceId
    ) -> None:
        workload = Enrolment(pod.name, pod.namespace, pod.service_account, _labels(pod), addresses)
        self._enrolled_as[uid] = pod.pod
        await self._enrolments.enrol(Request(workload, netns), there)

    def _identify(self, path: str) -> NamespaceId:
        fd = self._namespaces.open(path)
        try:
            return self._namespaces.identify(fd)
        finally:
            os.close(fd)

    @asynccontextmanager
    async def _alone(self, uid: str) -> AsyncIterator[None]:
        """One change of a pod at a time, of what may be several steps."""
        lock = self._locks.setdefault(uid, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if lock.statistics().tasks_waiting == 0 and not lock.locked():
                self._locks.pop(uid, None)


def _as_assigned(local: Local, assignment: Assignment) -> bool:
    has = local.record.workload
    return (
        local.state is State.READY
        and (has.service_account, has.labels) == (assignment.service_account, _labels(assignment))
        and (not assignment.addresses or set(has.addresses) == set(assignment.addresses))
    )


def _labels(pod: Assignment) -> dict[str, str]:
    """The pod's, and one that tells the controller which pod of that name is meant."""
    return {**pod.labels, POD_UID: pod.pod}
