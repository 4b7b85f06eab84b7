"""What all HTTP connections of a worker share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.detect import HTTP2, OPAQUE, protocol
from mesh.paths import Normalization
from mesh.snapshot import Vip
from noded.data.dial import Dialler
from noded.data.http import pressure
from noded.data.http.destinations import Destinations
from noded.data.http.detection import Detection
from noded.data.http.inbound import InboundSession
from noded.data.http.seen import Seen
from noded.data.http.session import OutboundSession, Session
from noded.data.http.tokens import Tokens
from noded.data.http.upstreams import Upstreams
from noded.data.node import LocalWorkload, Node
from noded.data.timers import Timers
from noded.data.tracker import Flow

if TYPE_CHECKING:
    from noded.data.pool import Pool

_LOOK_SECONDS = 0.5
Opaque = Callable[[LocalWorkload, Flow, socket.socket], None]


class HttpProxy:
    """Made once a worker."""

    def __init__(self, node: Node, pool: Pool, dialler: Dialler, timers: Timers) -> None:
        self.node, self.dialler, self.timers = node, dialler, timers
        self.upstreams = Upstreams(node, pool, dialler)
        self.destinations = Destinations(node, timers)
        self.seen = Seen(node)
        self.tokens = Tokens(node.engine, timers)
        self.sessions: set[Session] = set()
        self._draining = False
        self._look()

    @property
    def normalization(self) -> Normalization:
        """The form that paths are given."""
        return self.node.snapshot.config.path_normalization

    def concerns(self, vip: Vip) -> bool:
        """Whether connections to this port of a service may be HTTP, and it makes a difference here."""
        service = vip.service
        port = service.ports[vip.port_index]
        declared = protocol(port)
        if declared:
            return declared != "tcp"
        snapshot = self.node.snapshot
        return bool(snapshot.routes_at(service.key, port.port)) or snapshot.traffic_policy(service.key) is not None

    def outbound(self, local: LocalWorkload, flow: Flow, client: socket.socket, vip: Vip, opaque: Opaque) -> None:
        """Serve a captured connection to a service's port as HTTP; if it is something else, hand it to `opaque`."""
        port = vip.service.ports[vip.port_index]

        def detected(speaks: str) -> None:
            if flow.finished:
                return
            if speaks != OPAQUE or protocol(port) == "http":
                http2 = speaks == HTTP2
                OutboundSession(self, local, flow, vip.service.key, port.port, http2=http2).over(client)
            else:
                opaque(local, flow, client)

        Detection(self.node.engine, self.timers, flow, client, detected, bounded=not protocol(port))

    def inbound(self, local: LocalWorkload, flow: Flow, *, http2: bool) -> InboundSession:
        """A connection to a local workload that carries requests; what it comes over is the caller's to say."""
        return InboundSession(self, local, flow, http2=http2)

    def look(self, local: LocalWorkload, flow: Flow, client: socket.socket, opaque: Opaque) -> None:
        """Read a connection in plaintext to a local workload as HTTP; if it is something else, hand it to `opaque`.

        Not where the port is declared to be HTTP: a server may take for a request what does not look like one to us.
        """
        declared = self.node.snapshot.protocol_at(flow.target, flow.target_port)

        def detected(speaks: str) -> None:
            if flow.finished:
                return
            if speaks != OPAQUE or declared:
                self.inbound(local, flow, http2=speaks == HTTP2).over(client)
            else:
                opaque(local, flow, client)

        Detection(self.node.engine, self.timers, flow, client, detected, bounded=not declared)

    def reads(self, local: LocalWorkload, address: str, port: int) -> bool:
        """Whether connections to this port of a local workload may be HTTP, and its policies want to know."""
        wanted = local.authorizer.reads_requests or local.token_rules is not None
        return wanted and self.node.snapshot.protocol_at(address, port) != "tcp"

    def _look(self) -> None:
        """Twice a second: at the memory that requests take."""
        self.timers.after(_LOOK_SECONDS, self._look)
        if pressure.suspicious():
            pressure.relieve(self.sessions)

    def leave(self, local: LocalWorkload) -> None:
        """A workload leaves the mesh: end its connections when the requests under way are answered."""
        for session in list(self.sessions):
            if session.local is local:
                session.server.drain()
        for flow in self.node.tracker.of(local.uid):
            if isinstance(flow.carrier, Detection):
                flow.carrier.drain()
        self.upstreams.leave(local)

    def drain(self) -> None:
        """The same for all workloads."""
        self._draining = True
        for session in list(self.sessions):
            session.server.drain()
        for flow in self.node.tracker.live():
            if isinstance(flow.carrier, Detection):
                flow.carrier.drain()

    def tick(self) -> None:
        """Call every 5 s."""
        for session in list(self.sessions):
            session.tick()
            if self._draining or session.local.gone:  # it may have begun since
                session.server.drain()
        self.upstreams.tick()
        self.seen.taps.tick()
        self.destinations.tick(time.monotonic())
