"""A real worker process for one pod, told over its link what control would tell it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgpack
import trio

from bench.certificates import Credentials
from mesh.model import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, EdgeReport, MeshConfig, Policy, Workload
from mesh.sync import Update
from noded import buckets, link, source_ports
from noded.control.process import Process
from redirect.capture import Capture, new_mark
from redirect.netns import listener
from redirect.thread import run as on_redirect_thread

from .pods import Pod

NAMESPACE, TRUST_DOMAIN = "shop", "cluster.local"

T = TypeVar("T")


def identity(service_account: str) -> str:
    """The SPIFFE id of a workload of these tests."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}"


def workload(name: str, pod: Pod) -> Workload:
    """A workload in the mesh whose service account has its name."""
    return Workload(
        uid=f"{NAMESPACE}/{name}",
        name=name,
        namespace=NAMESPACE,
        service_account=name,
        node="node-a",
        addresses=(pod.address,),
        meshed=True,
    )


@dataclass
class Worker:
    """A configured worker."""

    process: Process
    edges: list[EdgeReport] = field(default_factory=list)
    """What it has reported so far."""

    async def tell(self, message: object, answer: type[T], fds: Sequence[int] = ()) -> T:
        """Send one message and wait for the answer of that type."""
        with trio.fail_after(60):
            await self.process.link.send(message, fds)
            while True:
                received = await self.process.link.receive()
                assert received is not None, "the worker has ended"
                if isinstance(received[0], link.Counts):
                    self.edges += received[0].edges
                if isinstance(received[0], answer):
                    return received[0]

    async def ask(self, what: str) -> list[dict[str, Any]]:
        """Its rows of `connections` or `tunnels`."""
        answer = await self.tell(link.Query(request=1, what=what), link.Answer)
        rows: list[dict[str, Any]] = msgpack.unpackb(answer.rows)
        return rows

    async def edge(self) -> EdgeReport:
        """The first edge that it reports."""
        with trio.fail_after(60):
            while not self.edges:
                await self.ask("connections")
                await trio.sleep(0.1)
        return self.edges[0]


@contextlib.asynccontextmanager
async def captured_by_worker(
    pod: Pod, name: str, credentials: Credentials, mesh: Sequence[Workload], policies: Sequence[Policy] = ()
) -> AsyncIterator[Worker]:
    """Enrol `pod` as workload `name` with a worker of its own; `mesh` is all that it knows."""
    mark = new_mark()
    update = Update(
        epoch="test",
        revision=1,
        base=0,
        full=True,
        config=MeshConfig(trust_domain=TRUST_DOMAIN, ranges=("10.77.0.0/16",)),
        workloads=tuple(mesh),
        has_policies=True,
        policies=tuple(policies),
    )
    process = Process()
    try:
        worker = Worker(process)
        configure = link.Configure(
            index=0, access_log=False, hold_seconds=2, connect_seconds=5, drain_seconds=1, log_level="info"
        )
        tables = [source_ports.create(1), buckets.create()]
        await worker.tell(configure, link.Ready, tables)
        for table in tables:
            os.close(table)
        await worker.tell(link.MeshUpdate(update), link.Applied)
        listeners = [listener(pod.netns, port) for port in (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT)]
        try:
            (local,) = (entry for entry in mesh if entry.name == name)
            fds = [os.dup(pod.netns), *(sock.fileno() for sock in listeners)]
            await worker.tell(link.WorkloadUp(local, {"app": name}, mark), link.WorkloadReady, fds)
            os.close(fds[0])
        finally:
            for sock in listeners:
                sock.close()
        certificate = link.Certificate(
            uid=local.uid,
            chain=credentials.chain.read_bytes(),
            key=credentials.key.read_bytes(),
            roots=credentials.roots.read_bytes(),
            not_after=time.time() + 86_400,
        )
        await worker.process.link.send(certificate)
        await worker.ask("tunnels")  # messages are acted on in order: the certificate is in use now
        await on_redirect_thread(Capture(pod.path, mark).apply)
        yield worker
    finally:
        await process.close()
