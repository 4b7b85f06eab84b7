from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from mesh.request_counts import BOUNDS, BUCKETS, RequestCounts, bucket, quantile


def histogram(values: list[float]) -> tuple[int, ...]:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket(value)] += 1
    return tuple(counts)


@given(st.lists(st.floats(0, 3_600_000), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_value_that_it_stands_for(values: list[float], share: float) -> None:
    values.sort()
    rank = share * len(values)
    true = values[max(-int(-rank // 1), 1) - 1]
    found = quantile(histogram(values), share)
    assert found is not None
    index = bisect_left(BOUNDS, true)
    assert (BOUNDS[index - 1] if index else 0) <= found <= BOUNDS[index]


def test_a_quantile_of_nothing_is_none_and_one_beyond_all_bounds_is_the_last() -> None:
    assert quantile((), 0.5) is None
    assert quantile(histogram([]), 0.5) is None
    assert quantile(histogram([9e9]), 0.5) == 3_600_000


def test_counts_add_up() -> None:
    one = RequestCounts(1, 10, 2, 3, histogram([7]), histogram([2]), histogram([3]))
    both = one + one.without_sizes()
    assert (both.count, both.microseconds, both.received, both.sent) == (2, 20, 4, 6)
    assert both.durations == histogram([7, 7])
    assert both.sent_sizes == histogram([3])
