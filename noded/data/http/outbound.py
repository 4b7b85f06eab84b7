"""Requests leaving a local workload: routed, sent to an endpoint, tried again where that is allowed."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from mesh import retry
from mesh.balance import Host
from mesh.message import Headers, Request, Response
from mesh.paths import normalise
from mesh.retry import Outcome
from mesh.route import (
    Limits,
    Matched,
    choose_backend,
    cors_headers,
    edit_headers,
    mirrors,
    preflight_response,
    redirect_response,
    rewrite_request,
    set_cors,
)
from mesh.traffic import Backend, RetryPolicy, RouteRule
from noded.data.http.connections import FULL
from noded.data.http.destinations import Destination
from noded.data.http.exchange import Exchange
from noded.data.http.mirror import MirrorExchange
from noded.data.http.server import Responder

if TYPE_CHECKING:
    from noded.data.http.client import Call
    from noded.data.http.session import OutboundSession
    from noded.data.http.traffic import Traffic
    from noded.data.timers import Timer

_NONE = Limits()
_STALE = Limits(retries=RetryPolicy(attempts=1, codes=()))
"""An idle connection that the backend closed just when it was used again: an idempotent request goes once more, any
request if the backend said that it has not looked at it (HTTP/2)."""


class OutboundExchange(Exchange):
    """A request that a local workload makes of a service."""

    __slots__ = (
        "attempt",
        "backend",
        "cookie",
        "copies",
        "cors",
        "destination",
        "entered",
        "host",
        "limits",
        "matched",
        "tried",
        "tried_at",
        "try_timer",
    )
    session: OutboundSession

    def __init__(self, session: OutboundSession, responder: Responder, request: Request) -> None:
        super().__init__(session, responder, request)
        self.matched: Matched | None = None
        self.destination: Destination | None = None
        self.host: Host | None = None
        self.tried: tuple[Host, ...] = ()
        self.tried_at = 0.0
        self.try_timer: Timer | None = None
        self.entered: Traffic | None = None
        """What counts the try under way; that of the destination may be another by its end."""
        self.attempt = 0
        self.limits = _NONE
        self.backend: Backend | None = None
        self.cors: Headers | None = None
        """What the answer is to say of CORS."""
        self.cookie = b""
        """To be set, so that the client comes to the same endpoint again."""
        self.copies: tuple[MirrorExchange, ...] = ()

    def begin(self) -> None:
        """Route it, and make the first try."""
        session, request, proxy = self.session, self.request, self.proxy
        destination = self.destination = proxy.destinations.at(session.service, session.port)
        if destination is None:
            self.reply(503, "NC", "the service is gone")
            return
        try:
            request.path = normalise(request.path, proxy.normalization)
        except ValueError as error:
            self.reply(400, "DPE", str(error))
            return
        if (tracing := proxy.seen.tracing) is not None:
            tracing.begin(self)
        router = destination.router(proxy.node.snapshot, session.namespace)
        if router is None:
            limits = destination.limits
        else:
            matched = self.matched = router.match(request)
            if matched is None:
                self.reply(404, "NR", "no route of the service matches the request")
                return
            limits = matched.limits
            if not self._routed(matched):
                return
            destination = self.destination
            assert destination is not None
        self.limits = limits
        if limits.timeout:
            self.timer = proxy.timers.after(limits.timeout, self.expired)
        if (traffic := destination.traffic) is not None and not traffic.admits(self):
            return
        self.go()

    def go(self) -> None:
        """Make the first try."""
        if not self.done:
            assert self.destination is not None
            self.destination.budget.request(self.started)
            self.try_once()

    def _routed(self, matched: Matched) -> bool:
        """Do what the rule says; False if the request is answered by that."""
        rule, request = matched.rule, self.request
        if rule.cors is not None:
            preflight = preflight_response(request, rule.cors)
            if preflight is not None:
                self.reply_with(preflight, "preflight")
                return False
            self.cors = cors_headers(request, rule.cors)
        if rule.redirect is not None:
            self.reply_with(
                redirect_response(request, rule.redirect, b"http", self.session.port, matched.match), "redirect"
            )
            return False
        if rule.request_headers is not None:
            edit_headers(request.headers, rule.request_headers)
        if rule.rewrite is not None:
            self.asked = request.path
            rewrite_request(request, rule.rewrite, matched.match)
        if rule.mirrors:
            self._mirror(rule)
        if rule.backends:
            backend = self.backend = choose_backend(rule, random.random())
            if backend is None:
                self.reply(500, "NC", "no backend has a weight")
                return False
            if backend.invalid:
                self.reply(500, "NC", f"backend {backend.service}:{backend.port}: {backend.invalid}")
                return False
            self.destination = self.proxy.destinations.at(backend.service, backend.port)
            if self.destination is None:
                self.reply(500, "NC", f"service {backend.service} has no port {backend.port}")
                return False
            if backend.request_headers is not None:
                edit_headers(request.headers, backend.request_headers)
        return True

    def _mirror(self, rule: RouteRule) -> None:
        for mirror in mirrors(rule, random.random()):
            backend = mirror.backend
            destination = None if backend.invalid else self.proxy.destinations.at(backend.service, backend.port)
            if destination is None:
                self.proxy.node.tracker.count("mirrors_failed")
                continue
            copy = MirrorExchange(self.session, destination, self.request)
            if backend.request_headers is not None:
                edit_headers(copy.request.headers, backend.request_headers)
            self.copies += (copy,)
            copy.begin()

    @property
    def held(self) -> int:
        """See `Exchange`."""
        return super().held + sum([copy.held for copy in self.copies])

    def on_body(self, data: bytes) -> None:
        """See `Exchange`."""
        for copy in self.copies:
            copy.on_body(data)
        super().on_body(data)

    def on_end(self, trailers: Headers) -> None:
        """See `Exchange`."""
        for copy in self.copies:
            copy.on_end(trailers)
        super().on_end(trailers)

    def answer(self, response: Response) -> None:
        """See `Exchange`."""
        if self.backend is not None and self.backend.response_headers is not None:
            edit_headers(response.headers, self.backend.response_headers)
        if self.matched is not None and self.matched.rule.response_headers is not None:
            edit_headers(response.headers, self.matched.rule.response_headers)
        if self.cors is not None:
            set_cors(response, self.cors)
        if self.cookie:
            response.headers.append((b"set-cookie", self.cookie))
        super().answer(response)

    # -- tries --------------------------------------------------------------------------------------------------------

    def try_once(self) -> None:
        """Send it to an endpoint, once more if it was sent before."""
        if self.done:
            return
        destination = self.destination
        assert destination is not None
        now = self.tried_at = time.monotonic()
        traffic = destination.traffic
        host = destination.pick(now, traffic.hash_key(self) if traffic is not None else None, self.tried)
        if host is None:
            self.tried_at = 0.0
            self.reply(503, "UH", destination.no_endpoint)
            return
        self.host = host
        if traffic is not None and not traffic.enter():
            self.tried_at = 0.0
            self.reply(503, "UO", "the circuit breaker is open: too many requests are under way")
            return
        self.entered = traffic
        host.started()
        upstream = self.proxy.upstreams.to(self.session.local, destination.service, host.address, host.port, host.uid)
        upstream.bounds = traffic.connections if traffic is not None else None
        call = upstream.call(self, self.session.http2_to(destination))
        if isinstance(call, str):
            if call is FULL:
                self._wait(host)
                return
            self._failed(Outcome.NEVER_SENT, "UF", call)
            return
        if self.limits.try_timeout:
            self.try_timer = self.proxy.timers.after(self.limits.try_timeout, self._try_expired)
        self.send(call)

    def _wait(self, host: Host) -> None:
        """For a connection, with no try under way meanwhile, if the circuit breaker lets it."""
        host.finished(0.0, False, self.tried_at)
        self.tried_at = 0.0
        traffic, self.entered = self.entered, None
        assert traffic is not None
        assert traffic.connections is not None
        traffic.give_way()
        if not traffic.connections.wait(self):
            self.reply(503, "UO", "the circuit breaker is open: too many requests wait for a connection")

    def _try_expired(self) -> None:
        if self.done or self.response is not None:
            return
        if (call := self.call) is not None:
            self.call = None
            call.cancel()
        self._failed(Outcome.TIMEOUT, "UT", "the backend took too long")

    def on_failed(self, reason: str, flags: str, call: Call) -> None:
        """See `Exchange`."""
        if self.done or call is not self.call:
            return
        self.call = None
        if self.response is not None:
            self._over(False)
            self.reply(503, flags, reason)
            return
        if flags == "RBAC":  # an answer: another try would be denied, too, and the endpoint is not to blame
            self._over(True)
            self.reply(403, flags, reason, text="RBAC: access denied")
            return
        outcome = Outcome.NO_ANSWER if call.established else Outcome.NEVER_SENT
        if call.carried > 1 and self.limits.retries is None:
            self.limits = _STALE
        self._failed(outcome, flags, reason)

    def _failed(self, outcome: Outcome, flags: str, reason: str) -> None:
        """A try ended without an answer."""
        self._over(False)
        if self._again(outcome):
            return
        status = 504 if outcome is Outcome.TIMEOUT else 502 if flags == "UPE" else 503
        self.reply(status, f"{flags},URX" if self._exhausted else flags, reason)

    @property
    def _exhausted(self) -> bool:
        """Whether it was tried as often as it may be."""
        retries = self.limits.retries
        return retries is not None and self.limits is not _STALE and self.attempt >= retries.attempts

    def _again(self, outcome: Outcome, status: int = 0) -> bool:
        """Whether there will be another try."""
        policy, destination = self.limits.retries, self.destination
        if self.kept is None or policy is None or destination is None:
            return False
        if not retry.may_retry(self.request.method, outcome, policy, self.attempt, status):
            return False
        if not destination.budget.take(time.monotonic()):
            self.proxy.node.tracker.count("retries_over_budget")
            return False
        self.proxy.node.tracker.count("retries")
        if self.host is not None:
            self.tried += (self.host,)
        wait = retry.backoff(policy, self.attempt, random.random()) if self.limits is not _STALE else 0.0
        self.attempt += 1
        self.proxy.timers.after(wait, self.try_once)
        return True

    def on_response(self, response: Response) -> None:
        """See `Exchange`."""
        if self.done:
            return
        retries = self.limits.retries
        if retries is not None and response.status in retries.codes:
            call = self.call
            if self._again(Outcome.ANSWERED, response.status):
                self._over(False)
                self.call = None
                if call is not None:
                    call.cancel()
                return
            if self._exhausted:
                self.flags = "URX"
        if self.try_timer is not None:
            self.try_timer.cancel()
            self.try_timer = None
        self.answered_at = time.monotonic()
        self.answer(response)

    def _over(self, ok: bool) -> None:
        """A try is over."""
        if self.try_timer is not None:
            self.try_timer.cancel()
            self.try_timer = None
        if (host := self.host) is not None and self.tried_at:
            now = time.monotonic()
            host.finished(now - self.tried_at, ok, now)
            self.tried_at = 0.0
            if self.entered is not None:
                self.entered.leave(host, ok, now)

    def finish(self) -> None:
        """See `Exchange`."""
        if not self.done:
            self._over(self.response is not None and self.response.status < 500)
            super().finish()

    def seen(self) -> None:
        """See `Exchange`."""
        self.session.seen(self)
