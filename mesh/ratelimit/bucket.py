"""Token buckets, in whole numbers: nothing is lost or won by rounding, however often one is asked."""

from __future__ import annotations

from mesh.traffic import RateLimit

_NANO = 1_000_000_000


class TokenBucket:
    """`requests` tokens per `seconds`, at most `burst` (0: `requests`) saved up; full at first, unless `empty`.

    Counted in units of which one token is as many as the period has nanoseconds, so that each nanosecond brings
    `requests` of them.
    """

    __slots__ = ("_at", "_capacity", "_level", "_rate", "_token")

    def __init__(self, requests: int, seconds: float, burst: int, now: float, *, empty: bool = False) -> None:
        self._rate = requests
        self._token = max(round(seconds * _NANO), 1)
        self._capacity = (burst or requests) * self._token
        self._level = 0 if empty else self._capacity
        self._at = round(now * _NANO)

    @staticmethod
    def of(limit: RateLimit, now: float) -> TokenBucket:
        """One for a limit."""
        return TokenBucket(limit.requests, limit.seconds, limit.burst, now)

    def take(self, now: float, tokens: int = 1) -> bool:
        """Take tokens, if there are that many."""
        at = round(now * _NANO)
        if at > self._at:
            level = self._level + (at - self._at) * self._rate
            self._level = level if level < self._capacity else self._capacity
            self._at = at
        cost = self._token * tokens
        if self._level < cost:
            return False
        self._level -= cost
        return True

    def available(self, now: float) -> int:
        """How many whole tokens there are."""
        self.take(now, 0)
        return self._level // self._token

    def full(self, now: float) -> bool:
        """Whether it is as it was when it was new."""
        self.take(now, 0)
        return self._level == self._capacity

    def put(self, tokens: int) -> None:
        """Put back what was taken and not used."""
        self._level = min(self._level + self._token * tokens, self._capacity)

    def wait(self) -> float:
        """Seconds from the last `take` until there is a token: what Retry-After says. Infinite if there never is."""
        if self._level >= self._token:
            return 0.0
        return -(-(self._token - self._level) // self._rate) / _NANO if self._rate else float("inf")
