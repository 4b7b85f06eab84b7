"""Whether, and when, a request that failed is sent once more.

Three questions, all of which must be answered yes: may this one be repeated at all (`may_retry`), do the retries of
late leave room for one more (`RetryBudget`, which keeps a failing service from being buried), and is there time left
(the caller's).
"""

from __future__ import annotations

import enum

from mesh.traffic import Retry, RetryBudget, RetryPolicy

_SLOTS = 100
_NANO = 1_000_000_000


class Outcome(enum.Enum):
    """How a try ended. What had begun to answer and then broke is none of these: the client has part of it."""

    NEVER_SENT = "never sent"
    """Not a byte of it can have been acted upon: no connection, or HTTP/2 refused the stream (REFUSED_STREAM, or a
    GOAWAY with a lower stream id)."""
    NO_ANSWER = "no answer"
    """Sent, at least in part, but the connection or stream ended before an answer."""
    TIMEOUT = "timeout"
    """Sent; nothing within the time for one try."""
    ANSWERED = "answered"
    """Sent, and the whole head of an answer came, of which nothing was passed on yet."""


def policy_of(rule: Retry | None, policy: RetryPolicy | None) -> RetryPolicy | None:
    """What holds for a request: its route rule's own word, with the service's policy for what a rule cannot say."""
    if rule is None:
        return policy
    rest = policy or RetryPolicy()
    return RetryPolicy(
        attempts=rule.attempts,
        codes=rule.codes,
        per_try_timeout=rest.per_try_timeout,
        backoff=rule.backoff,
        max_backoff=max(rest.max_backoff, rule.backoff),
        methods=rest.methods,
        least_backoff=rule.backoff,
    )


def may_retry(method: bytes, outcome: Outcome, policy: RetryPolicy | None, attempt: int, status: int = 0) -> bool:
    """Whether a request may be sent again after its try number `attempt` (the first is 0) ended so.

    `status` is the answer's, if it was ANSWERED. What was never sent may go again whatever its method; what was sent,
    only with one of the policy's (idempotent) methods.
    """
    if policy is None or attempt >= policy.attempts:
        return False
    if outcome is Outcome.NEVER_SENT:
        return True
    if outcome is Outcome.ANSWERED and status not in policy.codes:
        return False
    return method.decode("latin-1") in policy.methods


def backoff(policy: RetryPolicy, attempt: int, roll: float) -> float:
    """Seconds to wait after try number `attempt`: full jitter, as Envoy's: [0, min(max, base * 2^attempt)).

    Where there is a least, that and anything up to half of this more.
    """
    most = min(policy.max_backoff, policy.backoff * 2.0 ** min(attempt, 64))
    return policy.least_backoff + roll * most / 2 if policy.least_backoff else roll * most


class Budget:
    """The state of a `RetryBudget`: counts over the last `ttl`, exact but for the window's moving on in hundredths.

    A retry is granted if with it, the retries in the window are at most `ratio` of the requests in it, or at most
    `min_per_second` times `ttl`. Retries do not count as requests. Where `workers` processes each have a budget for the
    same traffic, the minimum is divided among them (rounded up); the ratio divides itself.
    """

    __slots__ = ("_at", "_floor", "_ratio", "_requests", "_retries", "_slot", "requests", "retries")

    def __init__(self, budget: RetryBudget, workers: int = 1) -> None:
        ttl = max(round(budget.ttl * _NANO), _SLOTS)
        self._ratio = budget.ratio
        self._floor = -(-budget.min_per_second * ttl // (_NANO * workers))
        self._slot = ttl // _SLOTS
        self._requests = [0] * _SLOTS
        self._retries = [0] * _SLOTS
        self._at = 0
        self.requests = self.retries = 0
        """In the window, as of the last call."""

    def request(self, now: float) -> None:
        """Count a request's first try."""
        if (at := int(now * _NANO) // self._slot) > self._at:
            self._move_to(at)
        self._requests[self._at % _SLOTS] += 1
        self.requests += 1

    def take(self, now: float) -> bool:
        """Whether there may be a retry now; then it is counted."""
        if (at := int(now * _NANO) // self._slot) > self._at:
            self._move_to(at)
        retries = self.retries + 1
        if retries > self._floor and retries * 10_000 > self.requests * self._ratio:
            return False
        self._retries[self._at % _SLOTS] += 1
        self.retries = retries
        return True

    def _move_to(self, at: int) -> None:
        for slot in range(max(self._at, at - _SLOTS) + 1, at + 1):
            self.requests -= self._requests[slot % _SLOTS]
            self.retries -= self._retries[slot % _SLOTS]
            self._requests[slot % _SLOTS] = self._retries[slot % _SLOTS] = 0
        self._at = at
