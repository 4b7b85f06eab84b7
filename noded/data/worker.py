"""A worker process: `python -m noded.data.worker`, with its link to the control process as descriptor 3.

It ends when the link does: without the control process nobody would renew its certificates or tell it of policies.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import socket
import time
from itertools import islice
from typing import Any

import msgpack
import trio

from mesh.snapshot import SnapshotError
from mesh.sync import LimitGrants
from noded import link as messages
from noded import logs
from noded.buckets import Buckets
from noded.data.capture import Listener
from noded.data.dial import Dialler
from noded.data.engine import Engine
from noded.data.http import endpoints
from noded.data.http.proxy import HttpProxy
from noded.data.http.tap import Filter
from noded.data.inbound import Inbound
from noded.data.node import LocalWorkload, Node
from noded.data.outbound import Outbound
from noded.data.passthrough import Passthrough
from noded.data.pool import Pool
from noded.data.timers import Timers
from noded.data.tunnel import TICK_SECONDS, Tunnel
from noded.link import Link, ToControl, ToWorker
from noded.source_ports import SourcePorts

LINK_FD = 3
_REPORT_SECONDS = 1.0
_LOG_SECONDS = 0.2
_AT_ONCE = 100
"""Outcomes of requests in one message: more would hold up traffic for longer than a millisecond."""

log = logging.getLogger("noded.worker")


class Worker:
    """The composition root of a worker: builds every object, owns every nursery, answers the control process."""

    def __init__(
        self,
        link: Link,
        configure: messages.Configure,
        source_ports: SourcePorts,
        buckets: Buckets,
        nursery: trio.Nursery,
    ) -> None:
        self._link, self._configure, self._nursery = link, configure, nursery
        self.index = configure.index
        self.engine = Engine(nursery)
        self.node = Node(configure, source_ports, buckets, self.engine)
        self.dialler = Dialler(self.engine, source_ports, configure.connect_seconds)
        self.pool = Pool(self.node)
        self.timers = Timers(self.engine)
        self.http = HttpProxy(self.node, self.pool, self.dialler, self.timers)
        self.outbound = Outbound(self.node, self.pool, self.dialler, self.http)
        self.inbound = Inbound(self.node, self.dialler, self.http)
        self.passthrough = Passthrough(self.node, self.dialler, self.http)
        self._listeners: dict[str, list[Listener]] = {}

    async def run(self) -> None:
        """Serve until the link ends or a drain is done; returns then, with everything cancelled."""
        for task in (self.engine.run, self.timers.run, self.dialler.sweep, self._report, self._tick, self._write_log):
            self._nursery.start_soon(task)
        self._nursery.start_soon(self.http.tokens.run, self._link.send)
        self._nursery.start_soon(self.http.destinations.shared_limits.run, self._link.send)
        await self._link.send(messages.Ready(os.getpid()))
        while (received := await self._link.receive()) is not None:
            message, fds = received
            await self._handle(message, fds)
        log.info("the control process is gone; ending")
        self._nursery.cancel_scope.cancel()

    async def _handle(self, message: object, fds: list[int]) -> None:
        match message:
            case messages.WorkloadUp():
                await self._workload_up(message, fds)
            case messages.WorkloadDown():
                self._nursery.start_soon(self._farewell, message, self._stop_accepting(message.uid))
            case messages.Certificate():
                if (local := self.node.workloads.get(message.uid)) is not None:
                    local.certificate(message)
                    self.node.changed()
            case messages.MeshUpdate():
                await self._update(message)
            case messages.TokenChecked():
                self.http.tokens.answered(message)
            case LimitGrants():
                self.http.destinations.shared_limits.granted(message)
            case messages.Query():
                await self._link.send(
                    messages.Answer(message.request, msgpack.packb(self._rows(message.what, message.arguments)))
                )
            case messages.SetLogLevel():
                logs.set_level(message.level)
            case messages.Drain():
                self._nursery.start_soon(self._drain, message.seconds)
            case _:
                raise RuntimeError(f"control sent {type(message).__name__}")

    # -- workloads ----------------------------------------------------------------------------------------------------

    async def _workload_up(self, message: messages.WorkloadUp, fds: list[int]) -> None:
        uid = message.workload.uid
        node = self.node
        known = node.workloads.get(uid)
        if known is not None and not fds:
            known.workload, known.labels = message.workload, message.labels
            known.configure(node.snapshot.config)
            known.authorize_with(node.snapshot)
            node.recheck(known)
        elif known is None and len(fds) == 4:
            local = LocalWorkload(message.workload, message.labels, node.snapshot.config, fds[0], message.mark, fds[1:])
            local.authorize_with(node.snapshot)
            node.workloads[uid] = local
            steps = (self.outbound.accepted, self.passthrough.accepted, self.inbound.accepted)
            self._listeners[uid] = [
                Listener(self.engine, local, sock, accepted)
                for sock, accepted in zip(local.listeners, steps, strict=True)
            ]
        else:
            for fd in fds:
                os.close(fd)
            log.error("workload %s came with %d descriptors, known: %s", uid, len(fds), known is not None)
            return
        await self._link.send(messages.WorkloadReady(uid))

    def _stop_accepting(self, uid: str) -> LocalWorkload | None:
        """At once, so that the same workload may come back while the one before it drains."""
        local = self.node.workloads.pop(uid, None)
        if local is not None:
            local.gone = True
            for listener in self._listeners.pop(uid):
                listener.close()
        return local

    async def _farewell(self, message: messages.WorkloadDown, local: LocalWorkload | None) -> None:
        if local is not None:
            tunnels = [*local.tunnels, *(t for t in self.pool.tunnels() if t.uid == message.uid)]
            for tunnel in tunnels:
                tunnel.retire("the workload leaves the mesh")
            self.http.leave(local)
            await self._wait_for_end(message.uid, message.drain_seconds)
            for flow in self.node.tracker.of(message.uid):
                if flow.carrier is not None:
                    flow.carrier.abort("the workload left the mesh", "DR")
            self.engine.flush()
            for tunnel in tunnels:
                tunnel.close("the workload left the mesh")
            local.contexts = None
            local.sockets.close()
        await self._link.send(messages.WorkloadGone(message.uid))

    async def _wait_for_end(self, uid: str | None, seconds: float) -> None:
        """Until no connection (of this workload) is left, or the time is up."""
        tracker = self.node.tracker
        with trio.move_on_after(seconds):
            while tracker.of(uid) if uid else len(tracker):  # noqa: ASYNC110 (rare; an event would cost every end)
                await trio.sleep(0.1)

    # -- the mesh -----------------------------------------------------------------------------------------------------

    async def _update(self, message: messages.MeshUpdate) -> None:
        node = self.node
        before = node.snapshot
        try:
            snapshot = before.apply(message.update)
        except SnapshotError as error:
            log.error("bug: the control process sent an update that does not fit: %s", error)
            raise
        node.adopt(snapshot)
        if not before.ready:
            gc.freeze()  # most of it stays: to go through 10,000 policies holds all connections up for 40 ms
        if not snapshot.leads_as(before):
            self.http.upstreams.snapshot_changed()
        await self._link.send(messages.Applied(snapshot.revision))

    async def _drain(self, seconds: float) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()
        self._listeners = {uid: [] for uid in self._listeners}
        for tunnel in self._tunnels():
            tunnel.retire("draining")
        self.http.drain()
        await self._wait_for_end(None, seconds)
        for flow in self.node.tracker.live():
            if flow.carrier is not None:
                flow.carrier.abort("the proxy is shutting down", "DR")
        self.engine.flush()
        for tunnel in self._tunnels():
            tunnel.close("draining")
        self.node.tracker.flush_log()
        await self._send_counts()
        self._nursery.cancel_scope.cancel()

    # -- telemetry ----------------------------------------------------------------------------------------------------

    def _tunnels(self) -> list[Tunnel]:
        return [*self.pool.tunnels(), *(t for local in self.node.workloads.values() for t in local.tunnels)]

    def _rows(self, what: str, arguments: dict[str, str]) -> list[dict[str, Any]]:
        if what == "requests":
            after = arguments.pop(f"after.{self.index}", "")
            wanted = {name: text for name, text in arguments.items() if "." not in name}
            return self.http.seen.taps.rows(Filter(**wanted), after)
        if what == "endpoints":
            return [row for one in self.http.destinations.all() for row in endpoints.rows(one)]
        if what == "connections":
            return self.node.tracker.rows()
        if what == "failed":
            return [*self.http.seen.recent.rows(), *self.node.tracker.failed_rows()]
        if what == "tunnels":
            return [tunnel.row(self.index) for tunnel in self._tunnels()]
        raise RuntimeError(f"control asked for {what}")

    async def _report(self) -> None:
        while True:
            await trio.sleep(_REPORT_SECONDS)
            await self._send_counts()

    async def _send_counts(self) -> None:
        tracker, tracing = self.node.tracker, self.node.tracing
        if tracing is not None and (spans := tracing.take()):
            await self._link.send(messages.Spans(spans))
        totals = dict(tracker.totals)
        if tracing is not None:
            totals["spans_dropped"] = tracing.dropped
        totals["open_connections"] = len(tracker)
        totals["tunnels"] = len(self._tunnels())
        requests = self.http.seen.report()
        await self._link.send(messages.Counts(tracker.report(), totals, tuple(islice(requests, _AT_ONCE))))
        while some := tuple(islice(requests, _AT_ONCE)):
            await self._link.send(messages.Counts((), totals, some))

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            now = time.time()
            for tunnel in self._tunnels():
                tunnel.tick(now)
            self.http.tick()

    async def _write_log(self) -> None:
        tracker = self.node.tracker
        while True:
            await trio.sleep(_LOG_SECONDS)
            if tracker.has_lines:
                tracker.flush_log()


async def serve(sock: socket.socket) -> None:
    """Run a worker on its link until it ends."""
    link = Link(sock, receives=ToWorker, sends=ToControl)
    try:
        first = await link.receive()
        if first is None:
            return
        configure, (table, buckets) = first
        assert isinstance(configure, messages.Configure)
        source_ports = SourcePorts(table, configure.index)
        os.close(table)
        logs.set_level(configure.log_level)
        async with trio.open_nursery() as nursery:
            await Worker(link, configure, source_ports, Buckets(buckets), nursery).run()
    except (BrokenPipeError, ConnectionResetError):
        log.info("the control process is gone; ending")
    finally:
        link.close()


def main() -> None:
    """Entry point of the process."""
    logs.start("info")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.freeze()
    trio.run(serve, socket.socket(fileno=LINK_FD))


if __name__ == "__main__":
    main()
