"""Connections leaving a local workload: captured, resolved, then into a tunnel or out in plaintext."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from mesh import hbone
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields
from mesh.resolve import Kind, Target, resolve
from noded.data.dial import Dialler
from noded.data.node import LocalWorkload, Node
from noded.data.socket_relay import Waiting
from noded.data.sockets import canonical
from noded.data.stream_relay import StreamRelay
from noded.data.tracker import UNKNOWN, Flow
from noded.data.tunnel import Tunnel

if TYPE_CHECKING:
    from noded.data.http.proxy import HttpProxy
    from noded.data.pool import Pool

_REFUSALS = {400: ("UPE", "the peer calls the request wrong"), 401: ("RBAC", "denied by the destination's policy")}


class Outbound:
    """The outbound side of this worker."""

    def __init__(self, node: Node, pool: Pool, dialler: Dialler, http: HttpProxy) -> None:
        self._node, self._pool, self._dialler, self._http = node, pool, dialler, http

    def accepted(self, local: LocalWorkload, client: socket.socket, peer: tuple[str, int]) -> None:
        """A captured connection. `getsockname` of a socket that TPROXY handed over is its original destination."""
        node = self._node
        flow = Flow(node.tracker, local.uid, "outbound", canonical(peer[0]), peer[1])
        try:
            address, port = client.getsockname()[:2]
        except OSError:
            client.close()
            flow.finish("NR", "no original destination")
            return
        address = canonical(address)
        flow.destination, flow.port = address, port
        flow.identity = local.identity
        vip = node.snapshot.vip_at(address, port)
        if vip is not None and self._http.concerns(vip):
            self._http.outbound(local, flow, client, vip, self.opaque)
        else:
            self.opaque(local, flow, client)

    def opaque(self, local: LocalWorkload, flow: Flow, client: socket.socket) -> None:
        """Carry it as bytes that mean nothing to us."""
        node = self._node
        target = resolve(node.snapshot, flow.destination, flow.port, node.pick())
        if target.kind is Kind.HOLD:
            node.engine.spawn(self._held, local, flow, client, target)
        else:
            self._go(local, flow, client, target)

    async def _held(self, local: LocalWorkload, flow: Flow, client: socket.socket, target: Target) -> None:
        node = self._node
        node.tracker.count("held")
        waiting = flow.carrier = Waiting(node.engine, flow, client)
        found = [target]

        def resolved() -> bool:
            if not flow.finished:
                found[0] = resolve(node.snapshot, flow.destination, flow.port, node.pick())
            return flow.finished or found[0].kind is not Kind.HOLD

        try:
            known = await node.hold(resolved)
        except BaseException:
            waiting.abort("the worker is ending")
            raise
        if flow.finished:
            return
        if not known:
            node.tracker.count("reset_unknown")
            waiting.abort(f"{found[0].reason}; waited {node.hold_seconds:g} s", found[0].flags)
            return
        self._go(local, flow, client, found[0])

    def _go(self, local: LocalWorkload, flow: Flow, client: socket.socket, target: Target) -> None:
        node = self._node
        flow.target, flow.target_port = target.address, target.port
        party = node.party(target.workload) if target.workload else UNKNOWN
        service = target.service.hostname if target.service else ""
        flow.parties(local.party, party, service, "mutual_tls" if target.kind is Kind.TUNNEL else "none")
        if target.kind is Kind.REFUSE:
            client.close()
            flow.finish(target.flags, target.reason)
        elif target.kind is Kind.TUNNEL:
            assert target.workload is not None
            peer = node.identity(target.workload)
            flow.peer_identity = peer
            stream = OutboundStream(self._pool, local, flow, client, target.address, target.port, node)
            flow.carrier = stream
            self._pool.carry(local, peer, stream)
        else:
            waiting = flow.carrier = Waiting(node.engine, flow, client)
            self._dialler.from_workload(local, target.address, target.port, waiting.connected)


class OutboundStream(StreamRelay):
    """A captured connection on its way through a tunnel. Reads nothing from the client until the peer has said 200."""

    __slots__ = ("_client", "_local", "_node", "_pool", "_port", "_retried", "address", "established")

    def __init__(
        self,
        pool: Pool,
        local: LocalWorkload,
        flow: Flow,
        client: socket.socket,
        address: str,
        port: int,
        node: Node,
    ) -> None:
        super().__init__(node.engine, flow)
        self._pool, self._local, self._node = pool, local, node
        self._client, self._port = client, port
        self.address = address
        """Of the destination workload: where the tunnel goes."""
        self.established = self._retried = False

    def open_in(self, tunnel: Tunnel) -> None:
        """Ask for the connection in this tunnel, which has room."""
        self.tunnel = tunnel
        flow = self.flow
        trace = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-00"
        source = hbone.format_address(flow.client, flow.client_port)
        block = hbone.connect(self.address, self._port, source, trace, self._local.baggage)
        tunnel.connection.open(self, block)
        self.engine.mark(tunnel)

    def on_headers(self, fields: Fields, end: bool) -> None:
        """The peer's answer."""
        if self.closed:
            return
        if self.established:  # trailers: they end the stream, and TCP has nothing to do with what they say
            if end:
                self.on_end()
            return
        status = hbone.parse_status(fields)
        if status != 200 or end:
            flags, reason = _REFUSALS.get(status, ("UF", f"the peer answered {status}"))
            self.connection.reset(self, ErrorCode.CANCEL)
            self.engine.mark(self.tunnel)
            self.fail(flags, reason)
            return
        self.established = True
        self.flow.establish()
        self.join(self._client)

    def on_reset(self, code: int) -> None:
        """The stream is gone; if the peer never took it up, another tunnel may."""
        if self.established or self.closed:
            super().on_reset(code)
        elif code in (ErrorCode.REFUSED_STREAM, ErrorCode.CONNECT_ERROR) and not self._retried:
            self._retried = True
            retry = OutboundStream(
                self._pool, self._local, self.flow, self._client, self.address, self._port, self._node
            )
            retry._retried = True
            self.closed = True
            self.flow.carrier = retry
            assert self.flow.peer_identity is not None
            self._pool.carry(self._local, self.flow.peer_identity, retry)
        else:
            self.fail("UR", "the peer reset the stream before it answered")

    def on_data(self, data: memoryview) -> int:
        """Bytes before the answer are a peer's mistake: drop the connection."""
        if self.established:
            return super().on_data(data)
        self._unanswered("sent data")
        return len(data)

    def on_end(self) -> None:
        """The same before the answer."""
        if self.established:
            super().on_end()
        elif not self.closed:
            self._unanswered("ended the stream")

    def _unanswered(self, what: str) -> None:
        self.connection.reset(self, ErrorCode.PROTOCOL_ERROR)
        self.engine.mark(self.tunnel)
        self.fail("UPE", f"the peer {what} before its answer")

    def fail(self, flags: str, reason: str) -> None:
        """Reset the client; nothing was carried."""
        if not self.closed:
            self.closed = True
            self._client.close()
            self.flow.finish(flags, reason)

    def abort(self, reason: str, flags: str = "-") -> None:
        """Reset both sides now."""
        if self.established:
            super().abort(reason, flags)
        else:
            if hasattr(self, "tunnel"):
                self.connection.reset(self, ErrorCode.CANCEL)
                self.engine.mark(self.tunnel)
            self.fail(flags, reason)
