"""Rate limits of one process: a bucket against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from mesh.ratelimit import TokenBucket
from mesh.traffic import RateLimit


def test_a_full_bucket_allows_its_burst_then_its_rate() -> None:
    bucket = TokenBucket.of(RateLimit("r", requests=10, seconds=1, burst=3), 100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True] * 3 + [False]
    assert bucket.wait() == 0.1
    assert not bucket.take(100.09)
    assert bucket.take(100.1)
    assert not bucket.take(100.1)


def test_the_burst_is_the_requests_where_it_is_not_stated() -> None:
    bucket = TokenBucket.of(RateLimit("r", requests=2, seconds=60), 0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert bucket.wait() == 30.0


def test_a_limit_of_none_never_lets_anything_pass() -> None:
    bucket = TokenBucket(0, 1.0, 0, 0.0)
    assert not bucket.take(1e9)
    assert bucket.wait() == float("inf")


def test_a_token_at_hand_needs_no_wait_and_a_clock_that_stands_back_brings_none() -> None:
    bucket = TokenBucket(1, 1.0, 1, 10.0)
    assert bucket.wait() == 0.0
    assert bucket.take(9.0)
    assert not bucket.take(9.5)
    assert not bucket.take(10.5)
    assert bucket.take(11.0)


@given(
    st.integers(0, 1_000),
    st.sampled_from([1, 7, 60, 3600]),
    st.integers(0, 20),
    st.lists(st.integers(0, 10**10), max_size=200),
)
def test_the_bucket_agrees_with_fractions(requests: int, seconds: int, burst: int, gaps: list[int]) -> None:
    bucket = TokenBucket(requests, float(seconds), burst, 0.0)
    cap = Fraction(burst or requests)
    level, at = cap, 0
    for gap in gaps:
        now = round((at + gap) / 1e9 * 1e9)
        level = min(cap, level + Fraction(now - at, 10**9) * requests / seconds)
        at = now
        assert bucket.take(now / 1e9) == (level >= 1)
        if level >= 1:
            level -= 1
