"""A copy of a request to somewhere else, whose answer nobody waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mesh.message import Headers, Request, Response
from noded.data.http.exchange import MAX_KEPT, Exchange

if TYPE_CHECKING:
    from mesh.balance import Host
    from noded.data.http.client import Call
    from noded.data.http.destinations import Destination
    from noded.data.http.session import OutboundSession

_SECONDS = 30.0


class _Nobody:
    """The responder of a mirror."""

    full = False

    def informational(self, response: Response) -> None:
        """As `Responder` has it."""

    def head(self, response: Response) -> None:
        """As `Responder` has it."""

    def data(self, data: bytes) -> None:
        """As `Responder` has it."""

    def end(self, trailers: Headers) -> None:
        """As `Responder` has it."""

    def abort(self) -> None:
        """As `Responder` has it."""

    def hold(self) -> None:
        """As `Responder` has it."""

    def release(self) -> None:
        """As `Responder` has it."""


_NOBODY = _Nobody()


class MirrorExchange(Exchange):
    """Never holds the request up: a body longer than is kept, or faster than the mirror reads, ends the copy."""

    __slots__ = ("_destination", "host")
    session: OutboundSession

    def __init__(self, session: OutboundSession, destination: Destination, request: Request) -> None:
        copy = Request(
            request.method,
            request.authority,
            request.path,
            list(request.headers),
            request.length,
            scheme=request.scheme,
        )
        super().__init__(session, _NOBODY, copy)
        self._destination = destination
        self.host: Host | None = None

    def begin(self) -> None:
        """Send it to an endpoint."""
        destination = self._destination
        host = self.host = destination.pick(self.started, None, ())
        if host is None:
            self._given_up()
            return
        self.timer = self.proxy.timers.after(_SECONDS, self._given_up)
        host.started()
        upstream = self.proxy.upstreams.to(self.session.local, destination.service, host.address, host.port, host.uid)
        call = upstream.call(self, self.session.http2_to(destination))
        if isinstance(call, str):
            self._given_up()
        else:
            self.send(call)

    def on_body(self, data: bytes) -> None:
        """See `Exchange`."""
        if self.call is not None and (self.call.full or self.kept_size + len(data) > MAX_KEPT):
            self._given_up()
        super().on_body(data)

    def on_failed(self, reason: str, flags: str, call: Call) -> None:
        """See `Exchange`."""
        if not self.done and call is self.call:
            self.call = None
            self._given_up()

    def _given_up(self) -> None:
        self.proxy.node.tracker.count("mirrors_failed")
        self.finish()

    def finish(self) -> None:
        """See `Exchange`."""
        if not self.done and self.host is not None:
            now = time.monotonic()
            self.host.finished(now - self.started, self.response is not None, now)
        super().finish()

    def seen(self) -> None:
        """See `Exchange`: a copy is not a request."""
