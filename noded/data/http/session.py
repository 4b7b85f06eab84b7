"""A client's connection that carries requests, from its capture to its end."""

from __future__ import annotations

import socket
from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mesh.h2.connection import Stream
from mesh.hbone import format_address
from mesh.http1 import BadMessage
from mesh.message import Request
from noded.data.http.outbound import OutboundExchange
from noded.data.http.server import Http1Server, Responder
from noded.data.http.server2 import Http2Server
from noded.data.http.socket_transport import SocketTransport
from noded.data.http.stream_transport import StreamTransport
from noded.data.http.transport import Transport
from noded.data.node import LocalWorkload
from noded.data.tracker import Flow

if TYPE_CHECKING:
    from noded.data.http.destinations import Destination
    from noded.data.http.exchange import Exchange
    from noded.data.http.proxy import HttpProxy
    from noded.data.tunnel import Tunnel


class Session:
    """The carrier of its flow; makes an exchange of each request."""

    def __init__(self, proxy: HttpProxy, local: LocalWorkload, flow: Flow, *, http2: bool) -> None:
        self.proxy, self.local, self.flow, self.http2 = proxy, local, flow, http2
        self.server: Http1Server | Http2Server
        if http2:
            node = proxy.node
            self.server = Http2Server(node.engine, node.budget, self.exchange, self._refused, self._ended)
        else:
            self.server = Http1Server(self.exchange, self._refused, self._ended)
            self.server.authority = format_address(flow.destination, flow.port).encode()
        self.transport: Transport
        self.line = ""
        """What is the same in the log for all of its requests (`log_line`)."""
        flow.carrier = self
        flow.requests = self
        flow.establish()
        proxy.sessions.add(self)

    def over(self, sock: socket.socket) -> None:
        """Serve the client at the other end of this socket."""
        self.server.transport = self.transport = SocketTransport(self.proxy.node.engine, self.server, sock)

    def within(self, stream: Stream, tunnel: Tunnel, first: bytes) -> None:
        """Serve the client at the other end of a tunnel's stream; these bytes of it were read, but not credited."""
        transport = StreamTransport(self.proxy.node.engine, self.server)
        self.server.transport = self.transport = transport
        transport.adopt(stream, tunnel, first)

    def exchange(self, responder: Responder, request: Request) -> Exchange:
        """See `server.Begin`."""
        raise NotImplementedError

    @property
    def source(self) -> Hashable:
        """Who sends the requests."""
        raise NotImplementedError

    @property
    def held(self) -> int:
        """Bytes of memory that its requests take while they wait."""
        return self.server.held

    def _refused(self, error: BadMessage) -> None:
        self.proxy.node.tracker.count("bad_requests")
        self.proxy.seen.refused(self, error)

    def ended(self) -> None:
        """The client's connection is over."""

    def recheck(self) -> None:
        """The policies of the local workload changed."""

    def _ended(self, flags: str, reason: str) -> None:
        self.proxy.sessions.discard(self)
        self.ended()
        self.flow.finish(flags, reason)

    @cached_property
    def who(self) -> dict[str, Any]:
        """Whose connection it is, see `Flow.who`, for what remembers its requests."""
        return self.flow.who()

    def tick(self) -> None:
        """Call every 5 s."""
        self.server.tick()

    def counts(self) -> tuple[int, int]:
        """As `Carrier` has it."""
        return self.transport.received, self.transport.sent

    def abort(self, reason: str, flags: str = "-") -> None:
        """As `Carrier` has it."""
        self.proxy.sessions.discard(self)
        self.server.stop(reason, flags)
        self.ended()
        self.flow.finish(flags, reason)


class OutboundSession(Session):
    """A local workload's connection to a service."""

    def __init__(
        self, proxy: HttpProxy, local: LocalWorkload, flow: Flow, service: str, port: int, *, http2: bool
    ) -> None:
        super().__init__(proxy, local, flow, http2=http2)
        self.service, self.port = service, port
        self.namespace = local.workload.namespace

    @property
    def source(self) -> Hashable:
        """See `Session`."""
        return self.local.uid

    def exchange(self, responder: Responder, request: Request) -> Exchange:
        """See `server.Begin`."""
        return OutboundExchange(self, responder, request)

    def http2_to(self, destination: Destination) -> bool:
        """Whether a backend is spoken to in HTTP/2: as its port declares; `http` and nothing, as the client speaks.

        The client knows the port that it chose. Where a route leads elsewhere, `http` is HTTP/1.1.
        """
        declared = destination.protocol
        if declared == "http" and (destination.service.key, destination.port) != (self.service, self.port):
            return False
        return self.http2 or declared in ("http2", "grpc")

    def seen(self, exchange: OutboundExchange) -> None:
        """Count and log a request."""
        self.proxy.seen.outbound(self, exchange)
