"""Connections to backends: through a tunnel, or in plaintext to what is outside the mesh; idle ones are used again.

Like tunnels, they are never shared between local workloads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.h2.connection import MAX_STREAMS
from mesh.identity import Identity
from mesh.model import Service
from mesh.resolve import Kind, to_endpoint
from noded.data.dial import Dialler
from noded.data.http.client import Call, Http1Client
from noded.data.http.client2 import Http2Client
from noded.data.http.connections import FULL, Connections
from noded.data.http.socket_transport import SocketTransport
from noded.data.http.tunnel_transport import Route, TunnelTransport
from noded.data.node import LocalWorkload, Node

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange
    from noded.data.pool import Pool

_IDLE_TICKS = 12
"""Ticks of 5 s after which an idle connection is closed."""
_MAX_IDLE = 1024


class Upstream:
    """From one local workload to one endpoint. The keeper of its connections."""

    __slots__ = (
        "_bounded",
        "_proxy",
        "_via",
        "address",
        "all",
        "bounds",
        "idle_ones",
        "local",
        "port",
        "service",
        "shared",
        "streams",
        "uid",
    )

    def __init__(self, proxy: Upstreams, local: LocalWorkload, service: Service, address: str, port: int, uid: str):
        self._proxy, self.local, self.service = proxy, local, service
        self.address, self.port, self.uid = address, port, uid
        self.idle_ones: list[Http1Client] = []
        self.all: set[Http1Client] = set()
        self.shared: list[Http2Client] = []
        """HTTP/2: each carries as many requests as its backend takes."""
        self.streams = MAX_STREAMS
        self.bounds: Connections | None = None
        """Of what is opened from now on, if there are any."""
        self._bounded: dict[Http1Client | Http2Client, Connections] = {}
        self._via: tuple[Kind, Identity | None] = (Kind.HOLD, None)
        """How its connections go, and to whom."""

    def call(self, exchange: Exchange, http2: bool) -> Call | str:
        """A call for this exchange, perhaps over a connection still to be established; or why there is none."""
        if http2:
            return self._stream(exchange)
        idle = self.idle_ones
        while idle:
            connection = idle.pop()
            if connection.transport.retiring:
                connection.close()
            elif not connection.closed and not connection.transport.closed:
                connection.start(exchange)
                return connection
        return self._open(exchange)

    def _open(self, exchange: Exchange) -> Call | str:
        if self.bounds is not None and not self.bounds.enter(self):
            return FULL
        connection = Http1Client(self)
        connection.start(exchange)
        self.all.add(connection)
        if self.bounds is not None:
            self._bounded[connection] = self.bounds
        return self._connect(connection, exchange) or connection

    def _stream(self, exchange: Exchange) -> Call | str:
        for connection in self.shared:
            if connection.room and not connection.transport.retiring:
                if self.bounds is None or not self._worn(connection):
                    return connection.call(exchange)
                connection.close()
        if self.bounds is not None and not self.bounds.enter(self):
            return FULL
        node = self._proxy.node
        connection = Http2Client(node.engine, node.budget, self)
        self.shared.append(connection)
        if self.bounds is not None:
            self._bounded[connection] = self.bounds
        return self._connect(connection, exchange) or connection.call(exchange)

    def _connect(self, connection: Http1Client | Http2Client, exchange: Exchange) -> str:
        """Begin to, for this exchange; or say why it failed at once."""
        self._via = kind, peer = self._way()
        source_port = exchange.session.flow.client_port
        if peer is not None:
            self._tunnel(connection, peer, source_port)
        else:
            connection.transport = sock = SocketTransport(self._proxy.node.engine, connection)
            if kind is Kind.PLAINTEXT:
                self._proxy.dialler.from_workload(self.local, self.address, self.port, sock.connected)
            elif kind is Kind.HOLD:
                self._proxy.node.engine.spawn(self._held, connection, sock, source_port)
            else:
                sock.connected(None, "one of the proxy's own ports: it would loop")
        return connection.reason if connection.transport.closed else ""

    def _tunnel(self, connection: Http1Client | Http2Client, peer: Identity, source_port: int) -> TunnelTransport:
        route = Route(self._proxy.pool, self.local, peer, self.address, self.port, source_port)
        connection.transport = stream = TunnelTransport(self._proxy.node.engine, connection, route)
        route.pool.carry(self.local, peer, stream)
        return stream

    async def _held(self, connection: Http1Client | Http2Client, sock: SocketTransport, source_port: int) -> None:
        """The endpoint's workload is not known yet: wait for a snapshot that knows it, for a bounded time."""
        node = self._proxy.node
        node.tracker.count("held")
        known = await node.hold(lambda: sock.closed or self._way()[0] in (Kind.TUNNEL, Kind.PLAINTEXT))
        if sock.closed:
            return
        if not known:
            node.tracker.count("reset_unknown")
            sock.connected(None, f"the endpoint's workload is not known; waited {node.hold_seconds:g} s")
            return
        self._via = _, peer = self._way()
        if peer is None:
            self._proxy.dialler.from_workload(self.local, self.address, self.port, sock.connected)
        else:
            sock.closed = True
            self._tunnel(connection, peer, source_port).take_after(sock)

    def _way(self) -> tuple[Kind, Identity | None]:
        node = self._proxy.node
        target = to_endpoint(node.snapshot, self.service, self.address, self.port, self.uid)
        in_tunnel = target.kind is Kind.TUNNEL and target.workload is not None
        return target.kind, node.identity(target.workload) if in_tunnel and target.workload else None

    def recheck(self) -> None:
        """There is a new snapshot: if the way to this endpoint is another now, these connections are of no more use."""
        if (self.all or self.shared) and self._way() != self._via:
            self.close()

    def _worn(self, connection: Http1Client | Http2Client) -> bool:
        """Whether it has carried as many requests as it may."""
        return self.bounds is not None and 0 < self.bounds.requests <= connection.carried

    def close_an_idle_one(self) -> bool:
        """To make room for another. One that speaks HTTP/2 is gone a little later."""
        idle: Http1Client | Http2Client | None = self.idle_ones[0] if self.idle_ones else None
        if idle is None:
            idle = next((h2 for h2 in self.shared if not h2.connection.streams and not h2.connection.closing), None)
        if idle is not None:
            idle.close()
        return idle is not None

    def idle(self, connection: Http1Client) -> None:
        """See `client.Keeper`."""
        if (
            connection.stale
            or self._worn(connection)
            or self.local.gone
            or connection.transport.retiring
            or len(self.idle_ones) >= _MAX_IDLE
        ):
            connection.close()
        else:
            connection.ticks = 0
            self.idle_ones.append(connection)

    def gone(self, connection: Http1Client) -> None:
        """See `client.Keeper`."""
        self.all.discard(connection)
        if connection in self.idle_ones:
            self.idle_ones.remove(connection)
        if connection in self._bounded:
            self._bounded.pop(connection).leave(self)

    def gone2(self, connection: Http2Client) -> None:
        """See `client2.Keeper`."""
        self.shared.remove(connection)
        if connection in self._bounded:
            self._bounded.pop(connection).leave(self)

    def tick(self) -> None:
        """Close what has been idle for long."""
        for shared in list(self.shared):
            shared.tick()
            if shared.transport.retiring:
                shared.close()
        for connection in list(self.idle_ones):
            connection.ticks += 1
            if connection.ticks > _IDLE_TICKS or connection.transport.retiring:
                connection.close()

    def close(self) -> None:
        """Close those that are idle; the others when their exchange is over."""
        for connection in list(self.idle_ones):
            connection.close()
        for connection in self.all:
            connection.stale = True
        for shared in list(self.shared):
            shared.close()


class Upstreams:
    """All of them of this worker."""

    def __init__(self, node: Node, pool: Pool, dialler: Dialler) -> None:
        self.node, self.pool, self.dialler = node, pool, dialler
        self._all: dict[tuple[str, str, int, str], Upstream] = {}

    def to(self, local: LocalWorkload, service: Service, address: str, port: int, uid: str) -> Upstream:
        """That from a workload to an endpoint."""
        key = (local.uid, address, port, uid)
        found = self._all.get(key)
        if found is not None and found.local is not local:  # it left, and came back
            found.close()
            found = None
        if found is None:
            found = self._all[key] = Upstream(self, local, service, address, port, uid)
        found.service = service
        return found

    def tick(self) -> None:
        """Call every 5 s."""
        for key, upstream in list(self._all.items()):
            upstream.tick()
            if not upstream.all and not upstream.shared:
                del self._all[key]

    def leave(self, local: LocalWorkload) -> None:
        """A workload leaves the mesh: close its connections, those in use when their exchange is over."""
        for upstream in self._all.values():
            if upstream.local is local:
                upstream.close()

    def snapshot_changed(self) -> None:
        """Call when it has."""
        for upstream in self._all.values():
            upstream.recheck()
