"""Two nodes in this process, on loopback: real tunnels, pools, relays and sockets around one engine.

What capture would hand over is made by hand; `Plain` stands for sockets made in a workload's namespace.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from mesh.identity import Identity
from mesh.model import HBONE_PORT, MeshConfig, Policy, Workload
from mesh.snapshot import Snapshot
from mesh.sync import Update
from noded import buckets
from noded.buckets import Buckets
from noded.data.capture import Listener
from noded.data.dial import Dialler
from noded.data.engine import Engine
from noded.data.http.proxy import HttpProxy
from noded.data.inbound import Inbound
from noded.data.node import LocalWorkload, Node
from noded.data.outbound_stream import OutboundStream
from noded.data.pool import Pool
from noded.data.sockets import tune
from noded.data.timers import Timers
from noded.data.tracker import Flow
from noded.data.tunnel import Tunnel
from noded.link import Certificate, Configure
from noded.sink import Sink
from noded.source_ports import SourcePorts, create
from tests.noded.data.lab import TRUST_DOMAIN, Authority

AUTHORITY = Authority()


def source_ports() -> SourcePorts:
    """A node's table, with one worker."""
    fd = create(1)
    try:
        return SourcePorts(fd, 0)
    finally:
        os.close(fd)


class Plain:
    """Sockets of this namespace, with the options that a workload's have (but those for capture)."""

    def __init__(self) -> None:
        self.made: list[socket.socket] = []
        self.small = False

    def make(self, address: str, *, transparent: bool = False) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)
        tune(sock)
        if self.small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.made.append(sock)
        return sock


def random_address() -> str:
    """An address of this host's own that no other test is using."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(2, 254)}"


def tcp_pair(*, tuned: bool = True, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """An application's blocking socket, and the proxy's end of it. With `small`, little fits in between."""
    listener = socket.socket()
    if tuned:
        tune(listener)
    if small:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    app = socket.socket()
    if small:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    app.settimeout(20)
    app.connect(listener.getsockname())
    near, _ = listener.accept()
    near.setblocking(False)
    listener.close()
    return app, near


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def received(sock: socket.socket) -> tuple[bytes, str]:
    """All that comes, and how it ends: `end` or `reset`."""

    def read() -> tuple[bytes, str]:
        parts = []
        try:
            while data := sock.recv(65536):
                parts.append(data)
        except ConnectionResetError:
            return b"".join(parts), "reset"
        return b"".join(parts), "end"

    return await trio.to_thread.run_sync(read)


async def fill(sock: socket.socket) -> int:
    """Send until nothing more goes anywhere; return how much went."""
    sock.setblocking(False)
    sent = refused = 0
    while refused < 10:
        try:
            sent += sock.send(bytes(65536))
            refused = 0
        except BlockingIOError:
            refused += 1
        await trio.sleep(0.01)
    sock.settimeout(20)
    return sent


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for something that comes from the engine, at most 20 s."""
    with trio.move_on_after(20):
        while not condition():
            await trio.sleep(0.005)
        return
    raise AssertionError(f"did not come to be: {what or condition}")


@dataclass
class Side:
    """One node with one workload."""

    node: Node
    local: LocalWorkload
    address: str
    sockets: Plain

    @property
    def identity(self) -> Identity:
        return self.local.identity

    def log(self) -> list[dict[str, Any]]:
        """The access-log lines so far."""
        import json

        return [json.loads(line) for line in self.node.tracker._lines]


class Mesh:
    """`client` and `web`, each on a node of its own."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.engine = Engine(nursery)
        self.config = MeshConfig(TRUST_DOMAIN)
        self.policies: tuple[Policy, ...] = ()
        self.ports = source_ports()
        self.client, self.web = self.side("client"), self.side("web")
        self.revision = 0
        self.publish()
        self.pool = Pool(self.client.node)
        self.dialler = Dialler(self.engine, self.ports, 5.0)
        http = HttpProxy(self.web.node, self.pool, self.dialler, Timers(self.engine))
        self.inbound = Inbound(self.web.node, self.dialler, http)
        self.listener: Listener | None = None
        self.open: list[socket.socket] = []

    def side(self, name: str) -> Side:
        node = Node(Configure(0, True, 0.5, 5.0, 5.0, "debug"), self.ports, Buckets(buckets.create()), self.engine)
        node.tracker._log = Sink(-1)
        address = random_address()
        workload = Workload(f"shop/{name}", name, "shop", name, f"node-{name}", (address,), True, name, "v1")
        local = LocalWorkload(workload, {}, self.config, os.open("/proc/self/ns/net", os.O_RDONLY), 0, [])
        local.sockets.close()
        sockets = Plain()
        local.sockets = sockets  # type: ignore[assignment]
        node.workloads[local.uid] = local
        self.certify(local, f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}")
        return Side(node, local, address, sockets)

    def certify(self, local: LocalWorkload, *uris: str) -> None:
        chain, key = AUTHORITY.issue(*uris)
        local.certificate(Certificate(local.uid, chain, key, AUTHORITY.roots, time.time() + 3600))

    def publish(self) -> None:
        self.revision += 1
        workloads = (self.client.local.workload, self.web.local.workload)
        update = Update(
            "t", self.revision, 0, True, self.config, workloads=workloads, has_policies=True, policies=self.policies
        )
        for side in (self.client, self.web):
            side.node.adopt(Snapshot.empty().apply(update))

    def listen(self) -> None:
        """Accept tunnels at the web's address."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.web.address, HBONE_PORT))
        sock.listen(100)
        self.listener = Listener(self.engine, self.web.local, sock, self.inbound.accepted)

    def serve(self, port: int = 8080, *, small: bool = False) -> socket.socket:
        """The web application's listener."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind((self.web.address, port))
        sock.listen(200)
        sock.settimeout(20)
        self.open.append(sock)
        return sock

    def stream(self, port: int = 8080, *, small: bool = False) -> tuple[socket.socket, OutboundStream]:
        """A captured connection to the web, not yet in a tunnel: the application's socket, and its stream."""
        app, near = tcp_pair(small=small)
        self.open.append(app)
        side = self.client
        flow = Flow(side.node.tracker, side.local.uid, "outbound", side.address, 40_000)
        flow.destination, flow.port = flow.target, flow.target_port = self.web.address, port
        flow.identity, flow.peer_identity = side.identity, self.web.identity
        stream = OutboundStream(self.pool, side.local, flow, near, self.web.address, port, side.node)
        flow.carrier = stream
        return app, stream

    def connect(self, port: int = 8080, *, small: bool = False) -> tuple[socket.socket, OutboundStream]:
        """The same, on its way."""
        app, stream = self.stream(port, small=small)
        self.pool.carry(self.client.local, self.web.identity, stream)
        return app, stream

    async def joined(
        self, listener: socket.socket, *, small: bool = False
    ) -> tuple[socket.socket, socket.socket, OutboundStream]:
        """A connection from application to application: the client's socket, the server's, and the client's stream."""
        app, stream = self.connect(listener.getsockname()[1], small=small)
        server, _ = await trio.to_thread.run_sync(listener.accept)
        server.settimeout(20)
        self.open.append(server)
        await until(lambda: stream.established, "the peer's answer")
        return app, server, stream

    def tunnels(self) -> list[Tunnel]:
        """Of both sides."""
        return [*self.pool.tunnels(), *self.web.local.tunnels]

    def close(self) -> None:
        for tunnel in self.tunnels():
            tunnel.close("the test is over")
        if self.listener is not None:
            self.listener.close()
        for sock in (*self.open, *self.client.sockets.made, *self.web.sockets.made):
            sock.close()


@asynccontextmanager
async def mesh() -> AsyncIterator[Mesh]:
    """A mesh that listens, with its engine running."""
    async with trio.open_nursery() as nursery:
        made = Mesh(nursery)
        try:
            nursery.start_soon(made.engine.run)
            nursery.start_soon(made.dialler.sweep)
            made.listen()
            yield made
        finally:
            made.close()
            nursery.cancel_scope.cancel()
