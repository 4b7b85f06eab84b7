"""A bucket for each value of a request header (`by_header`), in bounded memory."""

from __future__ import annotations

from mesh.ratelimit.bucket import TokenBucket
from mesh.traffic import RateLimit


class KeyedBuckets:
    """At most `most` buckets. A bucket that is full again is as good as none, and is forgotten for a new key.

    While there is none such, new keys share one more bucket: no key ever gets more than its limit, however many
    values a client makes up.
    """

    __slots__ = ("_buckets", "_limit", "_most", "_rest")

    def __init__(self, limit: RateLimit, now: float, most: int = 10_000) -> None:
        self._limit = limit
        self._most = most
        self._buckets: dict[bytes, TokenBucket] = {}
        """Those that were asked least recently first: the likeliest to be full."""
        self._rest = TokenBucket.of(limit, now)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: bytes, now: float) -> bool:
        """Take a token from the key's bucket if there is one."""
        return self.of(key, now).take(now)

    def of(self, key: bytes, now: float) -> TokenBucket:
        """The bucket that the key has to take from."""
        buckets = self._buckets
        if (bucket := buckets.pop(key, None)) is None:
            if len(buckets) >= self._most:
                oldest = next(iter(buckets), None)
                if oldest is None or not buckets[oldest].full(now):
                    return self._rest
                del buckets[oldest]
            bucket = TokenBucket.of(self._limit, now)
        buckets[key] = bucket
        return bucket
