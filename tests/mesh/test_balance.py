"""Balancing: shares, state that stays, ejection and panic, slow start, locality, affinity."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from mesh.balance import Host, Hosts
from mesh.traffic import Balance, LoadBalancing


def backends(count: int) -> list[tuple[str, int, str]]:
    return [(f"10.77.{index >> 8}.{index & 255}", 8080, f"uid-{index}") for index in range(count)]


def hosts(
    policy: Balance, count: int, *, local: Iterable[int] = (), slow_start: float = 0.0, near: bool = False
) -> Hosts:
    made = Hosts(LoadBalancing(policy, slow_start=slow_start, prefer_local=near))
    made.update(backends(count), {f"uid-{index}" for index in local}, 0.0)
    return made


def picks(some: Hosts, times: int, now: float = 0.0, seed: int = 1) -> Counter[Host]:
    rolls = random.Random(seed)
    counted: Counter[Host] = Counter()
    for _ in range(times):
        host = some.pick(now, rolls.random())
        assert host is not None
        counted[host] += 1
    return counted


@pytest.mark.parametrize("policy", list(Balance))
def test_without_an_endpoint_there_is_no_host(policy: Balance) -> None:
    some = Hosts(LoadBalancing(policy))
    assert some.pick(0.0, 0.5, b"key") is None
    some.update(backends(1), (), 0.0)
    some.update([], (), 0.0)
    assert some.pick(0.0, 0.5, b"key") is None


def test_round_robin_takes_each_in_turn() -> None:
    assert set(picks(hosts(Balance.ROUND_ROBIN, 7), 70).values()) == {10}


def test_least_request_takes_the_less_busy_of_two() -> None:
    some = hosts(Balance.LEAST_REQUEST, 2)
    busy, free = some.all
    busy.started()
    assert picks(some, 100) == {free: 100}
    busy.finished(0.1, True, 0.0)
    assert min(picks(some, 1000).values()) > 400


def test_a_host_that_stays_keeps_its_state() -> None:
    some = hosts(Balance.LEAST_REQUEST, 2)
    first, second = some.all
    first.started()
    some.update([("10.77.0.0", 8080, "uid-0"), ("10.77.9.9", 8080, "uid-9")], {"uid-0"}, 5.0)
    kept, new = some.all
    assert kept is first
    assert (kept.active, kept.local, kept.added) == (1, True, 0.0)
    assert (new.active, new.local, new.added) == (0, False, 5.0)
    assert second.ejected_until == float("inf")
