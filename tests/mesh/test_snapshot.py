"""Snapshot: any sequence of deltas gives what a full rebuild gives, and what doesn't fit is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.codec import decode, encode
from mesh.model import Action, Endpoint, MeshConfig, Policy, Service, Workload
from mesh.snapshot import Snapshot, SnapshotError
from mesh.sync import Update
from mesh.traffic import Parent, Route, TrafficPolicy

from .samples import (
    ADDRESSES,
    PORTS,
    configs,
    peer_auths,
    policies,
    routes,
    service,
    services,
    traffic,
    tuples,
    workload,
    workloads,
)


def full(*objects: Workload | Service, config: MeshConfig | None = None, revision: int = 1) -> Update:
    return Update(
        epoch="e",
        revision=revision,
        base=0,
        full=True,
        config=config or MeshConfig(),
        workloads=tuple(o for o in objects if isinstance(o, Workload)),
        services=tuple(o for o in objects if isinstance(o, Service)),
        has_policies=True,
    )


def delta(*objects: Workload | Service, removed: tuple[str, ...] = (), base: int = 1) -> Update:
    return replace(full(*objects, revision=base + 1), base=base, full=False, removed=removed, has_policies=False)


def seen(snapshot: Snapshot) -> object:
    """Everything that a snapshot answers."""
    return (
        (snapshot.epoch, snapshot.revision, snapshot.config, snapshot.ready, snapshot.policies, snapshot.peer_auths),
        dict(snapshot.workloads),
        dict(snapshot.services),
        [(snapshot.workload_at(a), snapshot.knows_service_address(a), snapshot.in_ranges(a)) for a in ADDRESSES],
        [(snapshot.service_at(a, p), snapshot.vip_at(a, p)) for a in ADDRESSES for p in PORTS],
        (dict(snapshot.routes), dict(snapshot.traffic)),
        [snapshot.routes_at(s, p) for s in ("shop/x", "other/y", "shop/none") for p in (*PORTS, 1)],
        [split_at(snapshot, a, p) for a in ADDRESSES for p in PORTS],
        [snapshot.traffic_policy(s) for s in ("shop/x", "other/y", "shop/none")],
        [snapshot.protocol_at(a, p) for a in ADDRESSES for p in (8080, 15008, 0)],
    )


def split_at(snapshot: Snapshot, address: str, port: int) -> object:
    if (vip := snapshot.vip_at(address, port)) is None or (split := snapshot.split_at(vip)) is None:
        return None
    return [split.pick(turn) for turn in range(20)]


def backwards(objects: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for _, value in sorted(objects.items(), reverse=True))


updates = st.builds(
    Update,
    epoch=st.just("e"),
    revision=st.integers(1, 5),
    base=st.just(0),
    full=st.sampled_from([False, False, False, True]),
    config=configs,
    workloads=tuples(workloads, 4),
    services=tuples(services, 4),
    removed=tuples(
        st.sampled_from(
            [
                "w:shop/a",
                "w:other/b",
                "w:shop/none",
                "s:shop/x",
                "s:other/y",
                "s:shop/none",
                "r:HTTPRoute/shop/r0",
                "r:GRPCRoute/shop/r0",
                "t:shop/t0",
                "t:other/none",
                "p:shop/p0",
                "p:other/p1",
                "a:shop/a0",
                "q:shop/none",
            ]
        ),
        3,
    ),
    has_policies=st.booleans(),
    policies=tuples(policies),
    peer_auths=tuples(peer_auths),
    routes=tuples(routes, 3),
    traffic=tuples(traffic, 3),
)


@given(st.lists(updates, min_size=1, max_size=6))
def test_any_sequence_of_deltas_is_what_a_full_rebuild_is(sequence: list[Update]) -> None:
    snapshot = Snapshot.empty()
    known: dict[str, dict[str, Any]] = {kind: {} for kind in "wsrtpaq"}
    for index, drawn in enumerate(sequence):
        update = replace(drawn, base=snapshot.revision)
        if index == 0 or update.full:
            update = replace(update, full=True, has_policies=True)
            known = {kind: {} for kind in "wsrtpaq"}
        if update.has_policies:
            known["p"], known["a"] = {}, {}
        for name in update.removed:
            kind, _, key = name.partition(":")
            known[kind].pop(key, None)
        known["w"].update((w.uid, w) for w in update.workloads)
        for kind, objects in (("s", update.services), ("r", update.routes), ("t", update.traffic)):
            known[kind].update((o.key, o) for o in objects)
        for kind, several in (("p", update.policies), ("a", update.peer_auths)):
            known[kind].update((o.key, [other for other in several if other.key == o.key]) for o in several)

        before, before_seen = snapshot, seen(snapshot)
        snapshot = snapshot.apply(update)

        assert seen(before) == before_seen
        rebuilt = Snapshot.empty().apply(
            Update(
                epoch="e",
                revision=update.revision,
                base=0,
                full=True,
                config=update.config,
                workloads=backwards(known["w"]),
                services=backwards(known["s"]),
                routes=backwards(known["r"]),
                traffic=backwards(known["t"]),
                has_policies=True,
                policies=tuple(o for several in backwards(known["p"]) for o in several),
                peer_auths=tuple(o for several in backwards(known["a"]) for o in several),
            )
        )
        assert seen(snapshot) == seen(rebuilt)
        assert seen(Snapshot.empty().apply(decode(Update, encode(snapshot.to_update())))) == seen(snapshot)


def test_a_new_node_knows_nothing_and_says_so() -> None:
    snapshot = Snapshot.empty()
    assert not snapshot.ready
    assert snapshot.workload_at("10.77.0.1") is None
    assert not snapshot.in_ranges("10.77.0.1")
    assert Snapshot.empty().apply(full()).ready


def test_an_object_that_changed_is_found_at_its_new_addresses_only() -> None:
    snapshot = Snapshot.empty().apply(full(workload("web", "10.77.0.1"), service(addresses=("10.96.0.1",))))
    moved = snapshot.apply(delta(workload("web", "10.77.0.2"), service(addresses=("10.96.0.2",))))
    assert moved.workload_at("10.77.0.1") is None
    assert moved.workload_at("10.77.0.2") == workload("web", "10.77.0.2")
    assert not moved.knows_service_address("10.96.0.1")
    assert moved.service_at("10.96.0.2", 80) == (service(addresses=("10.96.0.2",)), 0)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_claims_to_an_address_the_meshed_one_counts_whatever_came_first(order: int) -> None:
    plain, meshed = workload("a", "10.77.0.1", meshed=False), workload("b", "10.77.0.1")
    first, second = (plain, meshed)[::order]
    snapshot = Snapshot.empty().apply(full(first)).apply(delta(second))
    assert snapshot.workload_at("10.77.0.1") == meshed
    assert snapshot.apply(delta(removed=("w:shop/b",), base=2)).workload_at("10.77.0.1") == plain


def test_two_services_share_an_address_port_by_port() -> None:
    one, two = service("a", ports=(80,)), service("b", ports=(80, 443))
    snapshot = Snapshot.empty().apply(full(two)).apply(delta(one))
    assert snapshot.service_at("10.96.0.1", 80) == (one, 0)
    assert snapshot.service_at("10.96.0.1", 443) == (two, 1)
    assert snapshot.apply(delta(removed=("s:shop/a",), base=2)).service_at("10.96.0.1", 80) == (two, 0)


def test_backends_of_a_port_are_the_endpoints_that_serve_it() -> None:
    serves = Endpoint("10.77.0.1", "shop/a", (8080, 8443))
    first_only = Endpoint("10.77.0.2", "shop/b", (8080, 0))
    short = Endpoint("10.77.0.3", "shop/c", (8080,))
    snapshot = Snapshot.empty().apply(full(service(ports=(80, 443), endpoints=(serves, first_only, short))))
    vip = snapshot.vip_at("10.96.0.1", 443)
    assert vip is not None
    assert vip.backends == (("10.77.0.1", 8443, "shop/a"),)


@pytest.mark.parametrize(
    "wrong", [{"base": 2}, {"base": 0}, {"epoch": "other"}], ids=["ahead", "behind", "another controller's"]
)
def test_a_delta_that_is_based_on_something_else_is_refused(wrong: dict[str, Any]) -> None:
    snapshot = Snapshot.empty().apply(full())
    with pytest.raises(SnapshotError, match=r"based on .* but this node has e/1; it needs a full update"):
        snapshot.apply(replace(delta(), **wrong))


def test_a_delta_to_nothing_is_refused_even_if_the_numbers_fit() -> None:
    with pytest.raises(SnapshotError, match="this node has nothing"):
        Snapshot.empty().apply(replace(delta(base=0), epoch=""))


def test_a_full_update_without_policies_is_refused_as_it_would_open_every_workload() -> None:
    with pytest.raises(SnapshotError, match="carries no policies"):
        Snapshot.empty().apply(replace(full(), has_policies=False))


def test_where_only_policies_change_everything_leads_where_it_did() -> None:
    snapshot = Snapshot.empty().apply(full(workload("web", "10.77.0.1"), service()))
    policies = replace(delta(), policies=(Policy("deny", "shop", Action.DENY, ()),))
    assert snapshot.apply(policies).leads_as(snapshot)
    for other in (
        delta(workload("web", "10.77.0.2")),
        delta(service(ports=(81,))),
        delta(removed=("r:HTTPRoute/shop/none",)),
        replace(delta(), config=MeshConfig(cluster="other")),
    ):
        assert not snapshot.apply(other).leads_as(snapshot)


def test_a_delta_without_policies_keeps_them() -> None:
    policy = Policy("deny", "shop", Action.DENY, ())
    snapshot = Snapshot.empty().apply(replace(full(), policies=(policy,)))
    assert snapshot.apply(delta()).policies == (policy,)
    assert snapshot.apply(replace(delta(), has_policies=True)).policies == ()


@pytest.mark.parametrize("name", ["web", "x:shop/web", ""])
def test_a_removal_of_an_unknown_kind_is_refused(name: str) -> None:
    with pytest.raises(SnapshotError, match="removed: "):
        Snapshot.empty().apply(full()).apply(delta(removed=(name,)))


def test_ranges_that_are_no_cidrs_are_refused() -> None:
    with pytest.raises(SnapshotError, match=r"mesh ranges: .*10\.77/99"):
        Snapshot.empty().apply(full(config=MeshConfig(ranges=("10.77/99",))))


def test_changed_ranges_count_at_once_although_answers_are_remembered() -> None:
    snapshot = Snapshot.empty().apply(full(config=MeshConfig(ranges=("10.77.0.0/16",))))
    assert snapshot.in_ranges("10.77.0.9")
    later = snapshot.apply(replace(delta(), config=MeshConfig(ranges=("10.78.0.0/16",))))
    assert not later.in_ranges("10.77.0.9")
    assert snapshot.in_ranges("10.77.0.9")


def test_remembered_answers_about_ranges_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.snapshot._RANGE_MEMO", 4)
    snapshot = Snapshot.empty().apply(full(config=MeshConfig(ranges=("10.77.0.0/29",))))
    assert [snapshot.in_ranges(f"10.77.0.{n}") for n in range(20)] == [True] * 8 + [False] * 12
    assert len(snapshot._ranges._memo) <= 4


def route(name: str, *parents: Parent, namespace: str = "shop", created: int = 0) -> Route:
    return Route("HTTPRoute", name, namespace, parents, (), created)


def test_routes_of_a_port_are_those_for_it_and_those_for_every_port_the_older_first() -> None:
    young, old = route("young", Parent("shop/web"), created=9), route("old", Parent("shop/web", 80), created=1)
    snapshot = Snapshot.empty().apply(replace(full(), routes=(young, old)))
    assert snapshot.routes_at("shop/web", 80) == (old, young)
    assert snapshot.routes_at("shop/web", 81) == (young,)
    assert snapshot.routes_at("shop/other", 80) == ()


def test_a_change_of_one_services_route_leaves_what_others_have_the_same_object() -> None:
    """What the data plane has compiled from it is found again by it."""
    web, api = route("web", Parent("shop/web"), Parent("shop/web", 80)), route("api", Parent("shop/api"))
    snapshot = Snapshot.empty().apply(replace(full(), routes=(web, api)))
    later = snapshot.apply(replace(delta(), routes=(route("api", Parent("shop/api", 80)),)))
    assert later.routes_at("shop/web", 80) is snapshot.routes_at("shop/web", 80)
    assert later.routes_at("shop/api", 81) == ()
    assert later.apply(delta(workload("w"), base=2)).routes is later.routes


def test_of_two_traffic_policies_for_a_service_the_older_holds_until_it_is_gone() -> None:
    first, second = (TrafficPolicy(name, "shop", "shop/web", created) for name, created in (("z", 1), ("a", 2)))
    snapshot = Snapshot.empty().apply(replace(full(), traffic=(second, first)))
    assert snapshot.traffic_policy("shop/web") == first
    later = snapshot.apply(delta(removed=("t:shop/z",)))
    assert later.traffic_policy("shop/web") == second
    assert later.apply(delta(removed=("t:shop/a",), base=2)).traffic_policy("shop/web") is None


def test_a_target_port_speaks_what_a_service_declares_for_it() -> None:
    ends = (Endpoint("10.77.0.1", "shop/a", (8080, 8443)),)
    undeclared, declared = service("a", ports=(8080, 443)), service("b", ports=(80,))
    snapshot = Snapshot.empty().apply(full(replace(undeclared, endpoints=ends)))
    assert snapshot.protocol_at("10.77.0.1", 8443) == "tcp"
    assert snapshot.protocol_at("10.77.0.1", 8080) == ""
    later = snapshot.apply(delta(replace(declared, endpoints=ends)))
    assert later.protocol_at("10.77.0.1", 8080) == "http"
    assert later.apply(delta(removed=("s:shop/b",), base=2)).protocol_at("10.77.0.1", 8080) == ""


def test_what_a_workload_s_port_speaks_is_not_for_another_namespace_to_say() -> None:
    """Else it could be opaque there, and what the workload's policies say of requests never asked."""
    ends = (Endpoint("10.77.0.1", "shop/a", (8080,)),)
    other = replace(service("a", ports=(443,)), namespace="evil", endpoints=ends)
    snapshot = Snapshot.empty().apply(full(other))
    assert snapshot.protocol_at("10.77.0.1", 8080) == ""
    assert snapshot.served_by("10.77.0.1", 8080) is None
    both = snapshot.apply(delta(replace(service("b", ports=(80,)), endpoints=ends)))
    assert both.protocol_at("10.77.0.1", 8080) == "http"
    assert both.apply(delta(removed=("s:evil/a",), base=2)).protocol_at("10.77.0.1", 8080) == "http"
