"""Retries: what may be repeated, how long to wait, and the budget against a model that remembers every request."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.retry import Budget, Outcome, backoff, may_retry, policy_of
from mesh.traffic import Retry, RetryBudget, RetryPolicy

POLICY = RetryPolicy(attempts=2, codes=(502, 503))
SENT = [Outcome.NO_ANSWER, Outcome.TIMEOUT, Outcome.ANSWERED]


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH", b"\xff"])
def test_what_was_never_sent_may_go_again_whatever_its_method(method: bytes) -> None:
    assert may_retry(method, Outcome.NEVER_SENT, POLICY, 0)


@pytest.mark.parametrize("outcome", SENT)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"])
def test_an_idempotent_request_may_be_repeated_once_sent(method: bytes, outcome: Outcome) -> None:
    assert may_retry(method, outcome, POLICY, 0, 503)


@pytest.mark.parametrize("outcome", SENT)
@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"CONNECT", b"get", b"\xff"])
def test_any_other_is_not_repeated_once_sent(method: bytes, outcome: Outcome) -> None:
    assert not may_retry(method, outcome, POLICY, 0, 503)


def test_an_answer_is_retried_for_its_status_only() -> None:
    assert may_retry(b"GET", Outcome.ANSWERED, POLICY, 0, 502)
    assert not may_retry(b"GET", Outcome.ANSWERED, POLICY, 0, 500)
    assert not may_retry(b"GET", Outcome.ANSWERED, POLICY, 0, 200)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_there_are_no_more_tries_than_the_policy_says(outcome: Outcome) -> None:
    assert [may_retry(b"GET", outcome, POLICY, attempt, 503) for attempt in range(4)] == [True, True, False, False]
    assert not may_retry(b"GET", outcome, None, 0, 503)


def test_a_route_rule_overrides_the_service_and_leaves_it_the_rest() -> None:
    service = RetryPolicy(attempts=5, per_try_timeout=1.5, max_backoff=2.0, methods=("GET", "POST"))
    assert policy_of(None, None) is None
    assert policy_of(None, service) is service
    assert policy_of(Retry(1, (500,), 0.1), service) == RetryPolicy(1, (500,), 1.5, 0.1, 2.0, ("GET", "POST"), 0.1)
    alone = policy_of(Retry(1, (), 3.0), None)
    assert alone == RetryPolicy(attempts=1, codes=(), backoff=3.0, max_backoff=3.0, least_backoff=3.0)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_anywhere_below_a_doubling_and_capped_bound(attempt: int, roll: float) -> None:
    policy = RetryPolicy(backoff=0.025, max_backoff=0.25)
    wait = backoff(policy, attempt, roll)
    assert wait == roll * min(0.25, 0.025 * 2 ** min(attempt, 20))
    assert 0 <= wait < 0.25


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_of_a_route_rule_is_a_minimum(attempt: int, roll: float) -> None:
    policy = policy_of(Retry(3, (), 0.1), None)
    assert policy is not None
    wait = backoff(policy, attempt, roll)
    assert 0.1 <= wait < 0.1 + 0.25 / 2
    assert attempt or wait <= 0.15, "about as long as it says before the first"


def test_a_fifth_of_the_requests_may_be_retries() -> None:
    budget = Budget(RetryBudget(ratio=2_000, min_per_second=0, ttl=10))
    for _ in range(99):
        budget.request(1.0)
    assert [budget.take(1.0) for _ in range(20)] == [True] * 19 + [False]
    budget.request(1.0)
    assert [budget.take(1.0) for _ in range(2)] == [True, False]


def test_the_minimum_is_granted_without_any_request_and_divided_among_workers() -> None:
    budget = Budget(RetryBudget(ratio=2_000, min_per_second=3, ttl=2))
    assert [budget.take(5.0) for _ in range(7)] == [True] * 6 + [False]
    assert not budget.take(6.5)
    assert budget.take(7.1)
    each = Budget(RetryBudget(ratio=0, min_per_second=3, ttl=2), workers=4)
    assert [each.take(5.0) for _ in range(3)] == [True, True, False]


def test_a_budget_of_nothing_grants_nothing() -> None:
    budget = Budget(RetryBudget(ratio=0, min_per_second=0, ttl=0))
    budget.request(0.0)
    assert not budget.take(0.0)


@given(
    st.builds(
        RetryBudget,
        ratio=st.integers(0, 20_000),
        min_per_second=st.integers(0, 3),
        ttl=st.sampled_from([0.5, 1.0, 2.5, 10.0]),
    ),
    st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0, 1, 7, 100, 1_000, 5_000])), max_size=150),
)
def test_the_budget_grants_exactly_what_a_model_with_a_perfect_memory_would(
    limits: RetryBudget, events: list[tuple[bool, int]]
) -> None:
    """The model keeps the time of each event, in fractions, and counts anew for each question."""
    budget = Budget(limits)
    slot = Fraction(limits.ttl) / 100
    least = limits.min_per_second * Fraction(limits.ttl)
    requests: list[int] = []
    retries: list[int] = []
    milliseconds = 3
    for is_request, after in events:
        milliseconds += after
        at = Fraction(milliseconds, 1000) // slot
        if is_request:
            budget.request(milliseconds / 1000)
            requests.append(at)
            continue
        seen = sum(at - 100 < then <= at for then in requests)
        spent = sum(at - 100 < then <= at for then in retries) + 1
        allowed = spent <= Fraction(limits.ratio, 10_000) * seen or spent <= -(-least // 1)
        assert budget.take(milliseconds / 1000) == allowed
        if allowed:
            retries.append(at)
        assert (budget.requests, budget.retries) == (seen, spent - (not allowed))
