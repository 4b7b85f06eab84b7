"""The rate limits of services as this worker keeps them.

They outlive a service's `Traffic`: a bucket is refilled by time alone, not by an edit of something else in its policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Protocol

from mesh.message import Headers, Request
from mesh.route import compile_match
from mesh.snapshot import Snapshot
from mesh.traffic import RateLimit, TrafficPolicy
from noded.buckets import Buckets
from noded.data.http.shared import SharedLimits, SharedTokens


class Tokens(Protocol):
    """Where a limit's tokens are."""

    def take(self, request: Request, now: float) -> float:
        """Take one for this request. Returns 0.0, or if there is none the seconds until there may be one."""
        ...

    def put(self, request: Request, now: float) -> None:
        """Put back the one that it took: another limit refuses it."""
        ...

    def hold(self, resume: Callable[[bool], None]) -> bool:
        """Whether the request that found none is to wait: then `resume(taken)` is called, very soon."""
        ...

    def close(self) -> None:
        """The limit is no more."""
        ...


class Limiter:
    """One limit of one service."""

    __slots__ = ("_tests", "limit", "name", "tokens")

    def __init__(self, name: str, limit: RateLimit, tokens: Tokens) -> None:
        self.name, self.limit, self.tokens = name, limit, tokens
        self._tests = tuple(map(compile_match, limit.matches))

    def concerns(self, request: Request) -> bool:
        """Whether the request counts."""
        return not self._tests or any(test(request) for test in self._tests)

    def headers(self, wait: float) -> Headers:
        """What a client is told that is refused: as draft-polli-ratelimit-headers-03 has it, like Envoy."""
        seconds = b"%d" % max(math.ceil(wait), 1)
        most = b"%d" % (self.limit.burst or self.limit.requests)
        return [
            (b"x-ratelimit-limit", most),
            (b"x-ratelimit-remaining", b"0"),
            (b"x-ratelimit-reset", seconds),
            (b"retry-after", seconds),
        ]


class NodeTokens:
    """Those of a limit that holds for this node."""

    __slots__ = ("_bucket", "_buckets", "_burst", "_header", "_interval", "_key", "_region")

    def __init__(self, name: str, limit: RateLimit, buckets: Buckets) -> None:
        self._buckets = buckets
        self._interval = limit.seconds / limit.requests
        self._burst = limit.burst or limit.requests
        self._header = limit.by_header.encode()
        self._key = f"{name} {limit.requests} {limit.seconds} {self._burst} ".encode()
        self._region = name.encode()
        self._bucket = buckets.bucket(self._key)

    def _of(self, request: Request) -> tuple[int, int]:
        """Requests without the header have a bucket together."""
        if not self._header:
            return self._bucket
        return self._buckets.bucket(self._key + (request.header(self._header) or b""), region=self._region)

    def take(self, request: Request, now: float) -> float:
        """See `Tokens`."""
        return self._buckets.take(self._of(request), self._interval, self._burst, now)

    def put(self, request: Request, now: float) -> None:
        """See `Tokens`."""
        self._buckets.put(self._of(request), self._interval, now)

    def hold(self, _resume: Callable[[bool], None]) -> bool:
        """See `Tokens`."""
        return False

    def close(self) -> None:
        """See `Tokens`."""


class Limiters:
    """All of this worker, by name (`<ns>/<service>/<limit>`)."""

    def __init__(self, buckets: Buckets, shared: SharedLimits) -> None:
        self._buckets, self._shared = buckets, shared
        self._all: dict[str, Limiter] = {}

    def of(self, policy: TrafficPolicy) -> tuple[Limiter, ...]:
        """Those that a policy sets, as they are where they have not changed."""
        return tuple(self._one(f"{policy.service}/{limit.name}", limit) for limit in policy.rate_limits)

    def _one(self, name: str, limit: RateLimit) -> Limiter:
        found = self._all.get(name)
        if found is None or found.limit != limit:
            if found is not None:
                found.tokens.close()
            shared = SharedTokens(self._shared, name, limit) if limit.shared else None
            found = self._all[name] = Limiter(name, limit, shared or NodeTokens(name, limit, self._buckets))
        return found

    def forget(self, snapshot: Snapshot, services: Collection[str]) -> None:
        """Drop those that no policy of these services sets any more."""
        wanted = {
            f"{service}/{limit.name}"
            for service in services
            if (policy := snapshot.traffic_policy(service)) is not None
            for limit in policy.rate_limits
        }
        for name in self._all.keys() - wanted:
            self._all.pop(name).tokens.close()
