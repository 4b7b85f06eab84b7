"""A consumer's side of a shared limit: tokens in hand, granted by an `Allocator`, and what to ask for next.

Tokens move, they are never copied: what all consumers together let pass is what left the one bucket, however late or
lost their messages. When nothing has been heard for `SILENCE` seconds, a consumer makes tokens of its own: the limit
divided by the number of consumers that it last knew of.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from mesh.ratelimit.bucket import TokenBucket
from mesh.traffic import RateLimit

PERIOD = 0.1
"""Seconds between a busy consumer's reports."""

SILENCE = 2.0
_LINGER = 0.02
"""Seconds for which a consumer that has few requests keeps a token that none of them took."""
_SMOOTHING = 1.0
_FEW = 5
_MANY = 10_000


@dataclass(frozen=True, slots=True)
class Report:
    """What a consumer says to its allocator."""

    rate: float
    """Tokens a second that it takes. What it would take besides is wanted now, and shall not be laid in for later."""
    wanted: int
    """Tokens, now. Takes the place of what it wanted before."""
    returned: int = 0
    """Tokens it had and does not need."""
    consumers: int = 0
    """How many it last knew of, 0 if it was never told: an allocator that was restarted learns by it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What an allocator says to a consumer."""

    tokens: int
    consumers: int
    """Among how many the limit is to be divided by who hears no more."""
    plenty: bool = True
    """Nobody is kept waiting."""


class Share:
    """One consumer's. Send `report` at `due`, which `take` and `granted` may bring forward; answers go to `granted`."""

    __slots__ = (
        "_alone",
        "_asked",
        "_limit",
        "_missed",
        "_outstanding",
        "_plenty",
        "_rate",
        "_reserve",
        "_silent_at",
        "_since",
        "_target",
        "_told",
        "_used",
        "_waiting",
        "consumers",
        "due",
        "stock",
    )

    def __init__(self, limit: RateLimit, now: float, consumers: int = 1) -> None:
        """`consumers`: how many there are thought to be, until the first grant says so."""
        self._limit = limit
        self._reserve = int(min(limit.burst or limit.requests, limit.requests / limit.seconds) / 10)
        """What all consumers together hold against the unforeseen, where there is plenty."""
        self.consumers = consumers
        self.stock = 0
        """Tokens in hand."""
        self._plenty = True
        self.due = now
        self._silent_at = now + SILENCE
        self._alone: TokenBucket | None = None
        self._asked = False
        self._rate = 0.0
        self._used = 0
        self._missed = self._waiting = 0
        """Requests that found no token, in this period and in the one before: those held are among them."""
        self._since = now
        self._target = self._outstanding = 0
        self._told = False

    def take(self, now: float, *, again: bool = False) -> bool:
        """Take a token if there is one; `again` for a request that was held and counted before."""
        if self.stock > 0:
            self.stock -= 1
        elif not (now >= self._silent_at and self._own(now).take(now)):
            if not again:
                self._missed += 1
                if self._missed < self.most_waiting:
                    self.hurry(now)
            return False
        self._used += 1
        if self.stock * 2 < self._target:
            self.hurry(now)
        return True

    def report(self, now: float) -> Report:
        """What to say now. The next is `due` after a period, or much later where there is nothing to say."""
        elapsed = max(now - self._since, PERIOD)
        surely = (self._used - 2.0 * sqrt(self._used)) / elapsed  # a request now and then is no demand to prepare for
        if now - self._since >= PERIOD:
            self._rate += (self._used / elapsed - self._rate) * elapsed / (elapsed + _SMOOTHING)
            self._since, self._used = now, 0
            self._waiting, self._missed = self._missed, 0
        self._rate = max(surely, self._rate)
        reserve = self._reserve // self.consumers if self._plenty else 0
        return self._report(self._rate, int(self._rate * 2 * PERIOD) + reserve, now)

    def report_for(self, rate: float, pending: int, now: float) -> Report:
        """As `report`, of a consumer that has consumers of its own: their demand, and what they are waiting for."""
        self._rate, self._missed, self._waiting = rate, pending, 0
        return self._report(rate, int(rate * PERIOD), now)

    def granted(self, grant: Grant, now: float) -> None:
        """The allocator's word."""
        self.stock += grant.tokens
        served = min(self._waiting, grant.tokens)
        self._waiting -= served
        self._missed -= min(self._missed, grant.tokens - served)
        self._told = True
        self.consumers = max(grant.consumers, 1)
        self._plenty = grant.plenty
        self._silent_at = now + SILENCE
        self._alone = None
        self._asked = False
        self._outstanding -= min(self._outstanding, grant.tokens)
        coming = self.stock + self._outstanding  # what is outstanding, nobody needs to be told again
        if coming < self._missed + self._waiting or coming * 2 < self._target:
            self.hurry(now)
        self._linger(now)

    def available(self, now: float) -> int:
        """Tokens in hand, with those of its own making where nothing was heard for long."""
        if now >= self._silent_at:
            own = self._own(now)
            if (more := own.available(now) - self.stock) > 0:
                own.take(now, more)
                self.stock += more
        return self.stock

    def put(self) -> None:
        """Put back a token that was taken just now and not used."""
        self.stock += 1

    def farewell(self) -> Report:
        """The last word of a consumer that has nothing to do with the limit for now: it gives back what it has."""
        returned, self.stock = max(self.stock, 0), 0
        return Report(0.0, 0, returned, self.consumers if self._told else 0)

    def expect(self, pending: int, now: float) -> None:
        """So many tokens are wanted by consumers of its own."""
        if self.stock + self._outstanding < pending:
            self.hurry(now)
        elif self._outstanding > pending:
            self._correct(now)
        elif not pending:
            self._linger(now)

    def give_up(self, now: float) -> None:
        """A request that was held waits no more: the token that was asked for it would be missing elsewhere."""
        if self._waiting:
            self._waiting -= 1
        elif self._missed:
            self._missed -= 1
        self._correct(now)

    def _correct(self, now: float) -> None:
        """Say soon that less is wanted."""
        if not self._target and not self._asked:
            self.due = min(self.due, now)

    def _linger(self, now: float) -> None:
        """Without a use for the tokens in hand, give them back soon: they may be all that there are."""
        if self.stock > 0 and not self._target and self._alone is None:
            self.due = min(self.due, now + _LINGER)

    def hurry(self, now: float) -> None:
        """More is wanted than there is: the next report is due at once, if that can change anything."""
        if self.worth_waiting and not self._asked and now < self.due:
            self.due = now

    @property
    def worth_waiting(self) -> bool:
        """Hold a request that found no token for one exchange with the allocator: it may well get one. Else refuse it.

        So it is while there is plenty, and for a consumer with few requests, which has no tokens in hand (they would be
        missing elsewhere) but asks for each.
        """
        return self._alone is None and (self._plenty or not self._target)

    @property
    def most_waiting(self) -> int:
        """How many such requests to hold at a time: few where tokens are scarce, since most would wait in vain."""
        return _MANY if self._plenty else _FEW

    @property
    def alone(self) -> bool:
        """Whether it goes by its own part of the limit."""
        return self._alone is not None

    def _report(self, rate: float, target: int, now: float) -> Report:
        self._target = target
        returned = max(self.stock - target - (target + 3) // 4, 0) if self._alone is None else 0
        self.stock -= returned
        wanted = max(target + self._missed + self._waiting - self.stock, 0)
        self._outstanding = wanted
        busy = wanted or rate * SILENCE >= 1
        self.due = now + (PERIOD if busy else SILENCE / 4)
        self._asked = True
        return Report(rate, wanted, returned, self.consumers if self._told else 0)

    def _own(self, now: float) -> TokenBucket:
        if self._alone is None:
            limit = self._limit
            burst = max((limit.burst or limit.requests) // self.consumers, 1)
            self._alone = TokenBucket(
                limit.requests, limit.seconds * self.consumers, burst, self._silent_at, empty=True
            )
            self._plenty = False
        return self._alone
