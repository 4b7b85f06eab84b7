"""Splitting by version: shares, what has no endpoint, other tries, affinity; connections too."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mesh.balance import Host, VersionedHosts
from mesh.model import Endpoint
from mesh.outlier import OutlierDetector
from mesh.resolve import NO_VERSION, Kind, resolve
from mesh.snapshot import Snapshot
from mesh.traffic import Balance, LoadBalancing, OutlierDetection, TrafficPolicy
from mesh.versions import Share, Split, shares

from .samples import service, workload
from .test_balance import HASHING
from .test_snapshot import delta, full

MANY = 8_000
ROLLS = [(index + 0.5) / MANY for index in range(MANY)]


class Mesh:
    """`VersionedHosts` of so many hosts a version, and whatever happens to them."""

    def __init__(self, counts: Mapping[str, int], weights: Mapping[str, int], **balancing: object) -> None:
        self.counts, self.now = dict(counts), 0.0
        self.hosts = VersionedHosts(LoadBalancing(**balancing))  # type: ignore[arg-type]  # each is of its own type
        self.set(weights)

    def set(self, weights: Mapping[str, int], local: tuple[str, ...] = (), **counts: int) -> None:
        self.counts |= counts
        uids = {f"{version}-{index}": version for version, count in self.counts.items() for index in range(count)}
        self.hosts.weigh(weights, uids)
        self.hosts.update([(f"10.0.0.{uid}", 80, uid) for uid in [*uids, ""]], local, self.now)
        while self.hosts.work():
            pass

    def pick(self, roll: float, key: bytes | None = None, tried: tuple[Host, ...] = ()) -> Host:
        host = self.hosts.pick(self.now, roll, key, tried)
        assert host is not None
        return host

    def versions(self) -> Counter[str]:
        return Counter(self.hosts.version_of(self.pick(roll)) for roll in ROLLS)

    def placed(self, keys: int) -> list[str]:
        return [self.hosts.version_of(self.pick(0.5, b"user-%d" % number)) for number in range(keys)]

    def of(self, version: str) -> list[Host]:
        return [host for host in self.hosts.all if self.hosts.version_of(host) == version]


weights_of_three = st.fixed_dictionaries({name: st.integers(0, 1_000_000) for name in ("v1", "v2", "v3")})


@pytest.mark.parametrize("policy", list(Balance))
def test_requests_are_split_by_weight_however_many_endpoints_a_version_has(policy: Balance) -> None:
    mesh = Mesh({"v1": 2, "v2": 7, "v3": 3}, {"v1": 90, "v2": 10}, policy=policy)
    assert mesh.versions() == {"v1": MANY * 9 // 10, "v2": MANY // 10}


@given(weights_of_three, st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.integers(0, 3)))
@settings(max_examples=40, deadline=None)
def test_the_split_is_exact_among_versions_that_have_endpoints(weights: dict[str, int], counts: dict[str, int]) -> None:
    mesh = Mesh(counts, weights, policy=Balance.RANDOM)
    present = {version: weight for version, weight in weights.items() if weight and counts.get(version)}
    told = mesh.hosts.shares(0.0)
    assert set(told) == {version for version, weight in weights.items() if weight}
    if not present:
        assert mesh.hosts.pick(0.0, 0.5) is None
        assert mesh.hosts.pick(0.0, 0.5, b"key") is None
        assert not any(told.values())
        return
    total, found = sum(present.values()), mesh.versions()
    for version in told:
        share = present.get(version, 0) / total
        assert told[version] == pytest.approx(share)
        assert abs(found[version] - share * MANY) <= 1


@pytest.mark.parametrize("policy", [Balance.RANDOM, Balance.ROUND_ROBIN, Balance.LEAST_REQUEST, Balance.EWMA])
def test_the_hosts_of_a_version_are_chosen_alike(policy: Balance) -> None:
    mesh = Mesh({"v1": 4, "v2": 5}, {"v1": 70, "v2": 30}, policy=policy)
    rolls = random.Random(1)
    found = Counter(mesh.pick(rolls.random()) for _ in range(MANY))
    for version, share, count in (("v1", 0.7, 4), ("v2", 0.3, 5)):
        for host in mesh.of(version):
            assert found[host] == pytest.approx(MANY * share / count, rel=0.1)


def test_the_last_roll_before_one_is_the_last_host_of_the_last_version() -> None:
    for weights in ({"v1": 1, "v2": 1_000_000}, {"v1": 1_000_000, "v2": 1}, {"v1": 3, "v2": 7}):
        mesh = Mesh({"v1": 3, "v2": 3}, weights, policy=Balance.RANDOM)
        assert mesh.pick(1 - 2**-53) is mesh.of("v2")[-1]
        assert mesh.pick(0.0) is mesh.of("v1")[0]


def test_a_version_whose_hosts_are_all_ejected_gives_its_share_away_until_one_is_back() -> None:
    mesh = Mesh({"v1": 3, "v2": 1}, {"v1": 60, "v2": 40})
    (canary,) = mesh.of("v2")
    detector = OutlierDetector(mesh.hosts, OutlierDetection(consecutive_errors=2, max_percent=10_000), 0.0)
    assert detector.record(canary, False, 0.0) is None
    assert detector.record(canary, False, 0.0) is not None
    assert mesh.versions() == {"v1": MANY}
    assert mesh.hosts.shares(0.0) == {"v1": 1.0, "v2": 0.0}
    mesh.now = 100.0
    detector.tick(mesh.now)
    assert mesh.versions()["v2"] == MANY * 4 // 10


def test_ejections_are_ignored_when_more_than_half_of_the_hosts_of_all_versions_are_ejected() -> None:
    mesh = Mesh({"v1": 3, "v2": 2}, {"v1": 60, "v2": 40}, policy=Balance.MAGLEV)
    for host in mesh.of("v2"):
        mesh.hosts.eject(host, 30.0)
    assert set(mesh.placed(200)) == {"v1"}
    mesh.hosts.eject(mesh.of("v1")[0], 30.0)
    assert mesh.hosts.panic
    assert set(mesh.placed(200)) == {"v1", "v2"}
    assert {mesh.pick(0.5, b"user-%d" % number) for number in range(500)} == set(mesh.hosts.all)


def test_new_weights_leave_hosts_as_they_are() -> None:
    mesh = Mesh({"v1": 3, "v2": 2}, {"v1": 90, "v2": 10})
    before = list(mesh.hosts.all)
    mesh.hosts.eject(before[0], 30.0)
    mesh.now = 5.0
    mesh.set({"v2": 500, "v1": 500})
    assert list(mesh.hosts.all) == before
    assert (mesh.hosts.ejected, before[0].ejected_until) == (1, 30.0)
    assert mesh.versions() == {"v1": MANY // 2, "v2": MANY // 2}
    assert before[0] not in {mesh.pick(roll) for roll in ROLLS}
    mesh.set({"v2": 100})
    assert [host.ejected_until for host in before] == [inf, inf, inf, 0.0, 0.0]
    assert len(mesh.hosts) == 2
    mesh.set({"v2": 0})
    assert len(mesh.hosts) == 0
    assert mesh.hosts.pick(5.0, 0.5) is None
    mesh.set({})
    assert mesh.hosts.shares(5.0) == {}


def test_a_workload_that_changes_its_version_changes_sides() -> None:
    mesh = Mesh({"v1": 2, "v2": 1}, {"v1": 50, "v2": 50})
    mesh.hosts.weigh({"v1": 50, "v2": 50}, {"v1-0": "v1", "v1-1": "v2", "v2-0": "v2"})
    keys = [(host.address, host.port, host.uid) for host in mesh.hosts.all]
    before = list(mesh.hosts.all)
    mesh.hosts.update(keys, (), 1.0)
    assert list(mesh.hosts.all) == before
    assert [host.uid for host in mesh.of("v2")] == ["v1-1", "v2-0"]
    assert mesh.versions() == {"v1": MANY // 2, "v2": MANY // 2}


def test_locality_and_slow_start_hold_within_a_version() -> None:
    mesh = Mesh({"v1": 3, "v2": 2}, {"v1": 80, "v2": 20}, policy=Balance.RANDOM, prefer_local=True, slow_start=10.0)
    mesh.now = 100.0
    mesh.set({"v1": 80, "v2": 20}, local=("v1-1",))
    assert mesh.versions() == {"v1": MANY * 8 // 10, "v2": MANY * 2 // 10}
    assert {mesh.pick(roll).uid for roll in ROLLS} == {"v1-1", "v2-0", "v2-1"}
    mesh.set({"v1": 80, "v2": 20}, v2=3)  # one more, at a tenth of a share
    assert mesh.versions()["v2"] == pytest.approx(MANY * 2 // 10, abs=1)
    found = Counter(mesh.pick(roll).uid for roll in ROLLS)
    assert found["v2-2"] == pytest.approx(MANY * 0.2 * 0.1 / 2.1, rel=0.02)
    mesh.now = 105.0  # the shares are worked out anew as they grow
    found = Counter(mesh.pick(roll).uid for roll in ROLLS)
    assert found["v2-2"] == pytest.approx(MANY * 0.2 * 0.55 / 2.55, rel=0.02)


@pytest.mark.parametrize("policy", list(Balance))
def test_another_try_leaves_the_version_only_when_it_has_no_other_host(policy: Balance) -> None:
    mesh = Mesh({"v1": 4, "v2": 2, "v3": 1}, {"v1": 50, "v2": 30, "v3": 20}, policy=policy)
    one, two = mesh.of("v2")
    (three,) = mesh.of("v3")
    for number in range(200):
        roll, key = number / 200, b"user-%d" % number
        assert mesh.pick(roll, key, (one,)) is two
        assert mesh.pick(roll, key, (two, one)) not in (one, two)
        assert mesh.pick(roll, key, (three, one)) is two
        assert mesh.pick(roll, key, (*mesh.of("v1"), one, two)) is three
        assert mesh.pick(roll, key, tuple(mesh.hosts.all)) in mesh.hosts.all
    mesh.set({"v1": 50, "v3": 20})  # what was tried is no endpoint any more
    assert {mesh.pick(roll, None, (one, two)).uid for roll in ROLLS} == {"v1-0", "v1-1", "v1-2", "v1-3", "v3-0"}


def test_a_try_that_leaves_its_version_goes_to_the_others_by_weight() -> None:
    mesh = Mesh({"v1": 4, "v2": 1, "v3": 2}, {"v1": 60, "v2": 30, "v3": 20}, policy=Balance.RANDOM)
    found = Counter(mesh.hosts.version_of(mesh.pick(roll, None, tuple(mesh.of("v2")))) for roll in ROLLS)
    assert found == {"v1": MANY * 3 // 4, "v3": MANY // 4}


@pytest.mark.parametrize("policy", HASHING)
def test_keys_are_split_by_weight_and_then_evenly(policy: Balance) -> None:
    mesh = Mesh({"v1": 3, "v2": 3}, {"v1": 75, "v2": 25}, policy=policy)
    found = Counter(mesh.placed(MANY))
    assert found["v2"] == pytest.approx(MANY / 4, rel=0.05)
    hosts = Counter(mesh.pick(0.5, b"user-%d" % number) for number in range(MANY))
    for host in mesh.of("v2"):  # the version's part of the keys isn't one part of the table
        assert hosts[host] == pytest.approx(MANY / 12, rel=0.1 if policy is Balance.MAGLEV else 0.3)


@pytest.mark.parametrize("policy", HASHING)
def test_a_key_has_its_version_in_every_process_whatever_came_before(policy: Balance) -> None:
    one = Mesh({"v1": 2, "v2": 2, "v3": 2}, {"v1": 50, "v2": 30, "v3": 20}, policy=policy)
    other = Mesh({"v3": 4}, {"v3": 7}, policy=policy)
    other.set({"v3": 20_000, "v1": 50_000, "v2": 30_000}, v1=5, v2=1)
    assert one.placed(500) == other.placed(500)


@given(st.data(), weights_of_three)
@settings(max_examples=25, deadline=None)
def test_of_new_weights_only_the_share_that_must_moves(data: st.DataObject, weights: dict[str, int]) -> None:
    """A key of a version leaves it only if that weighs less, or comes to another only if that weighs more."""
    assume(any(weights.values()))
    mesh = Mesh({"v1": 1, "v2": 2, "v3": 3}, weights, policy=Balance.RING_HASH)
    before = mesh.placed(1_000)
    changed = data.draw(st.sampled_from(sorted(weights)))
    weight = data.draw(st.integers(0, 1_000_000))
    assume(any((weights | {changed: weight}).values()))
    mesh.set(weights | {changed: weight})
    for one, other in zip(before, mesh.placed(1_000), strict=True):
        if one != other:
            assert (other if weight > weights[changed] else one) == changed


def test_from_ten_to_thirty_percent_a_fifth_of_the_sessions_move() -> None:
    mesh = Mesh({"v1": 5, "v2": 2}, {"v1": 90, "v2": 10}, policy=Balance.MAGLEV)
    before = [mesh.pick(0.5, b"user-%d" % number) for number in range(MANY)]
    mesh.set({"v1": 70, "v2": 30})
    after = [mesh.pick(0.5, b"user-%d" % number) for number in range(MANY)]
    moved = [(one, other) for one, other in zip(before, after, strict=True) if one is not other]
    assert len(moved) / MANY == pytest.approx(0.2, rel=0.05)
    assert {(mesh.hosts.version_of(one), mesh.hosts.version_of(other)) for one, other in moved} == {("v1", "v2")}


@pytest.mark.parametrize("policy", HASHING)
def test_a_version_that_is_out_moves_its_own_keys_only_and_they_come_back(policy: Balance) -> None:
    mesh = Mesh({"v1": 4, "v2": 1, "v3": 2}, {"v1": 50, "v2": 30, "v3": 20}, policy=policy)
    before = mesh.placed(2_000)
    mesh.hosts.eject(mesh.of("v2")[0], 30.0)
    during = mesh.placed(2_000)
    assert {other for one, other in zip(before, during, strict=True) if one == "v2"} == {"v1", "v3"}
    assert all(one == other for one, other in zip(before, during, strict=True) if one != "v2")
    mesh.hosts.readmit(mesh.of("v2")[0])
    assert mesh.placed(2_000) == before


def test_tables_are_built_beside_the_requests() -> None:
    hosts = VersionedHosts(LoadBalancing(Balance.MAGLEV))
    hosts.weigh({"v1": 1, "v2": 1}, {"a": "v1", "b": "v2"})
    hosts.update([("10.0.0.1", 80, "a"), ("10.0.0.2", 80, "b")], (), 0.0)
    assert hosts.work()
    while hosts.work():
        pass
    assert {hosts.pick(0.0, 0.5, b"%d" % number) for number in range(50)} == set(hosts.all)


# -- connections ------------------------------------------------------------------------------------------------------


def endpoints(**counts: int) -> list[tuple[str, tuple[str, int, str]]]:
    return [(name, (f"{name}-{index}", 80, name)) for name, count in counts.items() for index in range(count)]


@given(weights_of_three, st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.integers(0, 3)), st.integers(0, 2**40))
def test_any_run_of_connections_is_split_by_weight(weights: dict[str, int], counts: dict[str, int], turn: int) -> None:
    split = Split(weights, endpoints(**counts))
    present = {version: weight for version, weight in weights.items() if weight and counts.get(version)}
    if not present:
        assert split.pick(turn) is None
        return
    picked = [split.pick(number) for number in range(turn, turn + 1_000)]
    found = Counter(backend[2] for backend in picked if backend is not None)
    assert sum(found.values()) == 1_000
    assert set(found) <= set(present)
    for version, weight in present.items():
        assert abs(found[version] - 1_000 * weight / sum(present.values())) < 12


def test_the_endpoints_of_a_version_take_turns() -> None:
    found = Counter(Split({"v1": 90, "v2": 10}, endpoints(v1=3, v2=2)).pick(turn) for turn in range(9_000))
    assert [found[backend] for _version, backend in endpoints(v1=3)] == [pytest.approx(2_700, abs=30)] * 3
    assert [found[backend] for _version, backend in endpoints(v2=2)] == [pytest.approx(450, abs=30)] * 2


WEB = service(endpoints=[Endpoint(f"10.77.0.{n}", f"shop/w{n}", (8080,)) for n in (1, 2, 3, 4)])
PODS = [workload(f"w{n}", f"10.77.0.{n}", version=version) for n, version in ((1, "v1"), (2, "v2"), (3, "v1"))]


def policy(name: str = "p", created: int = 0, **versions: int) -> TrafficPolicy:
    return TrafficPolicy(name, "shop", "shop/web", created, versions=versions)


def found(snapshot: Snapshot) -> set[str]:
    return {resolve(snapshot, "10.96.0.1", 80, pick).address for pick in range(100)}


def with_policies(*policies: TrafficPolicy) -> Snapshot:
    return Snapshot.empty().apply(full(WEB, *PODS)).apply(replace(delta(), traffic=policies))


def test_connections_to_a_service_go_to_its_versions() -> None:
    assert found(with_policies(policy(v2=1))) == {"10.77.0.2"}
    assert found(with_policies(policy(v1=90, v2=10))) == {"10.77.0.1", "10.77.0.2", "10.77.0.3"}
    assert found(with_policies(policy())) == found(with_policies()) == {f"10.77.0.{n}" for n in (1, 2, 3, 4)}


def test_without_an_endpoint_of_any_version_there_is_no_healthy_upstream() -> None:
    target = resolve(with_policies(policy(v9=1, v1=0)), "10.96.0.1", 80, 0)
    assert (target.kind, target.flags, target.reason) == (Kind.REFUSE, "UH", NO_VERSION)


def test_the_split_follows_policies_services_and_workloads() -> None:
    snapshot = with_policies(policy("b", 2, v1=1), policy("a", 1, v2=1))
    assert found(snapshot) == {"10.77.0.2"}
    again = snapshot.apply(delta(workload("w3", "10.77.0.3", version="v2"), base=2))
    assert found(again) == {"10.77.0.2", "10.77.0.3"}
    assert found(again.apply(delta(removed=("t:shop/a",), base=3))) == {"10.77.0.1"}
    fewer = service(endpoints=WEB.endpoints[2:])
    assert found(again.apply(delta(fewer, base=3))) == {"10.77.0.3"}
    assert found(snapshot) == {"10.77.0.2"}


def test_shares_tell_who_gets_what() -> None:
    told = shares({"v1": 90, "v2": 10, "v3": 0}, ["v1", "v1", "v3", "v4"])
    assert told == (Share("v1", 90, 1.0, 2), Share("v2", 10, 0.0, 0), Share("v3", 0, 0.0, 1))
    assert [one.share for one in shares({"v1": 3, "v2": 1}, ["v1", "v2"])] == [0.75, 0.25]
    assert [one.share for one in shares({"v1": 3}, [])] == [0.0]
