"""One request and its response: the client's side and the backend's, joined.

What `outbound` and `inbound` decide is in their subclasses; here is what both need: bytes both ways with back-pressure,
answers of the proxy's own, time limits, and the end, which happens once.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from mesh.message import Headers, Request, Response
from noded.data.http.server import Responder

if TYPE_CHECKING:
    from mesh.authz import Denial, Permit
    from noded.data.http.client import Call
    from noded.data.http.session import Session
    from noded.data.http.tracing import SpanContext
    from noded.data.timers import Timer

MAX_KEPT = 65_536
"""Most of a request's body that is kept for a retry or a mirror, bytes."""

_GRPC = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 500: 2, 502: 14, 503: 14, 504: 4}
"""What a status of the proxy's own is to a gRPC client (https://grpc.io/docs/guides/status-codes/)."""
_UNSAFE = re.compile(rb"[^ -$&-~]")
"""What a grpc-message must not hold as it is (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)."""


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


class Exchange:
    """From a request's head to its end. Told of the client by its responder, of the backend by its call."""

    __slots__ = (
        "answered_at",
        "asked",
        "call",
        "done",
        "flags",
        "grpc_status",
        "kept",
        "kept_size",
        "proxy",
        "reason",
        "received",
        "request",
        "request_ended",
        "responder",
        "response",
        "sent",
        "session",
        "span",
        "started",
        "timer",
        "trailers",
        "verdict",
    )

    def __init__(self, session: Session, responder: Responder, request: Request) -> None:
        self.session, self.proxy = session, session.proxy
        self.responder, self.request = responder, request
        self.call: Call | None = None
        self.response: Response | None = None
        self.kept: list[bytes] | None = []
        """The request's body so far, as long as it is kept; None once it is too long, or of no more use."""
        self.kept_size = self.received = self.sent = 0
        self.request_ended = self.done = False
        self.trailers: Headers = []
        self.flags, self.reason = "-", ""
        self.asked = b""
        """The path that the client asked for, if the request has another now."""
        self.verdict: Permit | Denial | None = None
        """What the policies of its destination said."""
        self.span: SpanContext | None = None
        """If it is sampled."""
        self.grpc_status: bytes | None = None
        """As the trailers said; None if they did not."""
        self.started = time.monotonic()
        self.answered_at = 0.0
        """When the backend did; 0 as long as it has not, also where we did."""
        self.timer: Timer | None = None

    def begin(self) -> None:
        """Decide what becomes of the request."""
        raise NotImplementedError

    def recheck(self) -> None:
        """Policies changed."""

    @property
    def held(self) -> int:
        """Bytes of memory that it takes while it waits, but for what waits for the client."""
        size = len(self.request.path) + sum([len(name) + len(value) for name, value in self.request.headers])
        if self.kept is not None:
            size += self.kept_size
        return size + self.call.held if self.call is not None else size

    # -- the client ---------------------------------------------------------------------------------------------------

    def on_body(self, data: bytes) -> None:
        """More of the request."""
        if self.done:
            return
        self.received += len(data)
        if self.kept is not None:
            self.kept_size += len(data)
            if self.kept_size <= MAX_KEPT or self.call is None:
                self.kept.append(data)
                if self.call is None and self.kept_size > MAX_KEPT:
                    self.responder.hold()
            else:
                self.kept = None
        if (call := self.call) is not None:
            call.data(data)
            if call.full:
                self.responder.hold()

    def on_end(self, trailers: Headers) -> None:
        """That was the request."""
        self.request_ended = True
        self.trailers = trailers
        if self.call is not None and not self.done:
            self.call.end(trailers)

    def on_gone(self, reason: str, flags: str) -> None:
        """The client is gone, or makes no sense any more."""
        if not self.done:
            self.flags, self.reason = flags, reason
            self.responder.abort()
            self.finish()

    def on_room(self) -> None:
        """The client takes more."""
        if self.call is not None:
            self.call.release()

    # -- the backend --------------------------------------------------------------------------------------------------

    def send(self, call: Call) -> None:
        """Send the request, and what is here of its body, to a backend."""
        self.call = call
        call.head(self.request)
        for data in self.kept or ():
            call.data(data)
        if self.kept_size > MAX_KEPT:
            self.kept = None
        if self.request_ended:
            call.end(self.trailers)
        elif self.kept_size and not call.full:  # held for want of a call, or for the sake of the one before
            self.responder.release()

    def on_call_room(self) -> None:
        """The backend takes more."""
        self.responder.release()

    def on_informational(self, response: Response) -> None:
        """A 1xx."""
        if not self.done:
            self.responder.informational(response)

    def on_response(self, response: Response) -> None:
        """The backend answers."""
        if not self.done:
            self.answered_at = time.monotonic()
            self.answer(response)

    def answer(self, response: Response) -> None:
        """Pass on a response's head."""
        self.kept = None
        self.response = response
        self.responder.head(response)

    def on_response_data(self, data: bytes) -> None:
        """Some of the body."""
        if self.done:
            return
        self.sent += len(data)
        responder = self.responder
        responder.data(data)
        if responder.full and self.call is not None:
            self.call.hold()

    def on_response_end(self, trailers: Headers) -> None:
        """All of it."""
        if self.done:
            return
        self.call = None
        if trailers and self.response is not None:
            self.ended_with(trailers)
        self.responder.end(trailers)
        self.finish()

    def ended_with(self, trailers: Headers) -> None:
        """Look at a response's trailers (gRPC's status is there)."""
        for name, value in trailers:
            if name == b"grpc-status":
                self.grpc_status = value

    def on_failed(self, reason: str, flags: str, call: Call) -> None:
        """The backend's side broke."""
        if self.done or call is not self.call:
            return
        self.call = None
        self.reply(503 if flags != "UPE" else 502, flags, reason)

    # -- its end ------------------------------------------------------------------------------------------------------

    def reply(
        self, status: int, flags: str, reason: str, headers: Headers | None = None, text: str = "", grpc: int = -1
    ) -> None:
        """Answer with a status of our own (`grpc`: not what it stands for), or break off an answer under way."""
        if self.done:
            return
        self.flags, self.reason = flags, reason
        if self.response is not None:
            self.responder.abort()
            self.finish()
            return
        request = self.request
        if (request.header(b"content-type") or b"").startswith(b"application/grpc"):
            code = grpc if grpc >= 0 else _GRPC.get(status, 2)
            response = Response(200, [
                (b"content-type", b"application/grpc"),
                (b"grpc-status", b"%d" % code),
                (b"grpc-message", _UNSAFE.sub(_escaped, (text or reason).encode("utf-8", "replace"))),
                *(headers or ()),
            ])  # fmt: skip
            body = b""
        else:
            body = (text or reason).encode("utf-8", "replace") + b"\n"
            response = Response(status, [
                (b"content-length", b"%d" % len(body)),
                (b"content-type", b"text/plain"),
                *(headers or ()),
            ])  # fmt: skip
            if request.method == b"HEAD":
                body = b""
        response.length = len(body)
        self.answer(response)
        if body:
            self.sent += len(body)
            self.responder.data(body)
        self.responder.end([])
        self.finish()

    def reply_with(self, response: Response, reason: str) -> None:
        """Answer with a head of our own, without a body."""
        self.reason = reason
        self.answer(response)
        self.responder.end([])
        self.finish()

    def expired(self) -> None:
        """The time for the whole exchange is up."""
        self.reply(504, "UT", "the request took too long")

    def finish(self) -> None:
        """It is over: let go of the backend, count and log."""
        if self.done:
            return
        self.done = True
        if self.timer is not None:
            self.timer.cancel()
        if (call := self.call) is not None:
            self.call = None
            call.cancel()
        self.kept = None
        self.seen()

    def seen(self) -> None:
        """Count and log it."""
        raise NotImplementedError
