"""Token buckets, in whole numbers: nothing is lost or won by rounding, however often one is asked."""

from __future__ import annotations

from mesh.traffic import RateLimit

_NANO = 1_000_000_000


class TokenBucket:
    """`requests` tokens per `seconds`, at most `burst` (0: `requests`) saved up; full at first.

    Counted in units of which one token is as many as the period has nanoseconds, so that each nanosecond brings
    `requests` of them.
    """

    __slots__ = ("_at", "_capacity", "_level", "_rate", "_token")

    def __init__(self, requests: int, seconds: float, burst: int, now: float) -> None:
        self._rate = requests
        self._token = max(round(seconds * _NANO), 1)
        self._capacity = self._level = (burst or requests) * self._token
        self._at = round(now * _NANO)

    @staticmethod
    def of(limit: RateLimit, now: float) -> TokenBucket:
        """One for a limit."""
        return TokenBucket(limit.requests, limit.seconds, limit.burst, now)

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        at = round(now * _NANO)
        if at > self._at:
            level = self._level + (at - self._at) * self._rate
            self._level = level if level < self._capacity else self._capacity
            self._at = at
        if self._level < self._token:
            return False
        self._level -= self._token
        return True

    def wait(self) -> float:
        """Seconds from the last `take` until there is a token: what Retry-After says. Infinite if there never is."""
        if self._level >= self._token:
            return 0.0
        return -(-(self._token - self._level) // self._rate) / _NANO if self._rate else float("inf")
