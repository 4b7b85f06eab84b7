"""A captured connection's stream in a tunnel, from the request for it to its end."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from mesh import hbone
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields
from noded.data.node import LocalWorkload, Node
from noded.data.stream_relay import StreamRelay
from noded.data.tracker import Flow
from noded.data.tunnel import Tunnel

if TYPE_CHECKING:
    from noded.data.pool import Pool

_REFUSALS = {400: ("UPE", "the peer calls the request wrong"), 401: ("RBAC", "denied by the destination's policy")}


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
            retry = self.another()
            retry._retried = True
            self.closed = True
            self.flow.carrier = retry
            assert self.flow.peer_identity is not None
            self._pool.carry(self._local, self.flow.peer_identity, retry)
        else:
            self.fail("UR", "the peer reset the stream before it answered")

    def another(self) -> OutboundStream:
        """For the same connection."""
        return OutboundStream(self._pool, self._local, self.flow, self._client, self.address, self._port, self._node)

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
