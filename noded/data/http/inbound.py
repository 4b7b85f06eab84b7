"""Requests arriving at a local workload: each is checked against the policies, then handed to the workload.

A client's connection has one of its own to the workload, in the client's name, so that what the workload sees of
addresses and of the order of requests is as without a proxy. It is dialled with the first request that is permitted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from mesh.authz import Denial, Peer, Permit
from mesh.h2.connection import MAX_STREAMS
from mesh.message import Headers, Request, Response
from mesh.paths import normalise
from mesh.retry import Outcome, may_retry
from mesh.traffic import RetryPolicy
from noded.data.http.client import Call, Http1Client
from noded.data.http.client2 import Http2Client
from noded.data.http.exchange import Exchange
from noded.data.http.ext_authz import Asking
from noded.data.http.server import Responder
from noded.data.http.session import Session
from noded.data.http.socket_transport import SocketTransport
from noded.data.http.tokens import Claims, Refusal
from noded.data.node import LocalWorkload
from noded.data.tracker import Flow

if TYPE_CHECKING:
    from noded.data.http.proxy import HttpProxy


_ONCE = RetryPolicy(attempts=1, codes=())


class InboundSession(Session):
    """A connection to a local workload. The keeper of that which is dialled for it."""

    def __init__(self, proxy: HttpProxy, local: LocalWorkload, flow: Flow, *, http2: bool) -> None:
        super().__init__(proxy, local, flow, http2=http2)
        self.peer = Peer(flow.peer_identity, flow.client, flow.target, flow.target_port)
        self._backend: Http1Client | None = None
        self._backends: list[Http2Client] = []
        """Where HTTP/2 is spoken: more than one if the workload takes fewer streams than we."""
        self.streams = MAX_STREAMS

    @property
    def source(self) -> Hashable:
        """See `Session`."""
        return self.peer.identity or self.peer.source_ip

    def exchange(self, responder: Responder, request: Request) -> Exchange:
        """See `server.Begin`."""
        return InboundExchange(self, responder, request)

    def call(self, permit: Permit, exchange: Exchange) -> Call | str:
        """A request to the workload, over a connection that is dialled if need be; or why there is none."""
        if self.http2:
            return self._stream(permit, exchange)
        connection = self._backend
        if connection is None or connection.closed:
            connection = self._backend = Http1Client(self)
            connection.start(exchange)
            self._dial(permit, connection)
            return connection.reason if connection.closed else connection
        connection.start(exchange)
        return connection

    def _stream(self, permit: Permit, exchange: Exchange) -> Call | str:
        for connection in self._backends:
            if connection.room:
                return connection.call(exchange)
        node = self.proxy.node
        connection = Http2Client(node.engine, node.budget, self)
        self._backends.append(connection)
        self._dial(permit, connection)
        return connection.reason if connection.closed else connection.call(exchange)

    def _dial(self, permit: Permit, connection: Http1Client | Http2Client) -> None:
        connection.transport = transport = SocketTransport(self.proxy.node.engine, connection)
        flow = self.flow
        self.proxy.dialler.to_workload(
            permit, self.local, flow.target, flow.target_port, flow.client, transport.connected
        )

    def idle(self, connection: Http1Client) -> None:
        """See `client.Keeper`."""

    def gone(self, connection: Http1Client) -> None:
        """See `client.Keeper`."""
        if self._backend is connection:
            self._backend = None

    def gone2(self, connection: Http2Client) -> None:
        """See `client2.Keeper`."""
        self._backends.remove(connection)

    def tick(self) -> None:
        """See `Session`."""
        super().tick()
        for connection in list(self._backends):
            connection.tick()

    def ended(self) -> None:
        """See `Session`."""
        if self._backend is not None:
            self._backend.close()
        for connection in list(self._backends):
            connection.close()

    def seen(self, exchange: InboundExchange) -> None:
        """Count and log a request."""
        self.proxy.seen.inbound(self, exchange)

    def recheck(self) -> None:
        """The policies changed: break off what they do not permit any more."""
        self.server.recheck()


class InboundExchange(Exchange):
    """A request that somebody makes of a local workload."""

    __slots__ = ("again", "asking", "claims")
    session: InboundSession

    def __init__(self, session: InboundSession, responder: Responder, request: Request) -> None:
        super().__init__(session, responder, request)
        self.claims: Claims | None = None
        """Of its token, if it has one."""
        self.again = False
        """It was sent once more."""
        self.asking: Asking | None = None
        """What others are asked about it."""

    def begin(self) -> None:
        """Check it, and send it on."""
        session = self.session
        try:
            self.request.path = normalise(self.request.path, self.proxy.normalization)
        except ValueError as error:
            self.reply(400, "DPE", str(error))
            return
        if (tracing := self.proxy.seen.tracing) is not None:
            tracing.begin(self)
        if (rules := session.local.token_rules) is None:
            self._authorize()
        else:
            self.proxy.tokens.authenticate(rules, self.request, session.source, self._authenticated)

    def _authenticated(self, claims: Claims | Refusal | None) -> None:
        if self.done:
            return
        if isinstance(claims, Refusal):
            self.session.flow.refused()
            headers = [(b"www-authenticate", claims.challenge)] if claims.challenge else None
            reason = f"{claims.reason}: {claims.detail}" if claims.detail else claims.reason
            self.reply(claims.status, "-", reason, headers, text=claims.reason)
            return
        self.claims = claims
        self._authorize()

    def _authorize(self) -> None:
        session = self.session
        authorizer = session.local.authorizer
        if authorizer.asks_others and (asks := authorizer.asks(session.peer, self.request, self.claims)):
            asking = self.asking = Asking(self, asks, self._check)
            asking.next()
        else:
            self._check()

    def _check(self) -> None:
        session = self.session
        verdict = session.local.authorizer.check_request(session.peer, self.request, self.claims)
        self.verdict = verdict
        session.flow.decided(verdict)
        if isinstance(verdict, Denial):
            self.reply(403, "RBAC", verdict.text, text="RBAC: access denied")
            return
        call = session.call(verdict, self)
        if isinstance(call, str):
            self.reply(503, "UF", call)
        else:
            self.send(call)

    def on_end(self, trailers: Headers) -> None:
        """See `Exchange`."""
        if trailers and (rules := self.session.local.token_rules) is not None:
            rules.clean(trailers)
        super().on_end(trailers)

    def on_failed(self, reason: str, flags: str, call: Call) -> None:
        """See `Exchange`. If the workload closed its connection just when it was used again, there is a new one."""
        if call is self.call and call.carried > 1 and not self.again and self._may_go_again(call):
            self.again = True
            self.call = None
            self._check()
        else:
            super().on_failed(reason, flags, call)

    def _may_go_again(self, call: Call) -> bool:
        outcome = Outcome.NO_ANSWER if call.established else Outcome.NEVER_SENT
        return self.kept is not None and may_retry(self.request.method, outcome, _ONCE, 0)

    def recheck(self) -> None:
        """See `InboundSession`."""
        if self.call is None:  # it waits for its token to be checked, or for others' word, and is yet to come here
            return
        session = self.session
        verdict = session.local.authorizer.check_request(session.peer, self.request, self.claims)
        if isinstance(verdict, Denial):
            self.reply(403, "RBAC", verdict.text, text="RBAC: access denied")

    def deny(self, status: int, reason: str, headers: Headers, body: bytes) -> None:
        """Answer as somebody else says who was asked."""
        self.session.flow.refused()
        if (self.request.header(b"content-type") or b"").startswith(b"application/grpc"):
            self.reply(status, "UAEX", reason, text="denied")
            return
        self.flags, self.reason = "UAEX", reason
        body = b"" if self.request.method == b"HEAD" else body
        self.answer(Response(status, [(b"content-length", b"%d" % len(body)), *headers], len(body)))
        if body:
            self.sent += len(body)
            self.responder.data(body)
        self.responder.end([])
        self.finish()

    def on_response(self, response: Response) -> None:
        """See `Exchange`."""
        if self.asking is not None:
            response.headers += self.asking.add_to_answer
        super().on_response(response)

    def finish(self) -> None:
        """See `Exchange`."""
        if self.asking is not None:
            self.asking.cancel()
        super().finish()

    def seen(self) -> None:
        """See `Exchange`."""
        self.session.seen(self)
