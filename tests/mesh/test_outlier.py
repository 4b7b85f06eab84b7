"""Outlier detection: who is ejected, for how long, and how many at most."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.balance import Host, Hosts
from mesh.outlier import CONSECUTIVE, SUCCESS_RATE, Ejection, OutlierDetector
from mesh.traffic import LoadBalancing, OutlierDetection


def setting(count: int, detection: OutlierDetection) -> tuple[list[Host], Hosts, OutlierDetector]:
    hosts = Hosts(LoadBalancing())
    hosts.update([(f"10.77.0.{index}", 80, "") for index in range(count)], (), 0.0)
    return list(hosts.all), hosts, OutlierDetector(hosts, detection, 0.0)


def fail(detector: OutlierDetector, host: Host, times: int, now: float = 1.0) -> list[Ejection | None]:
    return [detector.record(host, False, now) for _ in range(times)]


def test_errors_in_a_row_eject_and_a_success_between_does_not() -> None:
    (bad, good, *_), hosts, detector = setting(4, OutlierDetection(consecutive_errors=3))
    fail(detector, good, 2)
    assert detector.record(good, True, 1.0) is None
    assert fail(detector, good, 2) == [None, None]
    assert fail(detector, bad, 3) == [None, None, Ejection(bad, CONSECUTIVE, 31.0)]
    assert (bad.ejected_until, good.ejected_until) == (31.0, 0.0)
    assert all(hosts.pick(2.0, roll / 100) is not bad for roll in range(100))


def test_what_an_ejected_host_still_answers_changes_nothing() -> None:
    (bad, *_), hosts, detector = setting(4, OutlierDetection(consecutive_errors=3))
    fail(detector, bad, 3)
    assert fail(detector, bad, 6, now=5.0) == [None] * 6
    assert bad.ejected_until == 31.0
    hosts.update([], (), 6.0)
    assert fail(detector, bad, 3) == [None] * 3


def test_it_is_readmitted_by_the_first_tick_after_its_time_with_a_clean_slate() -> None:
    (bad, *_), hosts, detector = setting(4, OutlierDetection(consecutive_errors=3, interval=10))
    fail(detector, bad, 3)
    fail(detector, bad, 2)
    for now in (10.0, 20.0, 30.0):
        assert detector.tick(now) == []
        assert hosts.ejected == 1
    assert detector.deadline == 40.0
    detector.tick(39.9)
    assert hosts.ejected == 1
    detector.tick(40.0)
    assert (hosts.ejected, bad.ejected_until, bad.errors) == (0, 0.0, 0)


def test_each_ejection_is_longer_up_to_the_longest_and_good_standing_makes_it_shorter_again() -> None:
    (bad, *_), _hosts, detector = setting(
        2, OutlierDetection(consecutive_errors=1, interval=10, base_ejection=30, max_ejection=70)
    )
    lengths, now = [], 0.0
    for _ in range(4):
        (ejection,) = fail(detector, bad, 1, now)
        assert ejection
        lengths.append(ejection.until - now)
        while bad.ejected_until:
            now += 10.0
            detector.tick(now)
    assert lengths == [30.0, 60.0, 70.0, 70.0]
    for _ in range(2):
        now += 10.0
        detector.tick(now)
    (ejection,) = fail(detector, bad, 1, now)
    assert ejection
    assert ejection.until - now == 60.0


def test_the_longest_ejection_is_never_shorter_than_the_first() -> None:
    (bad, _), _hosts, detector = setting(2, OutlierDetection(consecutive_errors=1, base_ejection=30, max_ejection=5))
    (ejection,) = fail(detector, bad, 1)
    assert ejection
    assert ejection.until == 31.0


@pytest.mark.parametrize(("count", "percent", "out"), [(1, 0, 1), (10, 1_000, 1), (20, 1_000, 2), (4, 10_000, 4)])
def test_no_more_than_the_cap_are_ejected_but_one_always_may(count: int, percent: int, out: int) -> None:
    everyone, hosts, detector = setting(count, OutlierDetection(consecutive_errors=1, max_percent=percent))
    ejections = [fail(detector, host, 1)[0] for host in everyone]
    assert [ejection.enforced for ejection in ejections if ejection] == [True] * out + [False] * (count - out)
    assert hosts.ejected == sum(host.ejected_until > 0 for host in everyone) == out


def test_without_that_detector_errors_in_a_row_do_not_eject() -> None:
    (bad, _), _hosts, detector = setting(2, OutlierDetection(consecutive_errors=0))
    assert fail(detector, bad, 50) == [None] * 50


def test_a_host_far_below_the_mean_success_rate_is_ejected() -> None:
    everyone, hosts, detector = setting(
        10, OutlierDetection(consecutive_errors=0, success_rate_deviations=1.9, success_rate_requests=10)
    )
    for host in everyone:
        for number in range(10):
            detector.record(host, host is not everyone[3] or number % 2 == 0, 1.0)
    assert detector.tick(10.0) == [Ejection(everyone[3], SUCCESS_RATE, 40.0)]
    assert hosts.ejected == 1
    assert detector.tick(20.0) == []


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=9),
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 1.0, 1.9]),
)
@settings(deadline=None)
def test_the_success_rate_agrees_with_statistics(
    outcomes: list[tuple[int, int]], requests: int, hosts_needed: int, deviations: float
) -> None:
    everyone, _hosts, detector = setting(
        len(outcomes),
        OutlierDetection(
            consecutive_errors=0,
            max_percent=10_000,
            success_rate_deviations=deviations,
            success_rate_requests=requests,
            success_rate_hosts=hosts_needed,
        ),
    )
    for host, (good, bad) in zip(everyone, outcomes, strict=True):
        for ok in [True] * good + [False] * bad:
            detector.record(host, ok, 1.0)
    rates = {
        host: good / (good + bad)
        for host, (good, bad) in zip(everyone, outcomes, strict=True)
        if good + bad >= requests
    }
    expected = set()
    if deviations and len(rates) >= hosts_needed:
        least = fmean(rates.values()) - pstdev(rates.values()) * deviations
        expected = {host for host, rate in rates.items() if rate < least - 1e-9}
    found = {ejection.host for ejection in detector.tick(10.0)}
    assert expected <= found
    assert all(abs(rates[host] - least) < 1e-8 for host in found - expected)
    assert all((host.answered, host.succeeded) == (0, 0) for host in everyone)
