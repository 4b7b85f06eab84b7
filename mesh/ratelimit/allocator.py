"""Who gets how many of a limit's tokens: the same for a controller with its nodes and a node with its workers.

While there are enough, each gets what it asks for, at once. When there are not, what there is is divided once a round,
max-min fairly: nobody gets more than it wants, and nobody less than another but for wanting less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from mesh.ratelimit.bucket import TokenBucket
from mesh.ratelimit.share import PERIOD, SILENCE, Grant, Report, Share
from mesh.traffic import RateLimit

_MOST_RATE = 1e12
FORGET = 10.0
"""Seconds for which a part of the limit is kept for a consumer that is not heard of: it may be using it."""
_RETURN = 45.0
"""The same after a restart for those that have not come back yet: they wait for up to 30 s between attempts."""


class Source(Protocol):
    """Where an allocator's tokens come from."""

    def available(self, now: float) -> int:
        """Whole tokens there are."""
        ...

    def take(self, tokens: int, now: float) -> None:
        """Take some of those available."""
        ...

    def put(self, tokens: int) -> None:
        """Put back unused ones."""
        ...

    @property
    def consumers(self) -> int:
        """Among how many such sources the limit would be divided."""
        ...

    @property
    def rate(self) -> float:
        """Tokens a second."""
        ...

    @property
    def period(self) -> float:
        """Seconds between rounds: what comes in that time must find room."""
        ...


def _period(limit: RateLimit) -> float:
    """Rounds come before a bucket is full, or a part of it that refills as much more slowly as it is smaller."""
    fills = (limit.burst or limit.requests) * limit.seconds / limit.requests if limit.requests else PERIOD
    return min(PERIOD, max(fills / 4, 0.01))


class Bucket:
    """The source at the top. `empty` for one that takes over from another, whose tokens may still be about."""

    def __init__(self, limit: RateLimit, now: float, *, empty: bool = False) -> None:
        self._bucket = TokenBucket(limit.requests, limit.seconds, limit.burst, now, empty=empty)
        self.consumers = 1
        self.rate = limit.requests / limit.seconds
        self.period = _period(limit)

    def available(self, now: float) -> int:
        """Whole tokens there are."""
        return self._bucket.available(now)

    def take(self, tokens: int, now: float) -> None:
        """Take some of those available."""
        self._bucket.take(now, tokens)

    def put(self, tokens: int) -> None:
        """Put back unused ones; over the burst they are lost."""
        self._bucket.put(tokens)


class Upstream:
    """The source in the middle: what a `Share` was granted from further up."""

    def __init__(self, share: Share, limit: RateLimit) -> None:
        self._share = share
        self._limit = limit
        self.period = _period(limit)

    @property
    def consumers(self) -> int:
        """Among how many such sources the limit would be divided."""
        return self._share.consumers

    @property
    def rate(self) -> float:
        """Its part when all are alone."""
        return self._limit.requests / self._limit.seconds / self._share.consumers

    def available(self, now: float) -> int:
        """Whole tokens there are."""
        return self._share.available(now)

    def take(self, tokens: int, now: float) -> None:
        """Take some of those available."""
        self._share.stock -= tokens

    def put(self, tokens: int) -> None:
        """Put back unused ones: the share's next report returns what is too many."""
        self._share.stock += tokens


@dataclass(slots=True)
class _Consumer:
    heard: float
    rate: float = 0.0
    wanted: int = 0
    granted: int = 0
    """Ever, less what it returned: it cannot return more than that."""
    favoured: int = 0
    """When it last got the odd token, counted in odd tokens."""


class Allocator:
    """Answers each report, and at `deadline` deals out what has come since among those who are kept waiting.

    The owner says `leave` of a consumer that it knows is gone.
    """

    def __init__(self, source: Source, now: float, *, restarted: bool = True) -> None:
        """`restarted`: there may be consumers that another allocator before this one knew."""
        self._source = source
        self._consumers: dict[str, _Consumer] = {}
        self.pending = 0
        """Tokens that are wanted and not there."""
        self._silent = 0
        self._odd = 0
        self._kept = 0.0
        self._at = now
        self._heard_of = 0
        self._heard_until = now + _RETURN if restarted else now
        self.deadline = now + self._source.period

    @property
    def rate(self) -> float:
        """All consumers' demand together, tokens a second."""
        return sum(consumer.rate for consumer in self._consumers.values())

    @property
    def idle(self) -> bool:
        """Whether nobody is known to use the limit."""
        return not self._consumers

    @property
    def consumers(self) -> int:
        """How many consumers there are, those included that may be there though they are not heard."""
        return max(len(self._consumers), self._heard_of, 1)

    def report(self, name: str, report: Report, now: float) -> Grant:
        """A consumer's report, and the answer to it."""
        if (consumer := self._consumers.get(name)) is None:
            consumer = self._consumers[name] = _Consumer(now)
        wanted = max(report.wanted, 0)
        self.pending += wanted - consumer.wanted
        consumer.heard, consumer.wanted = now, wanted
        consumer.rate = min(report.rate, _MOST_RATE) if report.rate > 0 else 0.0  # a hostile one's may be no number
        if now < self._heard_until:  # after a restart, others may be there who have not reported yet
            self._heard_of = max(self._heard_of, report.consumers // self._source.consumers)
        if (returned := min(report.returned, consumer.granted)) > 0:
            consumer.granted -= returned
            self._source.put(returned)
        tokens = 0
        if 0 < wanted == self.pending <= self._spare(now):  # nobody else is waiting
            tokens, consumer.wanted, self.pending = wanted, 0, 0
            consumer.granted += tokens
            self._source.take(tokens, now)
        return Grant(tokens, self._source.consumers * self.consumers, self.pending == 0)

    def leave(self, name: str) -> None:
        """A consumer is gone for good."""
        if (consumer := self._consumers.pop(name, None)) is not None:
            self.pending -= consumer.wanted

    def round(self, now: float) -> dict[str, Grant]:
        """Deal out what there is among those waiting: grants to be sent."""
        self.deadline = now + self._source.period
        if now >= self._heard_until:
            self._heard_of = 0
        live = 0
        for name, consumer in list(self._consumers.items()):
            if now < consumer.heard + SILENCE:
                live += 1
                continue
            self.pending -= consumer.wanted
            consumer.wanted, consumer.rate = 0, 0.0
            if now >= consumer.heard + FORGET:
                del self._consumers[name]
        spare = self._spare(now)
        self._silent = self.consumers - live if live else 0
        self._kept = self._kept if self._silent else 0.0
        wanting = {name: consumer.wanted for name, consumer in self._consumers.items() if consumer.wanted}
        if not wanting or not spare:
            return {}
        dealt = max_min(spare, wanting, sorted(wanting, key=lambda name: self._consumers[name].favoured))
        level = min((tokens for name, tokens in dealt.items() if tokens < wanting[name]), default=spare)
        for name, tokens in dealt.items():
            consumer = self._consumers[name]
            if tokens > level:
                self._odd += 1
                consumer.favoured = self._odd
            consumer.wanted -= tokens
            consumer.granted += tokens
            self.pending -= tokens
        self._source.take(sum(dealt.values()), now)
        plenty, consumers = self.pending == 0, self._source.consumers * self.consumers
        return {name: Grant(tokens, consumers, plenty) for name, tokens in dealt.items() if tokens}

    def _spare(self, now: float) -> int:
        """Tokens to give away, once what silent consumers may be making themselves has been taken out."""
        elapsed, self._at = max(now - self._at, 0.0), max(now, self._at)
        available = self._source.available(now)
        if self._silent:
            self._kept += self._source.rate * elapsed * self._silent / self.consumers
            gone = min(int(self._kept), available)
            self._source.take(gone, now)
            self._kept -= gone
            return available - gone
        return available


class Branch:
    """A node between the controller and its workers: an allocator whose source is a share."""

    def __init__(self, limit: RateLimit, now: float, consumers: int = 1) -> None:
        self._share = Share(limit, now, consumers)
        self._allocator = Allocator(Upstream(self._share, limit), now, restarted=False)  # workers end with their node

    @property
    def due(self) -> float:
        """When a report is to be sent up."""
        return self._share.due

    @property
    def deadline(self) -> float:
        """When a `round` is to be held."""
        return self._allocator.deadline

    def report_up(self, now: float) -> Report:
        """What to say to the controller."""
        return self._share.report_for(self._allocator.rate, self._allocator.pending, now)

    def granted(self, grant: Grant, now: float) -> dict[str, Grant]:
        """The controller's answer, or a grant of its round: what to pass on to the workers."""
        self._share.granted(grant, now)
        dealt = self._allocator.round(now)
        self._share.expect(self._allocator.pending, now)
        return dealt

    def report(self, name: str, report: Report, now: float) -> Grant:
        """A worker's report, and the answer to it."""
        grant = self._allocator.report(name, report, now)
        self._share.expect(self._allocator.pending, now)
        return replace(grant, plenty=grant.plenty or self._share.worth_waiting)

    def round(self, now: float) -> dict[str, Grant]:
        """Deal out what there is among the workers that wait."""
        return self._allocator.round(now)

    def leave(self, name: str) -> None:
        """A worker has ended, or has nothing to do with the limit for now."""
        self._allocator.leave(name)

    @property
    def idle(self) -> bool:
        """Whether no worker uses the limit: then it can go, after its `farewell`."""
        return self._allocator.idle

    def farewell(self) -> Report:
        """See `Share.farewell`."""
        return self._share.farewell()


def max_min(available: int, wanted: Mapping[str, int], order: Iterable[str]) -> dict[str, int]:
    """Divide whole tokens max-min fairly; those that don't divide go to the first in `order` who want more."""
    dealt: dict[str, int] = {}
    left = available
    ascending = sorted(wanted, key=wanted.__getitem__)
    for position, name in enumerate(ascending):
        level = left // (len(ascending) - position)
        if wanted[name] > level:
            dealt |= dict.fromkeys(ascending[position:], level)
            left -= level * (len(ascending) - position)
            break
        dealt[name] = wanted[name]
        left -= wanted[name]
    for name in order:
        if not left:
            break
        if dealt[name] < wanted[name]:
            dealt[name] += 1
            left -= 1
    return dealt
