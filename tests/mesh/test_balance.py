"""Balancing: shares, state that stays, ejection and panic, slow start, locality, affinity."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.balance import Host, Hosts
from mesh.balance.affine import Affine
from mesh.balance.affinity import MAGLEV_SIZE, Maglev, Ring
from mesh.traffic import Balance, LoadBalancing

HASHING = (Balance.RING_HASH, Balance.MAGLEV)


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


def test_a_local_host_is_preferred_while_any_is_healthy() -> None:
    some = hosts(Balance.LEAST_REQUEST, 6, local=(1, 4), near=True)
    everyone = list(some.all)
    near = {everyone[1], everyone[4]}
    assert set(picks(some, 200)) == near
    some.eject(everyone[1], 30.0)
    assert set(picks(some, 200)) == {everyone[4]}
    some.eject(everyone[4], 30.0)
    assert set(picks(some, 200)) == set(everyone) - near
    some.readmit(everyone[4])
    assert set(picks(some, 200)) == {everyone[4]}


def test_a_retry_passes_over_what_was_tried_and_then_over_locality() -> None:
    some = hosts(Balance.ROUND_ROBIN, 4, local=(1, 2), near=True)
    zero, one, two, three = some.all
    rolls = [index / 50 for index in range(50)]
    assert {some.pick(0.0, roll, None, (one,)) for roll in rolls} == {two}
    assert {some.pick(0.0, roll, None, frozenset((one, two))) for roll in rolls} == {zero, three}
    assert {some.pick(0.0, roll, None, (one, two, three)) for roll in rolls} == {zero}
    assert {some.pick(0.0, roll, None, (zero, one, two, three)) for roll in rolls} == {one, two}


@pytest.mark.parametrize("policy", list(Balance))
def test_ejections_are_ignored_once_more_than_half_are_ejected(policy: Balance) -> None:
    some = hosts(policy, 4)
    first, second, third, fourth = some.all
    some.eject(first, 30.0)
    some.eject(second, 30.0)
    keys = [b"%d" % number for number in range(300)]
    assert {some.pick(0.0, index / 300, key) for index, key in enumerate(keys)} == {third, fourth}
    assert not some.panic
    some.eject(third, 30.0)
    assert {some.pick(0.0, index / 300, key) for index, key in enumerate(keys)} == {first, second, third, fourth}
    assert some.panic


def test_who_has_left_is_neither_ejected_nor_readmitted() -> None:
    some = hosts(Balance.RANDOM, 2)
    gone = next(iter(some.all))
    some.update(backends(2)[1:], (), 1.0)
    some.readmit(gone)
    some.eject(gone, 5.0)
    assert gone.ejected_until == float("inf")
    assert gone not in picks(some, 50)


@pytest.mark.parametrize("policy", [Balance.ROUND_ROBIN, Balance.RANDOM, Balance.LEAST_REQUEST, Balance.EWMA])
@pytest.mark.parametrize(("age", "share"), [(0.0, 0.1), (30.0, 0.55), (60.0, 1.0)])
def test_a_new_host_takes_its_growing_share(policy: Balance, age: float, share: float) -> None:
    some = Hosts(LoadBalancing(policy, slow_start=60.0))
    some.update(backends(9), (), 0.0)
    some.update(backends(10), (), 100.0)
    newest = list(some.all)[-1]
    counted = picks(some, 20_000, now=100.0 + age)
    assert counted[newest] / 20_000 == pytest.approx(share / (9 + share), rel=0.15)
    assert max(counted.values()) < 1.3 * 20_000 / (9 + share)


def test_hosts_that_are_all_new_share_by_age() -> None:
    some = Hosts(LoadBalancing(Balance.RANDOM, slow_start=10.0))
    for count in range(1, 6):
        some.update(backends(count), (), count * 2.0)
    counted = picks(some, 50_000, now=11.0)
    shares = [0.1 + 0.09 * (11.0 - host.added) for host in some.all]
    for host, share in zip(some.all, shares, strict=True):
        assert counted[host] / 50_000 == pytest.approx(share / sum(shares), rel=0.06)
    assert len(picks(some, 500, now=100.0)) == 5


@pytest.mark.parametrize("policy", [Balance.LEAST_REQUEST, Balance.EWMA])
def test_in_slow_start_load_counts_by_share(policy: Balance) -> None:
    some = Hosts(LoadBalancing(policy, slow_start=60.0))
    some.update(backends(1), (), 0.0)
    some.update(backends(2), (), 100.0)
    old, new = some.all
    for host in (old, new):
        host.started()
        host.finished(0.1, True, 100.0)
    for _ in range(3):
        old.started()
    new.started()  # a tenth of the weight: one here is more than three there
    assert picks(some, 2_000, now=100.0)[new] < 2_000 * 0.02


def test_peak_ewma_prefers_the_faster_and_remembers_a_peak_for_a_while() -> None:
    some = hosts(Balance.EWMA, 2)
    fast, slow = some.all
    for host, seconds in ((fast, 0.010), (slow, 0.010), (slow, 0.200)):
        host.started()
        host.finished(seconds, True, 0.0)
    assert picks(some, 100) == {fast: 100}
    for second in range(1, 60):
        slow.started()
        slow.finished(0.001, True, float(second))
        fast.started()
        fast.finished(0.010, True, float(second))
    assert picks(some, 100, now=60.0) == {slow: 100}


def test_a_host_that_has_not_answered_yet_gets_one_request_and_not_all() -> None:
    some = hosts(Balance.EWMA, 2)
    known, fresh = some.all
    known.started()
    known.finished(0.01, True, 0.0)
    assert picks(some, 50) == {fresh: 50}
    fresh.started()
    assert picks(some, 50) == {known: 50}


def test_failing_fast_does_not_make_a_host_attractive() -> None:
    host = Host("10.77.0.1", 80, "", local=False, added=0.0)
    host.started()
    host.finished(0.5, True, 0.0)
    before = host.cost(1.0)
    host.started()
    host.finished(0.001, False, 1.0)
    assert host.cost(1.0) == before
    host.started()
    host.finished(2.0, False, 1.0)
    assert host.cost(1.0) == 2.0
    assert "10.77.0.1:80 active=0" in repr(host)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3), st.booleans()), max_size=40))
def test_the_moving_average_stays_within_what_was_seen(seen: list[tuple[float, float, bool]]) -> None:
    host = Host("10.77.0.1", 80, "", local=False, added=0.0)
    now = 0.0
    for after, seconds, ok in seen:
        now += after
        host.started()
        host.finished(seconds, ok, now)
        assert host.active == 0
        assert 0.0 <= host.ewma <= max(one[1] for one in seen) * (1 + 1e-12)


@pytest.mark.parametrize("policy", list(Balance))
@given(
    count=st.integers(1, 12),
    gone=st.sets(st.integers(0, 11)),
    ejected=st.sets(st.integers(0, 11)),
    local=st.sets(st.integers(0, 11)),
    tried=st.sets(st.integers(0, 11)),
    slow_start=st.sampled_from([0.0, 10.0]),
    near=st.booleans(),
    roll=st.floats(0, 1, exclude_max=True),
    key=st.none() | st.binary(max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_the_choice_is_one_of_those_that_the_rules_allow(
    policy: Balance,
    count: int,
    gone: set[int],
    ejected: set[int],
    local: set[int],
    tried: set[int],
    slow_start: float,
    near: bool,
    roll: float,
    key: bytes | None,
) -> None:
    """The rules as sets: near, healthy, all, less those tried."""
    some = hosts(policy, count, local=local, slow_start=slow_start, near=near)
    everyone = list(some.all)
    for index, host in enumerate(everyone):
        if index in ejected:
            some.eject(host, 30.0)
    kept = [index for index in range(count) if index not in gone]
    some.update([backends(count)[index] for index in kept], {f"uid-{index}" for index in local}, 5.0)
    while some.work():
        pass
    present = {everyone[index] for index in kept}
    healthy = {everyone[index] for index in kept if index not in ejected}
    usable = present if 2 * len(healthy) < len(present) else healthy
    first = {host for host in healthy if host.local} if near and policy not in HASHING else set()
    excluded = {everyone[index] for index in tried if index < count}
    chosen = some.pick(5.0, roll, key, frozenset(excluded))
    if not present:
        assert chosen is None
    else:
        assert chosen in (first - excluded or usable - excluded or first or usable)


def placed(some: Hosts, keys: int) -> list[Host]:
    found = [some.pick(0.0, 0.5, b"user-%d" % key) for key in range(keys)]
    return [host for host in found if host is not None]


@pytest.mark.parametrize("policy", HASHING)
def test_a_key_stays_with_its_host_in_every_process_whatever_the_order_of_endpoints(policy: Balance) -> None:
    one, other = hosts(policy, 9), Hosts(LoadBalancing(policy))
    other.update(backends(3), (), 0.0)
    other.update(list(reversed(backends(9))), (), 1.0)
    while other.work():
        pass
    assert [host.address for host in placed(one, 300)] == [host.address for host in placed(other, 300)]
    assert [host.address for host in placed(one, 300)] == [host.address for host in placed(one, 300)]


@pytest.mark.parametrize(("policy", "uneven"), [(Balance.MAGLEV, 0.15), (Balance.RING_HASH, 0.45)])
@pytest.mark.parametrize("count", [2, 10, 50])
def test_keys_are_spread_evenly(policy: Balance, uneven: float, count: int) -> None:
    counted = Counter(placed(hosts(policy, count), 400 * count))
    assert len(counted) == count
    assert all(abs(times - 400) < 400 * uneven for times in counted.values()), counted


@pytest.mark.parametrize("policy", HASHING)
@pytest.mark.parametrize("count", [5, 40])
def test_of_n_hosts_one_that_leaves_or_comes_moves_little_more_than_its_share(policy: Balance, count: int) -> None:
    some = hosts(policy, count)
    before = placed(some, 5_000)
    some.update(backends(count)[:-1], (), 1.0)
    while some.work():
        pass
    after = placed(some, 5_000)
    own = sum(host.ejected_until == float("inf") for host in before)
    moved = sum(one is not other for one, other in zip(before, after, strict=True))
    assert own <= moved <= own + 5_000 * 0.05
    some.update(backends(count), (), 2.0)
    while some.work():
        pass
    again = placed(some, 5_000)
    assert [host.address for host in again] == [host.address for host in before]


@pytest.mark.parametrize("policy", HASHING)
def test_only_an_ejected_hosts_keys_move_and_they_spread_and_return(policy: Balance) -> None:
    some = hosts(policy, 10)
    before = placed(some, 3_000)
    out = before[0]
    some.eject(out, 30.0)
    during = placed(some, 3_000)
    moved = [now for was, now in zip(before, during, strict=True) if was is out]
    assert all(was is now for was, now in zip(before, during, strict=True) if was is not out)
    assert len(set(moved)) == 9
    some.readmit(out)
    assert placed(some, 3_000) == before


@pytest.mark.parametrize("policy", HASHING)
def test_the_old_table_answers_until_the_new_one_is_built(policy: Balance) -> None:
    some = hosts(policy, 4)
    before = placed(some, 1)[0]
    others = [backend for backend in backends(12) if backend[0] != before.address]
    some.update(others, (), 1.0)
    assert some.pick(1.0, 0.5, b"user-0") in some.all
    some.update(backends(12), (), 2.0)
    some.update(backends(11), (), 2.0)  # while the first of them is being built
    while some.work():
        pass
    assert not some.work()
    fresh = hosts(policy, 11)
    assert [host.address for host in placed(some, 200)] == [host.address for host in placed(fresh, 200)]
    assert all(host in some.all for host in placed(some, 200))
    some.update([], (), 3.0)
    assert some.pick(3.0, 0.5, b"user-0") is None


@pytest.mark.parametrize("policy", HASHING)
def test_a_workload_that_takes_an_address_over_takes_its_keys_too(policy: Balance) -> None:
    some = hosts(policy, 3)
    before = placed(some, 50)
    some.update([(address, port, uid + "-new") for address, port, uid in backends(3)], (), 1.0)
    assert not some.work()
    after = placed(some, 50)
    assert [host.address for host in after] == [host.address for host in before]
    assert all(host.uid.endswith("-new") for host in after)


def test_when_no_near_probe_finds_a_host_the_key_still_decides() -> None:
    some = hosts(Balance.MAGLEV, 2)
    placed(some, 1)
    some.update([("10.77.8.8", 80, ""), ("10.77.9.9", 80, "")], (), 1.0)  # all that the table knows are gone
    found = [some.pick(1.0, roll, b"some key") for roll in (0.0, 0.3, 0.6, 0.9)]
    assert len(set(found)) == 1
    assert found[0] in some.all


def test_without_a_key_hashing_takes_any() -> None:
    assert len(picks(hosts(Balance.MAGLEV, 5), 200)) == 5


def reference_maglev(names: list[bytes], size: int) -> list[int]:
    """The paper's pseudo-code, figure 2."""
    permutation = []
    for name in names:
        digest = blake2b(name, digest_size=16).digest()
        offset = int.from_bytes(digest[:8], "big") % size
        skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
        permutation.append((offset, skip))
    following = [0] * len(names)
    entry = [-1] * size
    filled = 0
    while True:
        for host, (offset, skip) in enumerate(permutation):
            candidate = (offset + following[host] * skip) % size
            while entry[candidate] >= 0:
                following[host] += 1
                candidate = (offset + following[host] * skip) % size
            entry[candidate] = host
            following[host] += 1
            filled += 1
            if filled == size:
                return entry


@pytest.mark.parametrize("count", [1, 3, 300])
def test_the_table_is_the_papers(count: int) -> None:
    names = [b"10.77.0.%d:80" % index for index in range(count)]
    building = Maglev.build(names)
    while True:
        try:
            next(building)
        except StopIteration as built:
            table = built.value
            break
    assert [table.find(slot, 0) for slot in range(MAGLEV_SIZE)] == reference_maglev(names, MAGLEV_SIZE)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_the_ring_gives_the_next_point_clockwise(keys: list[int], count: int) -> None:
    names = [b"10.77.0.%d:80" % index for index in range(count)]
    building = Ring.build(names)
    while True:
        try:
            next(building)
        except StopIteration as built:
            ring = built.value
            break
    points = sorted(
        (int.from_bytes(blake2b(b"%s#%d" % (name, chunk)).digest()[eighth : eighth + 8], "big") >> 20, index)
        for index, name in enumerate(names)
        for chunk in range(0, 160, 8)
        for eighth in range(0, 64, 8)
    )
    for key in keys:
        clockwise = [index for at, index in points if (at << 20 | index) >= key] + [index for _, index in points]
        assert [ring.find(key, probe) for probe in range(3)] == clockwise[:3]


def test_without_hosts_no_key_has_one() -> None:
    assert Affine(Maglev.build).pick(b"key", False, ()) is None
