"""The worker processes: kept alive, and kept told of everything that a worker has to know.

The desired state (configuration, snapshot, workloads with their listeners, certificates) is held here. A change is
recorded and queued for each live worker without awaiting anything in between, and a worker that (re)starts gets the
whole state queued in the same way, so none can miss a change or see two in the wrong order.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import trio

from mesh.snapshot import Snapshot
from mesh.sync import LimitReports, Update
from noded import buckets, link, source_ports
from noded.config import Config
from noded.control.limits import SharedLimits
from noded.control.process import COMMAND, Process
from noded.control.worker import Worker

if TYPE_CHECKING:
    from noded.control.token_keys import TokenKeys

_log = logging.getLogger(__name__)
_FIRST_RETRY, _LAST_RETRY, _STABLE = 0.1, 10.0, 30.0


@dataclass(slots=True)
class _Local:
    up: link.WorkloadUp
    netns: int
    listeners: list[list[socket.socket]]
    """For each worker: 15001, 15006, 15008."""

    def close(self) -> None:
        os.close(self.netns)
        for worker in self.listeners:
            for sock in worker:
                sock.close()


@dataclass(slots=True)
class _Slot:
    index: int
    worker: Worker | None = None
    restarts: int = 0


class Workers:
    """All workers. `on_counts(index, counts)` gets what they report, and `on_end(index)` that one has ended."""

    def __init__(
        self,
        config: Config,
        on_counts: Callable[[int, link.Counts], None],
        on_end: Callable[[int], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._config, self._on_counts, self._on_end, self._command = config, on_counts, on_end, command
        self.limits = SharedLimits(lambda: self._snapshot or Snapshot.empty(), self._tell)
        self.count = config.workers or len(os.sched_getaffinity(0))
        self.log_level = config.log_level
        self.on_spans: Callable[[tuple[link.Span, ...]], None] = lambda spans: None
        """Gets the spans that workers tell of."""
        self.draining = False
        self._slots = [_Slot(index) for index in range(self.count)]
        self._snapshot: Snapshot | None = None
        self._token_keys: TokenKeys | None = None
        self._locals: dict[str, _Local] = {}
        self._certificates: dict[str, link.Certificate] = {}
        self._changed = trio.Event()
        self._requests = 0
        self._source_ports = source_ports.create(self.count)
        self._buckets = buckets.create()

    # Desired state: none of these waits.

    def start_with(self, snapshot: Snapshot) -> None:
        """The snapshot that the first workers get; before `run`."""
        self._snapshot = snapshot
        self._have_keys(snapshot)

    def update(self, update: Update, snapshot: Snapshot) -> None:
        """`snapshot` is in force; `update` is what led to it from the one before."""
        self._snapshot = snapshot
        if update.changes_policies:
            self._have_keys(snapshot)
        for worker in self._live():
            worker.unapplied += 1
            worker.post(link.MeshUpdate(update))
        self._notify()

    def _have_keys(self, snapshot: Snapshot) -> None:
        if snapshot.request_auths and self._token_keys is None:
            from noded.control.token_keys import TokenKeys  # 5 MB that few nodes need

            self._token_keys = TokenKeys()
        if self._token_keys is not None:
            self._token_keys.adopt(snapshot.request_auths)

    def _checked(self, message: link.CheckToken) -> link.TokenChecked:
        keys = self._token_keys
        problem = keys.check(message.token, message.key_set) if keys is not None else "no keys are known"
        return link.TokenChecked(message.request, problem)

    def workload_up(self, up: link.WorkloadUp, netns: int, listeners: list[list[socket.socket]]) -> None:
        """A new local workload. Takes ownership of `netns` and the listeners, three for each worker."""
        local = self._locals[up.workload.uid] = _Local(up, netns, listeners)
        for slot in self._slots:
            if slot.worker is not None:
                self._post_local(slot.worker, local)

    def relabel(self, up: link.WorkloadUp) -> None:
        """Its labels or service account changed."""
        self._locals[up.workload.uid].up = up
        for worker in self._live():
            worker.post(up)

    def workload_down(self, uid: str, drain_seconds: float) -> None:
        """Stop accepting for it; close what `workload_up` took."""
        local = self._locals.pop(uid, None)
        if local is not None:
            local.close()
            for worker in self._live():
                worker.ready.discard(uid)
                worker.post(link.WorkloadDown(uid, drain_seconds))

    def certificate(self, message: link.Certificate) -> None:
        """A workload's newest certificate."""
        self._certificates[message.uid] = message
        for worker in self._live():
            if message.uid in worker.present:
                worker.post(message)

    def forget_certificate(self, uid: str) -> None:
        """A workload that is down will not come back with it."""
        self._certificates.pop(uid, None)

    def has(self, uid: str) -> bool:
        """Whether `workload_up` was called for it."""
        return uid in self._locals

    def set_log_level(self, level: str) -> None:
        """For all workers, also later ones."""
        self.log_level = level
        for worker in self._live():
            worker.post(link.SetLogLevel(level))

    # Waiting for it to be reached. Each returns whether it was within `seconds`.

    async def until_up(self, seconds: float) -> bool:
        """All workers have started."""
        return await self._until(lambda: self.up, seconds)

    async def until_ready(self, uid: str, seconds: float) -> bool:
        """All workers accept for this workload."""
        return await self._until(lambda: all(s.worker and uid in s.worker.ready for s in self._slots), seconds)

    async def until_gone(self, uid: str, seconds: float) -> bool:
        """No worker has a connection of this workload left."""
        return await self._until(lambda: not any(uid in w.present for w in self._live()), seconds)

    async def until_applied(self, seconds: float = math.inf) -> bool:
        """All workers have applied every update."""
        return await self._until(lambda: self.applied, seconds)

    async def until_change(self) -> None:
        """Some worker has said or become something."""
        await self._changed.wait()

    @property
    def up(self) -> bool:
        """All workers run and are configured."""
        return all(slot.worker is not None and slot.worker.configured for slot in self._slots)

    @property
    def applied(self) -> bool:
        """All workers run and hold the newest snapshot."""
        return self.up and all(slot.worker is not None and not slot.worker.unapplied for slot in self._slots)

    async def query(
        self, what: str, arguments: dict[str, str] | None = None, seconds: float = 2.0
    ) -> list[dict[str, Any]]:
        """Rows of all live workers, each with its `worker` index; those that don't answer in time are left out."""
        self._requests += 1
        request = self._requests
        asked = [(slot.index, slot.worker) for slot in self._slots if slot.worker is not None]
        for _, worker in asked:
            worker.post(link.Query(request, what, arguments or {}))
        await self._until(lambda: all(request in w.answers or not self._is_live(w) for _, w in asked), seconds)
        rows: list[dict[str, Any]] = []
        for index, worker in asked:
            for row in msgpack.unpackb(worker.answers.pop(request, b"\x90"), strict_map_key=False):
                rows.append({**row, "worker": index})
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """For `GET /status`."""
        return [self._row(slot) for slot in self._slots]

    def _row(self, slot: _Slot) -> dict[str, Any]:
        totals = slot.worker.totals if slot.worker else {}
        return {
            "index": slot.index,
            "pid": slot.worker.process.pid if slot.worker else 0,
            "connections": totals.get("open_connections", 0),
            "tunnels": totals.get("tunnels", 0),
            "restarts": slot.restarts,
        }

    # The processes.

    async def run(self) -> None:
        """Keep all workers running until cancelled; they are killed then."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.limits.run)
                for slot in self._slots:
                    nursery.start_soon(self._keep, slot)
        finally:
            for local in self._locals.values():
                local.close()
            self._locals.clear()
            os.close(self._source_ports)
            os.close(self._buckets)

    async def drain(self, seconds: float) -> None:
        """Have all workers finish and end; wait for that at most a little longer than `seconds`.

        Our own copies of the listeners are closed: from then on a new connection's SYN finds no socket and is sent
        again by its kernel, so that it succeeds if a new daemon is there in time, where a queue would be reset.
        """
        self.draining = True
        for local in self._locals.values():
            local.close()
        self._locals.clear()
        for worker in self._live():
            worker.ending = True
            worker.post(link.Drain(seconds))
        await self._until(lambda: not self._live(), seconds + 3)

    async def _keep(self, slot: _Slot) -> None:
        retry = _FIRST_RETRY
        while not self.draining:
            started = trio.current_time()
            status = await self._run_one(slot)
            self._on_end(slot.index)
            self.limits.worker_ended(slot.index)
            if self.draining:
                return
            if trio.current_time() - started > _STABLE:
                retry = _FIRST_RETRY
            slot.restarts += 1
            _log.error("worker ended; its connections are reset", extra={"worker": slot.index, "status": status})
            await trio.sleep(retry)
            retry = min(_LAST_RETRY, retry * 2)

    async def _run_one(self, slot: _Slot) -> int:
        try:
            process = Process(self._command)
        except OSError as error:
            _log.error("worker not started", extra={"worker": slot.index, "error": str(error)})
            return -1
        worker = Worker(slot.index, process, self._heard)
        try:
            self._tell_all(worker)
            slot.worker = worker
            return await worker.serve()
        finally:
            slot.worker = None
            await worker.close()
            self._notify()

    def _tell_all(self, worker: Worker) -> None:
        c = self._config
        source_ports.clear(self._source_ports, worker.index)
        worker.post(
            link.Configure(
                worker.index,
                c.access_log,
                c.hold_seconds,
                c.connect_seconds,
                c.drain_seconds,
                self.log_level,
                self.count,
                c.access_log_format,
                c.tracing_sampling / 100 if c.tracing_endpoint else -1.0,
                c.request_ids or bool(c.tracing_endpoint),
            ),
            [self._source_ports, self._buckets],
        )
        if self._snapshot is not None:
            worker.unapplied += 1
            worker.post(link.MeshUpdate(self._snapshot.to_update()))
        for local in self._locals.values():
            self._post_local(worker, local)

    def _post_local(self, worker: Worker, local: _Local) -> None:
        uid = local.up.workload.uid
        worker.present.add(uid)
        worker.post(local.up, [local.netns, *(sock.fileno() for sock in local.listeners[worker.index])])
        if uid in self._certificates:
            worker.post(self._certificates[uid])

    def _heard(self, worker: Worker, message: object) -> None:
        if isinstance(message, link.Counts):
            self._on_counts(worker.index, message)
        elif isinstance(message, link.Spans):
            self.on_spans(message.spans)
        elif isinstance(message, LimitReports):
            self.limits.heard(worker.index, message)
        elif isinstance(message, link.CheckToken):
            worker.post(self._checked(message))
        else:
            self._notify()

    def _tell(self, index: int, message: object) -> None:
        if (worker := self._slots[index].worker) is not None:
            worker.post(message)

    def _live(self) -> list[Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def _is_live(self, worker: Worker) -> bool:
        return any(slot.worker is worker for slot in self._slots)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, reached: Callable[[], bool], seconds: float) -> bool:
        with trio.move_on_after(seconds):
            while not reached():
                await self._changed.wait()
        return reached()
