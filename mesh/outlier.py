"""Outlier detection after Envoy's (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier):
hosts that fail more than others are ejected for a while, each time for longer, and never too many at a time.

What counts as an error is the caller's: a 5xx answer, a reset, a failed connect, no answer in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from mesh.balance import Host, Hosts
from mesh.traffic import OutlierDetection

CONSECUTIVE = "consecutive errors"
SUCCESS_RATE = "success rate"


@dataclass(frozen=True, slots=True)
class Ejection:
    """For the log and the counters. Not `enforced`: so many are ejected already that this one may not be."""

    host: Host
    why: str
    until: float
    enforced: bool = True


class OutlierDetector:
    """Watches over `hosts`, which it ejects and readmits. Keeps its counts on each `Host`.

    A host is readmitted by the first `tick` after its time, so up to an `interval` late, as with Envoy.
    """

    def __init__(self, hosts: Hosts, settings: OutlierDetection, now: float) -> None:
        self._hosts = hosts
        self._settings = settings
        self._longest = max(settings.max_ejection, settings.base_ejection)
        self._limit = settings.consecutive_errors
        self.deadline = now + settings.interval
        """When `tick` has something to do."""

    def record(self, host: Host, ok: bool, now: float) -> Ejection | None:
        """A request to the host went well, or not. Returns the ejection that this brought about."""
        host.answered += 1
        if ok:
            host.succeeded += 1
            host.errors = 0
            return None
        host.errors += 1
        if not 0 < self._limit <= host.errors:
            return None
        host.errors = 0
        return self._eject(host, CONSECUTIVE, now)

    def tick(self, now: float) -> list[Ejection]:
        """At or after `deadline`: readmit those whose time is over, eject those with a bad success rate."""
        if now < self.deadline:
            return []
        self.deadline = now + self._settings.interval
        rates: list[tuple[float, Host]] = []
        enough = max(self._settings.success_rate_requests, 1)
        for host in self._hosts.all:
            if not host.ejected_until:
                host.ejections = max(host.ejections - 1, 0)  # an interval in good standing
                if host.answered >= enough:
                    rates.append((host.succeeded / host.answered, host))
            elif host.ejected_until <= now:
                host.errors = 0
                self._hosts.readmit(host)
            host.answered = host.succeeded = 0
        if self._settings.success_rate_deviations <= 0 or len(rates) < max(self._settings.success_rate_hosts, 1):
            return []
        mean = sum(rate for rate, _ in rates) / len(rates)
        deviation = sqrt(sum((rate - mean) ** 2 for rate, _ in rates) / len(rates))
        least = mean - deviation * self._settings.success_rate_deviations
        ejections = [self._eject(host, SUCCESS_RATE, now) for rate, host in rates if rate < least]
        return [ejection for ejection in ejections if ejection]

    def _eject(self, host: Host, why: str, now: float) -> Ejection | None:
        if host.ejected_until:  # already out, or gone: answers to what it was sent before
            return None
        ejected = self._hosts.ejected
        if ejected and (ejected + 1) * 10_000 > self._settings.max_percent * len(self._hosts):
            return Ejection(host, why, now, enforced=False)
        if host.ejections * self._settings.base_ejection < self._longest:
            host.ejections += 1
        until = now + min(host.ejections * self._settings.base_ejection, self._longest)
        self._hosts.eject(host, until)
        return Ejection(host, why, until)
