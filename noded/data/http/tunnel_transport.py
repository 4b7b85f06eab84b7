"""A connection to a backend through a tunnel that this node opens."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from mesh import hbone
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields
from mesh.identity import Identity
from noded.data.engine import Engine
from noded.data.http.stream_transport import StreamTransport
from noded.data.http.transport import DENIED, Reader
from noded.data.node import LocalWorkload

if TYPE_CHECKING:
    from noded.data.pool import Pool
    from noded.data.tunnel import Tunnel


class Route(NamedTuple):
    """Where such a connection goes, and whence."""

    pool: Pool
    local: LocalWorkload
    peer: Identity
    address: str
    port: int
    source_port: int
    """Of the first client that it is for."""


class TunnelTransport(StreamTransport):
    """What is written before the peer's 200 waits."""

    __slots__ = ("_again", "_route", "address")

    def __init__(self, engine: Engine, reader: Reader, route: Route) -> None:
        super().__init__(engine, reader)
        self._route = route
        self.address = route.address
        self._again = False

    def open_in(self, tunnel: Tunnel) -> None:
        """As `pool.Carried` has it."""
        self.tunnel = tunnel
        _, local, _, address, port, source_port = self._route
        trace = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-00"
        source = hbone.format_address(local.workload.addresses[0], source_port)
        tunnel.connection.open(self, hbone.connect(address, port, source, trace, local.baggage))
        self._engine.mark(tunnel)

    def on_headers(self, fields: Fields, end: bool) -> None:
        """The peer's answer."""
        if self.closed or self.established:
            super().on_headers(fields, end)
            return
        status = hbone.parse_status(fields)
        if status != 200 or end:
            self.connection.reset(self, ErrorCode.CANCEL)
            self._engine.mark(self.tunnel)
            self.lost(DENIED if status == 401 else f"the peer answered {status}")
            return
        self.established = True
        self._engine.mark(self)

    def on_data(self, data: memoryview) -> int:
        """Bytes before the answer are a peer's mistake."""
        if not self.established and not self.closed:
            self.connection.reset(self, ErrorCode.PROTOCOL_ERROR)
            self._engine.mark(self.tunnel)
            self.lost("the peer sent data before its answer")
            return len(data)
        return super().on_data(data)

    def on_reset(self, code: int) -> None:
        """If the peer never took the stream up, another tunnel may: its own was being closed, say."""
        untaken = code in (ErrorCode.REFUSED_STREAM, ErrorCode.CONNECT_ERROR)
        if self.established or self.closed or self._again or not untaken:
            super().on_reset(code)
            return
        again = TunnelTransport(self._engine, self.reader, self._route)
        again._again = True
        again.take_after(self)
        self.closed = True
        self.reader.transport = again
        self._route.pool.carry(self._route.local, self._route.peer, again)

    def fail(self, flags: str, reason: str) -> None:
        """As `pool.Carried` has it."""
        self.lost(reason)

    def close(self) -> None:
        """As `Transport` has it."""
        if self.established:
            super().close()
        else:
            self.reset()

    def reset(self) -> None:
        """As `Transport` has it; also gives up a request for a connection."""
        if not self.closed and not self.established and hasattr(self, "tunnel"):
            self.connection.reset(self, ErrorCode.CANCEL)
            self._engine.mark(self.tunnel)
        super().reset()
