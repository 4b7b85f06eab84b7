"""Connections arriving at a local workload in a tunnel."""

from __future__ import annotations

import logging
import socket
from collections import Counter

from mesh import hbone
from mesh.authz import Denial, Peer
from mesh.detect import FIRST_BYTES, HTTP2, OPAQUE, speaks
from mesh.h2.connection import Stream
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields
from mesh.model import PROXY_PORTS, Party
from noded.data import tls
from noded.data.dial import Dialler
from noded.data.http.detection import LOOK_SECONDS
from noded.data.http.proxy import HttpProxy
from noded.data.node import LocalWorkload, Node
from noded.data.sockets import canonical
from noded.data.stream_relay import StreamRelay
from noded.data.tracker import Flow
from noded.data.tunnel import Tunnel

_MAX_HANDSHAKES = 512
"""Tunnels being set up towards one workload; more are refused, since each costs a millisecond of signing."""
_MAX_TUNNELS = 10_000
_MAX_HANDSHAKES_EACH, _MAX_TUNNELS_EACH = 64, 512
"""Those of one address, so that no single peer keeps the others out. An honest one has a tunnel for 100 connections."""
_HANDSHAKE_SECONDS = 10

log = logging.getLogger(__name__)


class Inbound:
    """The inbound side of this worker; the `Keeper` of the tunnels that others open."""

    def __init__(self, node: Node, dialler: Dialler, http: HttpProxy) -> None:
        self.node, self.dialler, self.http = node, dialler, http
        self._locals: dict[Tunnel, LocalWorkload] = {}

    def accepted(self, local: LocalWorkload, sock: socket.socket, peer: tuple[str, int]) -> None:
        """Somebody wants a tunnel to `local`."""
        address = canonical(peer[0])
        if (
            local.handshakes[address] >= _MAX_HANDSHAKES_EACH
            or local.peers[address] >= _MAX_TUNNELS_EACH
            or local.handshakes.total() >= _MAX_HANDSHAKES
            or len(local.tunnels) >= _MAX_TUNNELS
        ):
            self.node.tracker.count("tunnels_refused")
            sock.close()
            return
        local.handshakes[address] += 1
        self.node.engine.spawn(self._handshake, local, sock, address)

    async def _handshake(self, local: LocalWorkload, sock: socket.socket, address: str) -> None:
        node = self.node
        try:
            if not await node.hold(lambda: local.contexts is not None or local.gone) or local.contexts is None:
                raise tls.HandshakeFailed("the workload has no certificate yet")
            contexts = local.contexts
            session = await tls.handshake(sock, contexts.server, server=True, seconds=_HANDSHAKE_SECONDS)
            peer = tls.peer_identity(session.tls)
            if local.gone:
                raise tls.HandshakeFailed("the workload has left the mesh")
        except (tls.HandshakeFailed, OSError) as error:
            node.tracker.count("handshake_failures")
            log.info("no tunnel from %s to %s: %s", address, local.uid, error)
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        finally:
            _less(local.handshakes, address)
        node.tracker.count("handshakes")
        tunnel = Tunnel(
            node.engine,
            node.buffers,
            node.budget,
            self,
            sock,
            session,
            client=False,
            local=local.identity,
            peer=peer,
            peer_address=address,
            uid=local.uid,
            expires=tls.peer_not_after(session.tls),
        )
        local.tunnels.add(tunnel)
        local.peers[address] += 1
        self._locals[tunnel] = local

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """See `Keeper`."""

    def tunnel_request(self, tunnel: Tunnel) -> Stream:
        """See `Keeper`."""
        return InboundStream(self, self._locals[tunnel], tunnel)

    def tunnel_closed(self, tunnel: Tunnel) -> None:
        """See `Keeper`."""
        if tunnel.closed and (local := self._locals.pop(tunnel, None)) is not None:
            local.tunnels.discard(tunnel)
            _less(local.peers, tunnel.peer_address)

    def source_party(self, tunnel: Tunnel, address: str) -> Party:
        """The source of a tunnel: its identity from the certificate, the rest from the snapshot where they agree."""
        workload = self.node.snapshot.workload_at(address)
        if workload is not None and self.node.identity(workload) == tunnel.peer:
            return self.node.party(workload)
        return Party("unknown", tunnel.peer.namespace, tunnel.peer.uri, "unknown", "unknown")


def _less(counts: Counter[str], address: str) -> None:
    counts[address] -= 1
    if not counts[address]:
        del counts[address]


class InboundStream(StreamRelay):
    """A connection that arrived in a tunnel."""

    __slots__ = ("_answered", "_inbound", "_local", "_looking", "_requested")

    def __init__(self, inbound: Inbound, local: LocalWorkload, tunnel: Tunnel) -> None:
        flow = Flow(inbound.node.tracker, local.uid, "inbound", tunnel.peer_address, 0)
        super().__init__(inbound.node.engine, flow)
        self._inbound, self._local = inbound, local
        self.tunnel = tunnel
        flow.carrier = self
        flow.identity, flow.peer_identity = local.identity, tunnel.peer
        self._requested = self._answered = self._looking = False

    def on_headers(self, fields: Fields, end: bool) -> None:
        """The request."""
        if self.closed:
            return
        if self._requested:
            if end:
                self.on_end()
            return
        self._requested = True
        inbound, local, flow = self._inbound, self._local, self.flow
        flow.parties(inbound.source_party(self.tunnel, flow.client), local.party, "", "mutual_tls")
        request = hbone.parse_connect(fields)
        if isinstance(request, str):
            self.refuse(hbone.BAD_REQUEST, "DPE", request)
            return
        flow.destination, flow.port = flow.target, flow.target_port = request.address, request.port
        flow.service = inbound.node.serves(request.address, request.port)
        if request.source is not None and request.source[0] == flow.client:
            flow.client_port = request.source[1]
        if request.port in PROXY_PORTS:
            self.refuse(hbone.BAD_REQUEST, "DPE", "one of the proxy's own ports: it would loop")
        elif request.address not in local.workload.addresses:
            self.refuse(hbone.BAD_REQUEST, "DPE", f"{request.address} is not an address of {local.uid}")
        elif end:
            self.refuse(hbone.BAD_REQUEST, "DPE", "a CONNECT that ends at once")
        elif inbound.node.snapshot.ready:
            self._authorize()
        else:
            inbound.node.engine.spawn(self._held)

    async def _held(self) -> None:
        node = self._inbound.node
        node.tracker.count("held")
        if await node.hold(lambda: node.snapshot.ready):
            self._authorize()
        else:
            self.refuse(hbone.UNAVAILABLE, "NR", f"no snapshot of the mesh yet; waited {node.hold_seconds:g} s")

    def _authorize(self) -> None:
        if self.closed:
            return
        flow = self.flow
        if self._inbound.http.reads(self._local, flow.target, flow.target_port):
            self._look()
        else:
            self._let_in()

    def _look(self) -> None:
        """The policies want to see requests: say yes for now, and see what comes."""
        self._answered = self._looking = True
        self.connection.send_headers(self, hbone.OK)
        self.engine.mark(self.tunnel)
        http, flow = self._inbound.http, self.flow
        if not http.node.snapshot.protocol_at(flow.target, flow.target_port):
            http.timers.after(LOOK_SECONDS, self._seen_opaque)

    def _see(self) -> None:
        assert self._pending is not None
        found, http, flow = speaks(bytes(self._pending[:FIRST_BYTES])), self._inbound.http, self.flow
        # where HTTP is declared, a server may take for a request what does not look like one to us
        if found and (found != OPAQUE or http.node.snapshot.protocol_at(flow.target, flow.target_port)):
            self._looking = False
            self.closed = True  # as a relay; its flow goes on
            first, self._pending = bytes(self._pending), None
            session = http.inbound(self._local, flow, http2=found == HTTP2)
            session.within(self, self.tunnel, first)
        elif found:
            self._seen_opaque()

    def _seen_opaque(self) -> None:
        if self._looking:
            self._looking = False
            self._let_in()

    def _let_in(self) -> None:
        """Decide on the connection as bytes that mean nothing to us."""
        if self.closed:
            return
        flow = self.flow
        verdict = self._local.authorizer.check(Peer(self.tunnel.peer, flow.client, flow.target, flow.target_port))
        flow.decided(verdict)
        if isinstance(verdict, Denial):
            self.refuse(hbone.DENIED, "RBAC", verdict.text)
            return
        self._inbound.dialler.to_workload(
            verdict, self._local, flow.target, flow.target_port, flow.client, self._connected
        )

    def _connected(self, sock: socket.socket | None, why: str) -> None:
        if self.closed:
            if sock is not None:
                sock.close()
        elif sock is None:
            self.refuse(hbone.UNAVAILABLE, "UF", why)
        else:
            self.flow.establish()
            if not self._answered:
                self.connection.send_headers(self, hbone.OK)
                self.engine.mark(self.tunnel)
            self.join(sock)

    def on_data(self, data: memoryview) -> int:
        """Nothing may come before our answer; what does is kept within the stream's window until there is a socket."""
        if self.sock is None and not self.closed:
            if self._pending is None:
                self._pending = bytearray()
            self._pending += data
            if self._looking:
                self._see()
            return 0
        return super().on_data(data)

    def on_end(self) -> None:
        """The client has sent all it will."""
        if self.sock is None:
            self._half_closed = True
            self._seen_opaque()
        else:
            super().on_end()

    def join(self, sock: socket.socket) -> None:
        """Also deliver what came early."""
        super().join(sock)
        if self._pending:
            self._drain()
            if self._pending and not self.closed:
                self.engine.modify(self._fd, self._events())
        elif self._half_closed:
            self._shut()

    def refuse(self, block: bytes, flags: str, reason: str) -> None:
        """Answer with a status and end the stream."""
        if self.closed:
            return
        self.closed = True
        if self._answered:
            self.connection.reset(self, ErrorCode.CONNECT_ERROR)
        else:
            self.connection.send_headers(self, block, end=True)
        if self.connection.streams.get(self.stream_id) is self:
            self.connection.reset(self, ErrorCode.NO_ERROR)
        self.engine.mark(self.tunnel)
        self.flow.finish(flags, reason)
