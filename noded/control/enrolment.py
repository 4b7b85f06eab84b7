"""A workload's way into the mesh and out of it again, and back in after a restart.

In: namespace, listeners, controller, certificate, workers, record, rules. Out: the same backwards, with a pause for
connections to end. A step that fails undoes those before it. The listeners are there before the controller knows of the
workload, since from then on others open tunnels to it: those wait until the workers have it. The record is written
before the rules, so that a crash between them leaves a workload that the next start finishes, and never rules that
nobody remembers.

A workload that dies without saying so is noticed by its path: this process's descriptors keep the namespace itself in
existence, but `/run/netns/NAME` or `/proc/PID/ns/net` vanishes or comes to lead elsewhere (`watch` looks every few
seconds). Whatever may still run in there stays captured and, without listeners, cut off.
"""

from __future__ import annotations

import enum
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import trio

from mesh.identity import Identity
from mesh.model import Enrolment
from noded.control.capture import Namespaces
from noded.control.certs import Certificates
from noded.control.failure import Conflict, ControllerAway, Failure, Invalid, NotFound, NotReady
from noded.control.records import NamespaceId, Record, Records, Request
from noded.control.supervise import Workers
from noded.control.syncer import Syncer
from noded.link import WorkloadUp

_log = logging.getLogger(__name__)
_WORKERS_SECONDS = 15.0
_UNDO_SECONDS = 15.0
_WATCH_EVERY = 5.0
_REFUSED = "refused by the controller"


class State(enum.Enum):
    """Of a local workload."""

    PENDING = "pending"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(slots=True)
class Local:
    """A workload of this node. Owns `netns`, a descriptor."""

    record: Record
    netns: int
    state: State = State.PENDING
    reason: str = ""
    missed: int = 0
    """How many times in a row its path did not lead to it."""

    @property
    def uid(self) -> str:
        """`<namespace>/<name>`."""
        return self.record.workload.uid


class Enrolments:
    """All workloads of this node."""

    def __init__(
        self,
        node: str,
        drain_seconds: float,
        records: Records,
        namespaces: Namespaces,
        workers: Workers,
        certs: Certificates,
        syncer: Syncer,
    ) -> None:
        self._node, self._drain_seconds = node, drain_seconds
        self._records, self._namespaces = records, namespaces
        self._workers, self._certs, self._syncer = workers, certs, syncer
        self._locals: dict[str, Local] = {}
        self._locks: dict[str, trio.Lock] = {}

    def __iter__(self) -> Iterator[Local]:
        """All of them, by uid."""
        return iter([self._locals[uid] for uid in sorted(self._locals)])

    def __len__(self) -> int:
        return len(self._locals)

    def find(self, uid: str) -> Local | None:
        """The workload, if it is one of this node's."""
        return self._locals.get(uid)

    def workloads(self) -> tuple[Enrolment, ...]:
        """What the controller is to know of this node."""
        return tuple(local.record.workload for local in self._locals.values() if local.state is not State.DRAINING)

    def welcomed(self, refused: dict[str, str]) -> None:
        """The controller has this node's workloads, but for those `refused`, each with a reason.

        The latter go on with the certificate they hold, which is not renewed: a controller that was restored from an
        old copy must not cut off what runs.
        """
        for uid, local in self._locals.items():
            if uid in refused:
                local.state, local.reason = State.FAILED, f"{_REFUSED}: {refused[uid]}"
                _log.error("workload refused by the controller", extra={"uid": uid, "reason": refused[uid]})
            elif local.reason.startswith(_REFUSED):
                local.state, local.reason = State.READY, ""
            self._adopt(local.record.workload)  # for those resumed before the node had an identity

    # In.

    async def enrol(self, request: Request, expected: NamespaceId | None = None) -> Local:
        """Enrol a workload, or answer from what is there; returns when it is captured. Raises `Failure`.

        `expected` is which namespace the path must lead to: that of a process may come to lead to another pod's.
        """
        if self._workers.draining:
            raise NotReady("noded is stopping", "enrol again when it is back")
        uid = request.workload.uid
        async with self._alone(uid):
            netns = self._namespaces.open(request.netns)
            try:
                record = self._wanted(request, netns)
                if expected is not None and record.namespace_id != expected:
                    raise Conflict(f"{request.netns} leads to another namespace by now", "it is looked for again")
                known = self._locals.get(uid)
                if known is not None and known.record == record and known.state is State.READY:
                    await self._namespaces.apply(known.netns, record.mark)  # puts back what others have removed
                    return known
                if known is not None and known.record.namespace_id != record.namespace_id:
                    if not self._namespaces.vanished(known.record.netns, known.record.namespace_id):
                        raise Conflict(
                            f"{uid} is enrolled with another namespace, {known.record.netns}", f"remove {uid} first"
                        )
                    self._release(known)
                    await self._namespaces.end_probes(known.record.mark, dead=True)
                    await self._workers.until_gone(uid, _WORKERS_SECONDS)
                return await self._enrol(record, netns, known)
            finally:
                os.close(netns)

    def _wanted(self, request: Request, netns: int) -> Record:
        uid, namespace_id = request.workload.uid, self._namespaces.identify(netns)
        for other in self._locals.values():
            if other.uid != uid and other.record.namespace_id == namespace_id:
                raise Conflict(f"{request.netns} is the namespace of {other.uid}", f"remove {other.uid} first")
        workload = request.workload
        if not workload.addresses:
            workload = replace(workload, addresses=self._namespaces.addresses(netns))
        if not workload.addresses:
            raise Invalid(f"{request.netns} has no address", "give the namespace its address first, then enrol it")
        known = self._locals.get(uid)
        same = known is not None and known.record.namespace_id == namespace_id
        mark = known.record.mark if known is not None and same else self._namespaces.new_mark()
        return Record(workload, request.netns, namespace_id, mark)

    async def _enrol(self, record: Record, netns: int, before: Local | None) -> Local:
        workload, uid = record.workload, record.workload.uid
        with self._listening(uid, netns) as listeners:
            try:
                await self._syncer.enrol(workload)
            except ControllerAway:
                if before is None or before.record.workload.service_account != workload.service_account:
                    raise
                _log.warning("controller is away; it has this workload from before", extra={"uid": uid})
            same = self._locals.get(uid)
            try:
                await self._certify(workload)
                local = same or Local(record, os.dup(netns))
                local.record = record
                self._locals[uid] = local
                await self._bring_up(local, listeners)
            except BaseException:
                if same is None:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + _UNDO_SECONDS):
                        await self._take_down(uid)
                raise
        _log.info("enrolled", extra={"uid": uid, "netns": record.netns, "addresses": list(workload.addresses)})
        return local

    async def _certify(self, workload: Enrolment) -> None:
        if self._adopt(workload) is None:
            await self._certs.fetch(workload.uid)

    def _adopt(self, workload: Enrolment) -> object:
        domain = self._syncer.trust_domain
        if not domain:
            raise ControllerAway("this node has not joined the mesh", "see controller.tokenFile and the log")
        identity = Identity(domain, workload.namespace, workload.service_account).uri
        return self._certs.adopt(workload.uid, identity)

    @contextmanager
    def _listening(self, uid: str, netns: int) -> Iterator[list[list[socket.socket]]]:
        """Listeners for the workers; none if they have them. Closed in the end, but for those taken off the list."""
        made = [] if self._workers.has(uid) else self._namespaces.listeners(netns, self._workers.count)
        try:
            yield made
        finally:
            for sock in (sock for row in made for sock in row):
                sock.close()

    async def _bring_up(self, local: Local, listeners: list[list[socket.socket]]) -> None:
        """Workers, record, rules; what is there already stays, and gets what changed."""
        record = local.record
        if self._workers.has(local.uid):
            self._workers.relabel(self._message(record))
        else:
            self._workers.workload_up(self._message(record), os.dup(local.netns), listeners.copy())
            listeners.clear()
        if not await self._workers.until_ready(local.uid, _WORKERS_SECONDS):
            raise NotReady(f"the workers did not take up {local.uid} in time", "see the log, then try again")
        self._records.write(record)
        await self._namespaces.admit_probes(local.netns, record.mark, record.workload.addresses)
        await self._namespaces.apply(local.netns, record.mark)
        local.state, local.reason = State.READY, ""

    def _message(self, record: Record) -> WorkloadUp:
        return WorkloadUp(record.workload.as_workload(self._node), dict(record.workload.labels), record.mark)

    # Out.

    async def remove(self, uid: str, drain_seconds: float | None = None) -> None:
        """Take a workload out of the mesh; returns when nothing of it is left. Raises `Failure`.

        With time to drain it goes on taking tunnels until the others know that it leaves: those whose connections it
        would refuse meanwhile still take it for one of the mesh.
        """
        async with self._alone(uid):
            local = self._locals.get(uid)
            if local is None:
                raise NotFound(f"there is no workload {uid} on this node", "`nodectl workloads` lists them")
            drain = self._drain_seconds if drain_seconds is None else drain_seconds
            local.state, local.reason = State.DRAINING, ""
            try:
                await self._namespaces.undo_syn(local.netns, local.record.mark)
            except Failure as error:
                local.state, local.reason = State.FAILED, str(error)
                raise
            if drain:
                await self._syncer.leave(uid)
            self._workers.workload_down(uid, drain)
            if not await self._workers.until_gone(uid, drain + _WORKERS_SECONDS):
                _log.warning("workers did not let go of a workload", extra={"uid": uid})
            await self._take_down(uid)
            _log.info("removed", extra={"uid": uid})

    async def _take_down(self, uid: str) -> None:
        """Undo everything there may be of it, as far as possible; the rest is tried whatever fails."""
        local = self._locals.get(uid)
        self._workers.workload_down(uid, 0)
        try:
            if local is not None:
                try:
                    await self._namespaces.undo(local.netns, local.record.mark)
                finally:
                    await self._namespaces.end_probes(local.record.mark, dead=False)
        finally:
            await self._forget(uid)

    async def discard(self, uid: str) -> None:
        """A workload's namespace is gone, or about to be: forget it now. Nothing happens if it isn't there."""
        async with self._alone(uid):
            if (local := self._locals.get(uid)) is not None:
                await self._discard(local)

    async def _discard(self, local: Local) -> None:
        """Its namespace is gone. The rules stay with it: whatever still runs in there must not get out unseen."""
        _log.warning("namespace is gone", extra={"uid": local.uid, "netns": local.record.netns})
        self._release(local)
        await self._forget(local.uid)
        await self._namespaces.end_probes(local.record.mark, dead=True)

    def _release(self, local: Local) -> None:
        self._workers.workload_down(local.uid, 0)
        del self._locals[local.uid]
        os.close(local.netns)

    async def _forget(self, uid: str) -> None:
        if uid in self._locals:
            self._release(self._locals[uid])
        self._certs.forget(uid)
        self._workers.forget_certificate(uid)
        self._records.forget(uid)
        await self._syncer.withdraw(uid)

    # Back in, and gone.

    async def recall(self) -> None:
        """Read what a run before this one had. Workloads whose namespace has gone are withdrawn."""
        records = list(self._records.load())
        self._certs.forget_all_but({record.workload.uid for record in records})
        for record in records:
            uid = record.workload.uid
            try:
                netns = self._namespaces.open(record.netns)
            except Failure as error:
                _log.warning("namespace is gone; workload withdrawn", extra={"uid": uid, "error": str(error)})
                await self._forget(uid)
                continue
            if self._namespaces.identify(netns) != record.namespace_id:
                os.close(netns)
                _log.warning("path leads to another namespace; workload withdrawn", extra={"uid": uid})
                await self._forget(uid)
                continue
            self._locals[uid] = Local(record, netns)

    async def resume(self) -> None:
        """Take up what was recalled. What fails is shown as failed; its rules stay, so it is cut off."""
        async with trio.open_nursery() as nursery:
            for local in list(self._locals.values()):
                nursery.start_soon(self._resume_one, local)

    async def _resume_one(self, local: Local) -> None:
        async with self._alone(local.uid):
            if self._locals.get(local.uid) is not local or local.state is State.DRAINING:
                return
            try:
                if self._syncer.trust_domain:
                    self._adopt(local.record.workload)
                with self._listening(local.uid, local.netns) as listeners:
                    await self._bring_up(local, listeners)
            except Failure as error:
                local.state, local.reason = State.FAILED, str(error)
                _log.error("workload not resumed", extra={"uid": local.uid, "error": str(error)})

    async def watch(self) -> None:
        """Withdraw workloads whose namespace is gone; for ever."""
        while True:
            await trio.sleep(_WATCH_EVERY)
            for local in list(self._locals.values()):
                gone = self._namespaces.vanished(local.record.netns, local.record.namespace_id)
                local.missed = local.missed + 1 if gone else 0
                if local.missed >= 2:  # once may be somebody renaming or mounting anew
                    async with self._alone(local.uid):
                        if self._locals.get(local.uid) is local:
                            await self._discard(local)
                elif not self._workers.has(local.uid):  # could not be resumed, perhaps now it can
                    await self._resume_one(local)

    async def undo_all(self) -> None:
        """Remove capture from all workloads (`undoOnStop`)."""
        for local in list(self._locals.values()):
            try:
                await self._namespaces.undo(local.netns, local.record.mark)
            except Failure as error:
                _log.error("capture not removed", extra={"uid": local.uid, "error": str(error)})

    async def capture(self, *, verify: bool) -> list[dict[str, Any]]:
        """For `GET /capture`; with `verify`, what the kernel has is compared with what it should have.

        A workload that is leaving captures no new connections: that is no drift.
        """
        rows = []
        for local in self:
            drift: list[str] = []
            rules: list[str] = []
            try:
                rules = await self._namespaces.rules(local.netns, local.record.mark)
                if verify:
                    drift = await self._namespaces.verify(local.netns, local.record.mark)
            except Failure as error:
                drift = [str(error)]
            if self._locals.get(local.uid) is not local:  # it left in the meantime
                continue
            if local.state is State.DRAINING:
                drift = []
            installed = local.state is State.READY
            rows.append(
                {"uid": local.uid, "state": local.state.value, "installed": installed, "drift": drift, "rules": rules}
            )
        return rows

    @asynccontextmanager
    async def _alone(self, uid: str) -> AsyncIterator[None]:
        """One change of a workload at a time."""
        lock = self._locks.setdefault(uid, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._locks.get(uid) is lock:
                del self._locks[uid]
