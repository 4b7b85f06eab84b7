"""A worker that carries no traffic: it says what a real one would, and shows what it was told as its `connections`."""

from __future__ import annotations

import os
import socket
import sys

import msgpack
import trio

from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Party
from mesh.snapshot import Snapshot
from noded import link
from noded.link import Link, ToControl, ToWorker

COMMAND = (sys.executable, "-m", "tests.noded.fake_worker")
EDGE = EdgeKey(
    reporter="source",
    source=Party("client", "shop", "spiffe://cluster.local/ns/shop/sa/client", "client", "latest"),
    destination=Party("web", "shop", "spiffe://cluster.local/ns/shop/sa/web", "web", "v1"),
    service="web.shop.svc.cluster.local",
    security="mutual_tls",
    flags="-",
)


async def _main() -> None:
    control = Link(socket.socket(fileno=3), receives=ToWorker, sends=ToControl)
    snapshot = Snapshot.empty()
    rows: dict[str, dict[str, object]] = {}
    while (received := await control.receive()) is not None:
        message, fds = received
        match message:
            case link.Configure():
                await control.send(link.Ready(os.getpid()))
                counts = EdgeCounts(opened=1, closed=1, received=100, sent=200)
                await control.send(
                    link.Counts((EdgeReport(EDGE, counts),), {"open_connections": 1, "tunnels": 2, "handshakes": 3})
                )
            case link.MeshUpdate(update):
                snapshot = snapshot.apply(update)
                for row in rows.values():
                    row["revision"] = snapshot.revision
                await control.send(link.Applied(snapshot.revision))
            case link.WorkloadUp(workload, labels, mark):
                row = rows.setdefault(workload.uid, {"workload": workload.uid, "fds": 0, "certificate": ""})
                row |= {"labels": labels, "mark": mark, "revision": snapshot.revision}
                row["fds"] = len(fds) or row["fds"]
                await control.send(link.WorkloadReady(workload.uid))
            case link.Certificate(uid, chain):
                rows[uid]["certificate"] = chain.decode()
            case link.WorkloadDown(uid):
                rows.pop(uid, None)
                await control.send(link.WorkloadGone(uid))
            case link.Query(request):
                await control.send(
                    link.Answer(request, msgpack.packb([{**r, "pid": os.getpid()} for r in rows.values()]))
                )
            case link.Drain():
                return


if __name__ == "__main__":
    trio.run(_main)
