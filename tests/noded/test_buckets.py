"""The buckets of rate limits that workers share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ratelimit import TokenBucket
from noded import buckets
from noded.buckets import Buckets


@pytest.fixture
def table() -> Iterator[Buckets]:
    made = Buckets(buckets.create())
    yield made
    made.close()


@given(
    requests=st.integers(1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3, allow_subnormal=False), max_size=100),
)
def test_a_bucket_lets_pass_what_one_that_counts_tokens_does(requests: int, burst: int, pauses: list[float]) -> None:
    table = Buckets(buckets.create())
    try:
        now, interval, key = 1000.0, 1 / requests, table.bucket(b"k")
        model = TokenBucket(requests, 1.0, burst, now)
        for pause in pauses:
            now += pause
            for _ in range(3):
                level = model._level / model._token
                passed = not table.take(key, interval, burst, now)
                expected = model.take(now)
                if passed != expected:  # only where a token is all but there, which rounding decides
                    assert abs(level + pause * requests - 1) < 0.01 or abs(model._level / model._token - 1) < 0.01
                    return
    finally:
        table.close()


def test_what_was_put_back_can_be_taken_again(table: Buckets) -> None:
    key = table.bucket(b"k")
    assert table.take(key, 1.0, 1, 5.0) == 0.0
    assert 0.9 < table.take(key, 1.0, 1, 5.0) <= 1.0
    table.put(key, 1.0, 5.0)
    assert table.take(key, 1.0, 1, 5.0) == 0.0


def test_keys_have_buckets_of_their_own_and_limits_by_header_are_kept_apart(table: Buckets) -> None:
    plain, keyed = table.bucket(b"k"), table.bucket(b"k", region=b"limit")
    assert len({plain, keyed, table.bucket(b"l"), table.bucket(b"k", region=b"other limit")}) == 4
    assert table.take(plain, 1.0, 1, 5.0) == table.take(keyed, 1.0, 1, 5.0) == 0.0


def test_no_key_gets_more_than_its_limit_however_many_are_made_up(table: Buckets) -> None:
    asked = [table.bucket(b"%d" % number, region=b"r") for number in range(30_000)]
    passed = [sum(not table.take(key, 1.0, 1, 5.0) for _ in range(2)) for key in asked]
    assert max(passed) == 1
    assert sum(passed) > 5_000
    plain = table.bucket(b"plain")
    assert table.take(plain, 1.0, 1, 5.0) == 0.0, "others' keys took the room of a limit that is by no header"


def test_processes_share_them(table: Buckets) -> None:
    """Each takes as many as it can: together they have what one would have had."""
    key, start, pids = table.bucket(b"k"), time.monotonic(), []
    reader, writer = os.pipe()
    for _ in range(3):
        pid = os.fork()
        if not pid:
            own = Buckets(os.dup(table._fd))
            taken = sum(not own.take(own.bucket(b"k"), 1e6, 500, start) for _ in range(1_000))
            os.write(writer, b"%d\n" % taken)
            os._exit(0)
        pids.append(pid)
    os.close(writer)
    try:
        with os.fdopen(reader) as lines:
            counts = [int(line) for line in lines]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert sum(counts) == 500
    assert table.take(key, 1e6, 500, start) > 0
