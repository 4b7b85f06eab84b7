"""What every register of nodes and workloads promises: the one in SQLite, and the one in the cluster's pods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from controller.ca import Authority
from controller.enrol import Enroller, Refusal
from controller.kubernetes.client import Client
from controller.kubernetes.cluster import Cluster
from controller.kubernetes.register import PodRegister
from controller.register import Register
from controller.store import Store
from controller.tokens import mint
from controller.trust import new_material
from mesh.model import Enrolment
from tests.controller.client import csr_for, new_key, uris_of
from tests.controller.fake_kubernetes import FakeKubernetes, fake_kubernetes, pod

NOW = 1_800_000_000.0
LIFE = timedelta(hours=24)


def workload(name: str, address: str) -> Enrolment:
    return Enrolment(name, "shop", "web", {"app": name}, (address,))


A, B, FAR = workload("a", "10.77.0.1"), workload("b", "10.77.0.2"), workload("far", "10.77.1.1")


class Yard(Protocol):
    """A register with nodes node-a (a and b may run there) and node-b (far); `reopen` is a restart."""

    @property
    def register(self) -> Register: ...

    async def reopen(self, *, at_once: bool = False) -> None: ...


def an_authority() -> Authority:
    authority = Authority("cluster.local")
    authority.adopt(new_material("cluster.local", NOW), "test", NOW)
    return authority


class PlainYard:
    def __init__(self, folder: Path) -> None:
        self._folder, self._authority = folder, an_authority()
        self._store = Store(folder)
        self.register = self._open()
        for node in ("node-a", "node-b"):
            text, token = mint(["shop/*"], node, 3600, -1, "", root_sha256="", now=NOW)
            self._store.add_token(token)
            self.register.join(text, node, csr_for(new_key()))

    def _open(self) -> Enroller:
        return Enroller(
            self._store,
            self._authority,
            ranges=["10.77.0.0/16"],
            service_ranges=[],
            workload_life=LIFE,
            clock=lambda: NOW,
            connected=lambda _node: False,
            changed=lambda: None,
        )

    async def reopen(self, *, at_once: bool = False) -> None:
        self._store.close()
        self._store = Store(self._folder)
        self.register = self._open()

    def close(self) -> None:
        self._store.close()


class ClusterYard:
    register: PodRegister

    def __init__(self, server: FakeKubernetes, nursery: trio.Nursery) -> None:
        self._server, self._nursery, self._authority = server, nursery, an_authority()
        self._life = trio.CancelScope()
        for node in ("node-a", "node-b"):
            server.put("api/v1/nodes", {"metadata": {"name": node}})
            noded = pod(f"noded-{node}", namespace="nodemesh-system", account="noded", node=node, hostNetwork=True)
            server.put("api/v1/pods", noded)
        for entry, node in ((A, "node-a"), (B, "node-a"), (FAR, "node-b")):
            server.put("api/v1/pods", pod(entry.name, entry.addresses[0], node=node))

    async def open(self) -> None:
        await self._nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._life:
            async with Client(self._server.access) as client, trio.open_nursery() as nursery:
                register = PodRegister(
                    client,
                    self._authority,
                    workload_life=LIFE,
                    root_namespace="nodemesh-system",
                    clock=lambda: NOW,
                    changed=lambda: None,
                )
                register.cluster = Cluster(
                    client,
                    changed=lambda: None,
                    pod_changed=register.pod_changed,
                    namespaces_changed=lambda: None,
                )
                for mirror in register.cluster.mirrors:
                    nursery.start_soon(mirror.run)
                nursery.start_soon(register.run)
                await register.cluster.synced()
                self.register = register
                task_status.started()

    async def reopen(self, *, at_once: bool = False) -> None:
        with trio.fail_after(60):
            while self.register._unwritten and not at_once:
                await trio.sleep(0.01)
        self._life.cancel()
        await self.open()


@pytest.fixture(params=["sqlite", "kubernetes"])
async def yard(request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Yard]:
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            plain = PlainYard(tmp_path)
            stack.callback(plain.close)
            yield plain
        else:
            cluster = ClusterYard(await stack.enter_async_context(fake_kubernetes()), nursery)
            await cluster.open()
            yield cluster
            cluster._life.cancel()


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as refusal:
        act()
    return str(refusal.value)


async def test_nodes_are_known(yard: Yard) -> None:
    assert set(yard.register.nodes) == {"node-a", "node-b"}
    assert "join again" in refused(lambda: yard.register.authenticate("node-x", "1"))


async def test_a_certificate_is_for_an_enrolled_workload_of_the_asking_node(yard: Yard) -> None:
    register, csr = yard.register, csr_for(new_key())
    assert "enrol it first" in refused(lambda: register.sign("node-a", "shop/a", csr))
    register.enrol("node-a", A)
    assert uris_of(register.sign("node-a", "shop/a", csr).chain) == ["spiffe://cluster.local/ns/shop/sa/web"]
    assert "enrol it first" in refused(lambda: register.sign("node-b", "shop/a", csr))
    assert uris_of(register.sign("node-b", "", csr).chain) == ["spiffe://cluster.local/node/node-b"]
    assert refused(lambda: register.sign("node-a", "shop/a", b"rubbish"))


async def test_what_is_enrolled_stays_so_after_a_restart(yard: Yard) -> None:
    yard.register.enrol("node-a", A)
    yard.register.enrol("node-b", FAR)
    await yard.reopen()
    enrolled = yard.register.enrolled
    assert {uid: (e.node, e.workload) for uid, e in enrolled.items()} == {
        "shop/a": ("node-a", A),
        "shop/far": ("node-b", FAR),
    }
    assert list(yard.register.uids("node-a")) == ["shop/a"]


async def test_what_is_kept_needs_no_more_time(yard: Yard) -> None:
    yard.register.enrol("node-a", A)
    with trio.fail_after(60):
        await yard.register.kept("node-a", "shop/a")
    await yard.reopen(at_once=True)
    assert set(yard.register.enrolled) == {"shop/a"}


async def test_what_is_withdrawn_is_gone_also_after_a_restart(yard: Yard) -> None:
    yard.register.enrol("node-a", A)
    await yard.reopen()
    yard.register.withdraw("node-b", "shop/a")
    assert set(yard.register.enrolled) == {"shop/a"}
    yard.register.withdraw("node-a", "shop/a")
    yard.register.withdraw("node-a", "shop/a")
    assert not yard.register.enrolled
    await yard.reopen()
    assert not yard.register.enrolled


async def test_a_full_list_replaces_what_the_node_had_and_says_what_is_refused(yard: Yard) -> None:
    yard.register.enrol("node-a", A)
    yard.register.enrol("node-b", FAR)
    assert set(yard.register.replace("node-a", [B, FAR])) == {"shop/far"}
    assert set(yard.register.enrolled) == {"shop/b", "shop/far"}
    await yard.reopen()
    assert set(yard.register.enrolled) == {"shop/b", "shop/far"}


async def test_a_node_cannot_take_anothers_workload_or_address(yard: Yard) -> None:
    yard.register.enrol("node-b", FAR)
    assert "node-b" in refused(lambda: yard.register.enrol("node-a", FAR))
    assert refused(lambda: yard.register.enrol("node-a", workload("a", "10.77.1.1")))
    assert refused(lambda: yard.register.enrol("node-a", workload("a", "127.0.0.1")))
    assert set(yard.register.enrolled) == {"shop/far"}


async def test_a_node_reports_edges_of_the_namespaces_that_it_has(yard: Yard) -> None:
    yard.register.enrol("node-a", A)
    assert yard.register.scope("node-a").touches("shop")
    assert not yard.register.scope("node-a").touches("bank")
