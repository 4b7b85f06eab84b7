"""What a service's `TrafficPolicy` does to requests: limits, faults, circuit breaking, outliers, affinity."""

from __future__ import annotations

import random
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from mesh.balance import Host, Hosts
from mesh.circuit import Circuit
from mesh.fault import FaultInjector
from mesh.outlier import OutlierDetector
from mesh.traffic import TrafficPolicy
from noded.data.http.connections import Connections
from noded.data.http.limiters import Limiter
from noded.data.timers import Timers

if TYPE_CHECKING:
    from noded.data.http.outbound import OutboundExchange


class Traffic:
    """Of one port of a service that has a policy, in this worker."""

    def __init__(
        self, policy: TrafficPolicy, hosts: Hosts, workers: int, limiters: tuple[Limiter, ...], timers: Timers
    ) -> None:
        self.policy = policy
        self._limiters = limiters
        self._fault = FaultInjector(policy.fault) if policy.fault else None
        self._circuit = Circuit(policy.circuit_breaker, workers) if policy.circuit_breaker else None
        bounds = self._circuit
        bounded = bounds is not None and (bounds.connections.most or bounds.requests_per_connection)
        self.connections = Connections(bounds, timers) if bounds is not None and bounded else None
        """Where they are bounded."""
        outliers = policy.outlier_detection
        self._outliers = OutlierDetector(hosts, outliers, time.monotonic()) if outliers else None
        balancing = policy.load_balancing
        self._hash_on = balancing.hash_on if balancing else None

    # -- before it is sent --------------------------------------------------------------------------------------------

    def admits(self, exchange: OutboundExchange) -> bool:
        """Whether the request may go on at once; else it is answered, or goes on later."""
        if self._limiters and not self._within_limits(exchange):
            return False
        return self._spares(exchange)

    def _within_limits(self, exchange: OutboundExchange, first: int = 0, taken: tuple[Limiter, ...] = ()) -> bool:
        """Of all limits from the `first` on, or it takes no token of any; False, too, if it has to wait."""
        request, now = exchange.request, time.monotonic()
        for index in range(first, len(self._limiters)):
            limiter = self._limiters[index]
            if not limiter.concerns(request):
                continue
            if wait := limiter.tokens.take(request, now):
                if not limiter.tokens.hold(partial(self._resume, exchange, index, taken, wait)):
                    self._refuse(exchange, limiter, taken, wait)
                return False
            taken += (limiter,)
        return True

    def _resume(
        self, exchange: OutboundExchange, index: int, taken: tuple[Limiter, ...], wait: float, ok: bool
    ) -> None:
        """A request that was held by a limit has got its token, or not."""
        limiter = self._limiters[index]
        if not ok:
            self._refuse(exchange, limiter, taken, wait)
        elif exchange.done:
            limiter.tokens.put(exchange.request, time.monotonic())
        elif self._within_limits(exchange, index + 1, (*taken, limiter)) and self._spares(exchange):
            exchange.go()

    def _refuse(self, exchange: OutboundExchange, limiter: Limiter, taken: tuple[Limiter, ...], wait: float) -> None:
        for other in taken:
            other.tokens.put(exchange.request, time.monotonic())
        exchange.proxy.node.tracker.count("rate_limited")
        exchange.reply(429, "RL", f"over rate limit {limiter.name}", limiter.headers(wait), "rate limited")

    def _spares(self, exchange: OutboundExchange) -> bool:
        """Whether no fault is injected."""
        if (fault := self._fault) is None:
            return True
        injection = fault.choose(exchange.request, random.random(), random.random())
        if injection is None:
            return True
        exchange.flags = "DI" if injection.delay else "FI"
        exchange.proxy.node.tracker.count("faults")

        def suffer() -> None:
            if injection.abort:
                status = injection.grpc_status
                exchange.reply(injection.abort, "FI", "a fault was injected", text="fault filter abort", grpc=status)
            else:
                exchange.go()

        if injection.delay:
            exchange.proxy.timers.after(injection.delay, suffer)
        else:
            suffer()
        return False

    # -- each try -----------------------------------------------------------------------------------------------------

    def hash_key(self, exchange: OutboundExchange) -> bytes | None:
        """What decides on the endpoint, where the balancing hashes."""
        on = self._hash_on
        if on is None:
            return exchange.session.flow.client.encode()
        request = exchange.request
        if on.header and (value := request.header(on.header.encode())) is not None:
            return value
        if on.cookie:
            name = on.cookie.encode()
            if (value := _cookie(request.header(b"cookie"), name)) is not None:
                return value
            value = secrets.token_hex(16).encode()
            age = b"; Max-Age=%d" % on.cookie_ttl if on.cookie_ttl else b""
            exchange.cookie = b"%b=%b; Path=/; HttpOnly%b" % (name, value, age)
            return value
        return exchange.session.flow.client.encode()

    def enter(self) -> bool:
        """Whether one more request may be under way; `leave` then follows."""
        return self._circuit is None or self._circuit.requests.enter()

    def give_way(self) -> None:
        """A request that had entered is not under way after all."""
        if self._circuit is not None:
            self._circuit.requests.leave()

    def leave(self, host: Host, ok: bool, now: float) -> None:
        """A try is over."""
        if self._circuit is not None:
            self._circuit.requests.leave()
            if self.connections is not None:
                self.connections.free()
        if self._outliers is not None:
            self._outliers.record(host, ok, now)

    def tick(self, now: float) -> None:
        """Call every few seconds."""
        if self._outliers is not None:
            self._outliers.tick(now)


def _cookie(header: bytes | None, name: bytes) -> bytes | None:
    for pair in (header or b"").split(b";"):
        key, equals, value = pair.strip().partition(b"=")
        if equals and key == name:
            return value.strip(b'"')
    return None
