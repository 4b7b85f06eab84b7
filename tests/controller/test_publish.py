from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import controller.publish as publish
from controller.publish import Publisher
from controller.translate import World
from mesh.model import Action, MeshConfig, PeerAuth, Policy, Service, Workload
from mesh.model import MtlsMode as Mode
from mesh.snapshot import Snapshot
from mesh.sync import FromController, Reader
from mesh.traffic import Route, TrafficPolicy


def a_workload(name: str, address: str = "10.77.0.1", node: str = "node-a", meshed: bool = True) -> Workload:
    return Workload(f"shop/{name}", name, "shop", "web", node, (address,), meshed)


def a_world(*workloads: Workload, **rest: Any) -> World:
    labels: dict[str, Mapping[str, str]] = {w.uid: {"app": w.name} for w in workloads}
    return World({w.uid: w for w in workloads}, labels, **rest)


class Source:
    """What the publisher builds from, to be changed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.publisher = Publisher(lambda: self.world, MeshConfig())

    def publish(self, world: World) -> None:
        self.world = world
        self.publisher.touch()
        self.publisher.rebuild()


def a_policy(name: str, namespace: str = "shop", **selector: str) -> Policy:
    return Policy(name, namespace, Action.DENY, (), selector)


names = st.sampled_from(["a", "b", "c", "d"])
worlds = st.builds(
    lambda workloads, services, policies, routes, traffic: World(
        {f"shop/{n}": a_workload(n, f"10.77.0.{octet}") for n, octet in workloads.items()},
        {f"shop/{n}": {"app": n} for n in workloads},
        {f"shop/{n}": Service(n, "shop", (f"10.96.0.{octet}",), (), ()) for n, octet in services.items()},
        tuple(a_policy(n, app=n) for n in sorted(policies)),
        routes={r.key: r for r in (Route("HTTPRoute", n, "shop", (), (), age) for n, age in routes.items())},
        traffic={t.key: t for t in (TrafficPolicy(n, "shop", "shop/a", age) for n, age in traffic.items())},
    ),
    st.dictionaries(names, st.integers(1, 3)),
    st.dictionaries(names, st.integers(1, 3)),
    st.sets(names),
    st.dictionaries(names, st.integers(1, 3)),
    st.dictionaries(names, st.integers(1, 3)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(worlds, st.booleans()), min_size=1, max_size=8), st.integers(0, 2))
def test_a_node_that_follows_deltas_knows_what_a_new_one_is_told(steps: list[tuple[World, bool]], tombs: int) -> None:
    """Whatever revisions it skips, and however few removals the publisher remembers."""
    limit, publish._MAX_TOMBSTONES = publish._MAX_TOMBSTONES, tombs
    try:
        source = Source(World())
        node = Snapshot.empty().apply(source.publisher.update("node-a", None))
        known = source.publisher.scoped("node-a")
        for world, listens in steps:
            source.publish(world)
            if not listens:
                continue
            update = source.publisher.update("node-a", (node.epoch, node.revision), known)
            node, known = node.apply(update), source.publisher.scoped("node-a")
            fresh = Snapshot.empty().apply(source.publisher.update("node-a", None))
            assert (node.revision, node.policies, node.peer_auths) == (fresh.revision, fresh.policies, fresh.peer_auths)
            assert list(node.policies) == sorted(known[0], key=lambda policy: policy.key)
            assert dict(node.workloads) == world.workloads
            assert dict(node.services) == world.services
            assert (node.routes, node.traffic) == (world.routes, world.traffic)
    finally:
        publish._MAX_TOMBSTONES = limit


def test_of_many_policies_a_node_is_told_of_those_that_changed() -> None:
    deny, allow, gone = (Policy(name, "shop", action, ()) for name, action in zip("dag", Action, strict=False))
    source = Source(replace(a_world(a_workload("a")), policies=(allow, deny, gone)))
    known, base = source.publisher.scoped("node-a"), (source.publisher.epoch, source.publisher.revision)
    dry = replace(deny, dry_run=True)
    source.publish(replace(a_world(a_workload("a")), policies=(allow, dry)))
    update = source.publisher.update("node-a", base, known)
    assert (update.policies, update.removed, update.has_policies) == ((dry,), ("p:shop/g",), False)
    assert update.changes_policies
    anew = source.publisher.update("node-a", base)
    assert (anew.policies, anew.removed, anew.has_policies) == ((allow, dry), (), True)


def test_a_delta_holds_only_what_changed() -> None:
    source = Source(a_world(a_workload("a"), a_workload("b", "10.77.0.2")))
    base = (source.publisher.epoch, source.publisher.revision)
    source.publish(a_world(a_workload("a"), a_workload("b", "10.77.0.3")))
    update = source.publisher.update("node-a", base, source.publisher.scoped("node-a"))
    assert [w.name for w in update.workloads] == ["b"]
    assert not update.full
    assert not update.has_policies


def test_an_unknown_epoch_or_a_revision_from_the_future_gets_everything() -> None:
    source = Source(a_world(a_workload("a")))
    epoch, revision = source.publisher.epoch, source.publisher.revision
    for base in (("another", revision), (epoch, revision + 1), (epoch, -1)):
        assert source.publisher.update("node-a", base).full


def test_a_base_older_than_the_remembered_removals_gets_everything() -> None:
    limit, publish._MAX_TOMBSTONES = publish._MAX_TOMBSTONES, 0
    try:
        source = Source(a_world(a_workload("a")))
        base = (source.publisher.epoch, source.publisher.revision)
        source.publish(a_world())
        assert source.publisher.update("node-a", base).full
    finally:
        publish._MAX_TOMBSTONES = limit


def test_policies_go_only_to_nodes_whose_workloads_they_can_concern() -> None:
    local, other = a_workload("a"), a_workload("b", "10.77.0.2", node="node-b")
    declared = a_workload("c", "10.77.0.3", node="node-c", meshed=False)
    everywhere, here = a_policy("everywhere", "nodemesh-system"), a_policy("here", app="a")
    policies = (everywhere, here, a_policy("there", app="b"), a_policy("elsewhere", "data"))
    strict = PeerAuth("strict", "shop", Mode.STRICT)
    source = Source(a_world(local, other, declared, policies=policies, peer_auths=(strict,)))
    assert source.publisher.scoped("node-a") == ((everywhere, here), (strict,), ())
    assert source.publisher.scoped("node-b") == ((everywhere, policies[2]), (strict,), ())
    assert source.publisher.scoped("node-c") == ((), (), ())


def test_a_frame_holds_what_its_node_is_to_know_though_nodes_share_frames() -> None:
    here, there = a_workload("a", "10.77.0.1"), a_workload("b", "10.77.0.2", node="node-b")
    source = Source(a_world(here, policies=(a_policy("p", app="b"),)))
    base = (source.publisher.epoch, source.publisher.revision)
    source.publish(a_world(here, there, policies=(a_policy("p", app="b"),)))
    frames = []
    for node in ("node-a", "node-b", "node-c", "node-a"):
        for since in (None, base):
            update = source.publisher.update(node, since, ((), (), ()))
            frames.append(source.publisher.frame(update))
            assert Reader(FromController).feed(frames[-1]) == [update]
    assert frames[0] is frames[4] is frames[6]
    assert frames[1] is frames[5] is frames[7]
    source.publish(a_world(there))
    update = source.publisher.update("node-a", None)
    assert Reader(FromController).feed(source.publisher.frame(update)) == [update]


async def test_a_burst_is_built_once(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    source = Source(a_world())
    nursery.start_soon(source.publisher.run)
    before = source.publisher.rebuilds
    for _ in range(1000):
        source.publisher.touch()
    await source.publisher.settled()
    assert source.publisher.rebuilds == before + 1
    assert source.publisher.covered == 1000


async def test_a_change_made_while_building_is_built_next(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    touched: list[bool] = []

    def build() -> World:
        if len(touched) == 1:
            touched.append(True)
            publisher.touch()
        return World()

    publisher = Publisher(build, MeshConfig())
    nursery.start_soon(publisher.run)
    touched.append(True)
    publisher.touch()
    await publisher.settled()
    assert (publisher.covered, publisher.touches) == (1, 2)
    with trio.fail_after(60):
        await publisher.settled()
