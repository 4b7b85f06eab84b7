from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from controller.kubernetes import objects
from controller.kubernetes.client import Client, Refused, TooLarge, Unreachable
from controller.kubernetes.mirror import Mirror
from controller.kubernetes.objects import Pod
from tests.controller.fake_kubernetes import FakeKubernetes, fake_kubernetes, pod

PODS = "api/v1/pods"
BETA = ("/apis/discovery.k8s.io/v1/endpointslices", "/apis/discovery.k8s.io/v1beta1/endpointslices")


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with fake_kubernetes() as server:
        yield server


@pytest.fixture
async def client(cluster: FakeKubernetes) -> AsyncIterator[Client]:
    async with Client(cluster.access) as client:
        yield client


async def until(true: Callable[[], Any]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.sleep(0.01)


def pods_of(client: Client) -> tuple[Mirror[Pod], list[tuple[str, bool, bool]]]:
    seen: list[tuple[str, bool, bool]] = []
    mirror = Mirror(
        client, ["/api/v1/pods"], objects.pod, lambda key, old, new: seen.append((key, bool(old), bool(new)))
    )
    return mirror, seen


async def test_what_is_there_and_what_comes_and_goes_is_mirrored(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    cluster.put(PODS, pod("a", "10.77.0.1"))
    mirror, seen = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(lambda: mirror.connected)
    cluster.put(PODS, pod("b", "10.77.0.2"))
    cluster.remove(PODS, "a", "shop")
    await until(lambda: set(mirror.objects) == {"shop/b"})
    assert seen == [("shop/a", False, True), ("shop/b", False, True), ("shop/a", True, False)]
    assert mirror.lists == 1


async def test_a_large_collection_is_read_in_pages(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    cluster.page = 3
    for number in range(10):
        cluster.put(PODS, pod(f"p-{number}"))
    mirror, _ = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(mirror.synced.is_set)
    assert len(mirror.objects) == 10
    assert cluster.requests.count("GET /api/v1/pods") >= 4


async def test_a_watch_that_is_cut_goes_on_where_it_was(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    mirror, _ = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(lambda: mirror.connected)
    cluster.cut()
    cluster.put(PODS, pod("meanwhile"))
    await until(lambda: "shop/meanwhile" in mirror.objects)
    assert mirror.lists == 1


async def test_after_410_everything_is_listed_again_and_what_vanished_meanwhile_is_gone(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    cluster.put(PODS, pod("stays"))
    cluster.put(PODS, pod("goes"))
    mirror, seen = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(lambda: mirror.connected)
    cluster.stop()
    cluster.remove(PODS, "goes", "shop")
    cluster.put(PODS, pod("new"))
    cluster.compact()
    cluster.start()
    await until(lambda: set(mirror.objects) == {"shop/stays", "shop/new"})
    assert mirror.lists == 2
    assert seen[2:] == [("shop/new", False, True), ("shop/goes", True, False)]  # and nothing of what stayed as it was


async def test_while_the_server_is_away_the_last_known_state_stays(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    cluster.put(PODS, pod("a"))
    mirror, _ = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(lambda: mirror.connected)
    cluster.stop()
    await until(lambda: not mirror.connected)
    assert set(mirror.objects) == {"shop/a"}
    cluster.put(PODS, pod("b"))
    cluster.start()
    await until(lambda: set(mirror.objects) == {"shop/a", "shop/b"})


async def test_a_version_that_the_server_lacks_is_passed_over_for_the_one_it_has(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    cluster.put(
        "apis/discovery.k8s.io/v1beta1/endpointslices",
        {
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.77.0.1"], "conditions": {}}],
        },
    )
    mirror = Mirror(client, BETA, objects.endpoint_slice, lambda *_: None)
    nursery.start_soon(mirror.run)
    await until(mirror.synced.is_set)
    assert mirror.objects["shop/web-1"].backends[0].ready


async def test_a_kind_that_is_not_installed_is_empty_until_it_is(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.mirror._ABSENT_SECONDS", 0.05)
    path = "apis/security.istio.io/v1/authorizationpolicies"
    mirror = Mirror(client, [f"/{path}"], lambda body: str(body["metadata"]["name"]), lambda *_: None, optional=True)
    nursery.start_soon(mirror.run)
    await until(mirror.synced.is_set)
    assert not mirror.served
    cluster.kinds[path] = "AuthorizationPolicy"
    cluster.put(path, {"metadata": {"name": "deny", "namespace": "shop"}})
    await until(lambda: mirror.objects == {"shop/deny": "deny"})
    del cluster.kinds[path]
    cluster.cut()
    await until(lambda: mirror.objects == {})


async def test_a_page_too_large_to_hold_is_asked_for_in_smaller_ones(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.client._MAX_ANSWER", 100_000)
    for number in range(40):
        cluster.put(PODS, pod(f"p-{number}", annotations={"large": "x" * 20_000}))
    mirror, _ = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(mirror.synced.is_set)
    assert len(mirror.objects) == 40
    assert mirror.lists == 1
    with pytest.raises(TooLarge):
        await client.get("/api/v1/pods")


async def test_an_object_that_cannot_be_read_stays_as_it_was_and_the_others_go_on(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery
) -> None:
    cluster.put(PODS, pod("a", "10.77.0.1"))
    mirror, _ = pods_of(client)
    nursery.start_soon(mirror.run)
    await until(lambda: mirror.connected)
    cluster.put(PODS, pod("a", "10.77.0.2") | {"status": "nonsense"})
    cluster.put(PODS, pod("b", "10.77.0.3"))
    await until(lambda: "shop/b" in mirror.objects)
    assert mirror.objects["shop/a"].addresses == ("10.77.0.1",)
    assert mirror.lists == 1


@pytest.mark.parametrize(
    "event",
    [
        {"type": "ADDED", "object": None},
        {"type": "ADDED", "object": {}},
        {"type": "MODIFIED", "object": {"metadata": {"name": "x"}}},
        {"type": "ERROR", "object": {"code": "many"}},
        {"type": "BOOKMARK", "object": {"metadata": None}},
        {},
    ],
)
async def test_events_that_make_no_sense_end_the_watch_and_not_the_mirror(
    cluster: FakeKubernetes,
    client: Client,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    event: dict[str, Any],
) -> None:
    hostile, watch = [event], client.watch

    @asynccontextmanager
    async def watching(*given: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        async def nonsense() -> AsyncIterator[dict[str, Any]]:
            yield hostile.pop()

        async with watch(*given) as events:
            yield nonsense() if hostile else events

    monkeypatch.setattr(client, "watch", watching)
    mirror, _ = pods_of(client)
    nursery.start_soon(mirror.run)
    cluster.put(PODS, pod("a", "10.77.0.1"))
    await until(lambda: not hostile and "shop/a" in mirror.objects and mirror.connected)
    cluster.put(PODS, pod("b", "10.77.0.2"))
    await until(lambda: "shop/b" in mirror.objects)


async def test_one_not_found_does_not_make_policies_vanish(
    cluster: FakeKubernetes, client: Client, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.mirror._ABSENT_SECONDS", 0.01)
    path = "apis/security.istio.io/v1/authorizationpolicies"
    cluster.kinds[path] = "AuthorizationPolicy"
    cluster.put(path, {"metadata": {"name": "deny", "namespace": "shop"}})
    seen: list[str | None] = []
    mirror = Mirror(
        client, [f"/{path}"], lambda b: str(b["metadata"]["name"]), lambda _k, _o, new: seen.append(new), optional=True
    )
    nursery.start_soon(mirror.run)
    await until(lambda: mirror.connected)
    get, denials = client.get, [Refused(404, "NotFound", "not now")]

    async def starting(*given: str, **query: str) -> dict[str, Any]:
        if denials:
            raise denials.pop()
        return await get(*given, **query)

    monkeypatch.setattr(client, "get", starting)
    cluster.stop()
    cluster.put(PODS, pod("another"))
    cluster.compact()
    cluster.start()
    await until(lambda: mirror.lists == 2)
    assert not denials
    assert seen == ["deny"]


async def test_errors_tell_a_refusal_from_no_answer(cluster: FakeKubernetes, client: Client) -> None:
    with pytest.raises(Refused, match="not found") as refused:
        await client.get("/api/v1/namespaces/shop/pods/none")
    assert (refused.value.code, refused.value.reason) == (404, "NotFound")
    cluster.put(PODS, pod("a", uid="one"))
    with pytest.raises(Refused, match=r"metadata\.uid: Invalid value"):
        await client.merge("/api/v1/namespaces/shop/pods/a", {"metadata": {"uid": "two"}})
    async with Client(type(cluster.access)("http://127.0.0.1:1")) as nobody:
        with pytest.raises(Unreachable):
            await nobody.get("/api/v1/pods")
