"""Requests leaving a local workload: routed, sent to an endpoint, tried again where that is allowed."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from mesh import retry
from mesh.balance import Host
from mesh.message import Request, Response
from mesh.retry import Outcome
from mesh.route import Matched, choose_backend
from mesh.traffic import RetryPolicy
from noded.data.http.destinations import Destination
from noded.data.http.exchange import Exchange
from noded.data.http.server import Responder

if TYPE_CHECKING:
    from noded.data.http.client import Call
    from noded.data.http.session import OutboundSession
    from noded.data.timers import Timer

_STALE = RetryPolicy(attempts=1, codes=())
"""An idle connection that the backend closed just when it was used again: an idempotent request goes once more."""


class OutboundExchange(Exchange):
    """A request that a local workload makes of a service."""

    __slots__ = (
        "attempt",
        "destination",
        "host",
        "matched",
        "policy",
        "session",
        "tried",
        "tried_at",
        "try_timer",
    )

    def __init__(self, session: OutboundSession, responder: Responder, request: Request) -> None:
        super().__init__(session.proxy, responder, request)
        self.session = session
        self.matched: Matched | None = None
        self.destination: Destination | None = None
        self.host: Host | None = None
        self.tried: tuple[Host, ...] = ()
        self.tried_at = 0.0
        self.try_timer: Timer | None = None
        self.attempt = 0
        self.policy: RetryPolicy | None = None

    def begin(self) -> None:
        """Route it, and make the first try."""
        session, request = self.session, self.request
        destinations = self.proxy.destinations
        destination = destinations.at(session.service, session.port)
        if destination is None:
            self.reply(503, "NC", "the service is gone")
            return
        router = destination.router(self.proxy.node.snapshot, session.namespace)
        rule = None
        if router is not None:
            matched = self.matched = router.match(request)
            if matched is None:
                self.reply(404, "NR", "no route of the service matches the request")
                return
            rule = matched.rule
            if rule.backends:
                backend = choose_backend(rule, random.random())
                if backend is None or backend.invalid:
                    self.reply(500, "NC", backend.invalid if backend else "no backend has a weight")
                    return
                destination = destinations.at(backend.service, backend.port)
                if destination is None:
                    self.reply(500, "NC", f"service {backend.service} has no port {backend.port}")
                    return
        self.destination = destination
        policy = destination.policy
        self.policy = retry.policy_of(rule.retry if rule else None, policy.retries if policy else None)
        timeout = (rule.timeout if rule else 0.0) or (policy.timeout if policy else 0.0)
        if timeout:
            self.timer = self.proxy.timers.after(timeout, self.expired)
        destination.budget.request(self.started)
        self._try()

    # -- tries --------------------------------------------------------------------------------------------------------

    def _try(self) -> None:
        if self.done:
            return
        destination = self.destination
        assert destination is not None
        now = self.tried_at = time.monotonic()
        host = destination.pick(now, None, self.tried)
        if host is None:
            self.reply(503, "UH", "the service has no endpoint for this port")
            return
        self.host = host
        host.started()
        upstream = self.proxy.upstreams.to(self.session.local, destination.service, host.address, host.port, host.uid)
        call = upstream.call(self)
        if isinstance(call, str):
            self._failed(Outcome.NEVER_SENT, "UF", call)
            return
        per_try = self._per_try()
        if per_try:
            self.try_timer = self.proxy.timers.after(per_try, self._try_expired)
        self.send(call)

    def _per_try(self) -> float:
        rule = self.matched.rule if self.matched else None
        if rule is not None and rule.backend_timeout:
            return rule.backend_timeout
        return self.policy.per_try_timeout if self.policy else 0.0

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
        outcome = Outcome.NO_ANSWER if call.established else Outcome.NEVER_SENT
        if call.carried > 1 and outcome is Outcome.NO_ANSWER and self.policy is None:
            self.policy = _STALE
        self._failed(outcome, flags, reason)

    def _failed(self, outcome: Outcome, flags: str, reason: str) -> None:
        """A try ended without an answer."""
        self._over(False)
        if self._again(outcome):
            return
        self.reply(504 if outcome is Outcome.TIMEOUT else 502 if flags == "UPE" else 503, flags, reason)

    def _again(self, outcome: Outcome, status: int = 0) -> bool:
        """Whether there will be another try."""
        policy, destination = self.policy, self.destination
        if self.kept is None or policy is None or destination is None:
            return False
        if not retry.may_retry(self.request.method, outcome, policy, self.attempt, status):
            if self.attempt >= policy.attempts and policy is not _STALE:
                self.flags = "URX"
            return False
        if not destination.budget.take(time.monotonic()):
            self.proxy.node.tracker.count("retries_over_budget")
            return False
        self.proxy.node.tracker.count("retries")
        if self.host is not None:
            self.tried += (self.host,)
        wait = retry.backoff(policy, self.attempt, random.random()) if policy is not _STALE else 0.0
        self.attempt += 1
        self.proxy.timers.after(wait, self._try)
        return True

    def on_response(self, response: Response) -> None:
        """See `Exchange`."""
        if self.done:
            return
        if self.policy is not None and response.status in self.policy.codes:
            call = self.call
            if self._again(Outcome.ANSWERED, response.status):
                self._over(False)
                self.call = None
                if call is not None:
                    call.cancel()
                return
        if self.try_timer is not None:
            self.try_timer.cancel()
            self.try_timer = None
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

    def finish(self) -> None:
        """See `Exchange`."""
        if not self.done:
            self._over(self.response is not None and self.response.status < 500)
            super().finish()

    def seen(self) -> None:
        """See `Exchange`."""
        self.session.seen(self)
