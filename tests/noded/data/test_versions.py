"""A service split by the version of its workloads, in real workers: requests, other tries, connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from mesh.model import Endpoint, MeshConfig, Service, ServicePort, Workload
from mesh.resolve import NO_ENDPOINT, NO_VERSION
from mesh.snapshot import Snapshot
from mesh.sync import Update
from mesh.traffic import (
    Backend,
    Balance,
    HashOn,
    LoadBalancing,
    OutlierDetection,
    Parent,
    RetryPolicy,
    Route,
    RouteRule,
    TrafficPolicy,
)
from noded.data.http.destinations import Destination
from tests.noded.data.lab import Lab, Pod, lab, read_all, server
from tests.noded.data.test_http import GET, VIP, Web, asked, service

real = pytest.mark.root

EVEN = {"v1": 50, "v2": 50}
ENOUGH = 64
"""Requests of which, by chance, all would come to one of two versions once in 10^19 runs."""


async def versions(made: Lab) -> tuple[Pod, Pod, Pod]:
    """A client, and a pod each of two versions of a service."""
    client, old, new = (made.pod(name) for name in ("client", "old", "new"))
    new.version = "v2"
    for pod in (client, old, new):
        await made.enrol(pod)
    return client, old, new


async def split(
    made: Lab, *pods: Pod, protocol: str = "http", balancing: LoadBalancing | None = None, **parts: Any
) -> None:
    made.services = (service(*pods, protocol=protocol),)
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", load_balancing=balancing, **parts),)
    await made.publish()


async def refused(log: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    """What was, for want of an endpoint."""
    with trio.fail_after(60):
        while not (found := [line for line in log() if "UH" in (line.get("flags"), line.get("response_flags"))]):
            await trio.sleep(0.05)
    return found[0]


@real
async def test_requests_go_to_versions_by_weight_and_to_no_other(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        client, old, new = await versions(made)
        one, two = Web(), Web()
        with server(old, 8080, one), server(new, 8080, two):

            async def counted(times: int = ENOUGH) -> tuple[int, int]:
                one.heads.clear()
                two.heads.clear()
                assert (await asked(client, GET * times)).count(b"HTTP/1.1 200 ") == times
                return len(one.heads), len(two.heads)

            await split(made, old, new, versions={"v1": 1, "v2": 0})
            assert await counted() == (ENOUGH, 0)
            await split(made, old, new, versions={"v9": 90, "v2": 10})
            assert await counted() == (0, ENOUGH)
            made.routes = (
                Route(
                    "HTTPRoute", "r", "shop", (Parent("shop/web"),), (RouteRule(backends=(Backend("shop/web", 80),)),)
                ),
            )
            await split(made, old, new, versions=EVEN)
            assert 0 not in await counted()
            rows = await made.query(client, "endpoints")
            assert sorted((row["workload"], row["version_share"]) for row in rows) == [
                ("shop/new", 0.5),
                ("shop/old", 0.5),
            ]

            sticky = LoadBalancing(Balance.MAGLEV, HashOn(header="x-user"))
            await split(made, old, new, versions=EVEN, balancing=sticky)
            for user in range(8):
                before = len(one.heads), len(two.heads)
                await asked(client, b"GET / HTTP/1.1\r\nHost: web\r\nX-User: %d\r\n\r\n" % user * 6)
                assert sorted((len(one.heads) - before[0], len(two.heads) - before[1])) == [0, 6]

            new.version = "v1"  # somebody changes its label: nothing else about the service is new
            await made.publish()
            await split(made, old, new, versions={"v2": 1})
            assert b" 503 " in await asked(client, GET)
            new.version = "v2"
            await made.publish()
            assert await counted(1) == (0, 1)
        assert (await refused(client.request_log))["reason"] == NO_VERSION


@real
async def test_a_version_that_is_down_is_left_by_another_try_and_then_by_all(tmp_path: Path) -> None:
    """With nobody at its port; requests are all answered, by the other version."""
    async with lab(tmp_path) as made:
        client, old, new = await versions(made)
        never_back = OutlierDetection(consecutive_errors=1, interval=3600.0, base_ejection=3600.0, max_ejection=3600.0)
        await split(made, old, new, versions=EVEN, retries=RetryPolicy(), outlier_detection=never_back)
        web = Web()
        with server(old, 8080, web):
            answer = await asked(client, GET * ENOUGH)
            assert answer.count(b"HTTP/1.1 200 ") == ENOUGH
            assert len(web.heads) == ENOUGH
            rows = {row["workload"]: row for row in await made.query(client, "endpoints")}
            assert rows["shop/new"]["ejected_seconds"] > 0
            assert (rows["shop/new"]["version_share"], rows["shop/old"]["version_share"]) == (0.0, 1.0)
            # New weights do not bring it back.
            await split(
                made,
                old,
                new,
                versions={"v1": 1, "v2": 99},
                retries=RetryPolicy(attempts=0),
                outlier_detection=never_back,
            )
            assert (await asked(client, GET * 8)).count(b"HTTP/1.1 200 ") == 8


@real
async def test_connections_that_are_not_http_are_split_too(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        client, old, new = await versions(made)

        def greet(name: bytes) -> object:
            return lambda connection: connection.sendall(name)

        def greeting() -> bytes:
            try:
                with client.connect(VIP, 80) as sock:
                    return read_all(sock)
            except ConnectionResetError:
                return b""

        async def greetings(times: int) -> list[bytes]:
            return [await trio.to_thread.run_sync(greeting) for _ in range(times)]

        with server(old, 8080, greet(b"v1")), server(new, 8080, greet(b"v2")):
            await split(made, old, new, protocol="tcp", versions={"v2": 1})
            assert await greetings(4) == [b"v2"] * 4
            await split(made, old, new, protocol="tcp", versions={"v1": 75, "v2": 25})
            assert sorted(set(await greetings(16))) == [b"v1", b"v2"]
            await split(made, old, new, protocol="tcp", versions={"v9": 1})
            assert await greetings(1) == [b""]
        assert (await refused(client.access_log))["reason"] == NO_VERSION


def test_labels_and_weights_are_followed_with_the_hosts_as_they_were() -> None:
    """As deltas bring them: the service is the same object all the while."""
    pods = [Workload(f"shop/{v}", v, "shop", "web", "n", (at,), True, "web", v) for v, at in (("v1", "a"), ("v2", "b"))]
    endpoints = tuple(Endpoint(pod.addresses[0], pod.uid, (8080,)) for pod in pods)
    web = Service("web", "shop", (VIP,), (ServicePort("http", 80),), endpoints)
    never_back = OutlierDetection()

    def policy(**versions: int) -> TrafficPolicy:
        return TrafficPolicy("t", "shop", "shop/web", outlier_detection=never_back, versions=versions)

    first = Update("e", 1, 0, True, MeshConfig(), tuple(pods), (web,), has_policies=True, traffic=(policy(v2=1),))
    snapshot = Snapshot.empty().apply(first)
    destination = Destination(web, 80, cast(Any, SimpleNamespace(of=lambda _policy: ())), 1, cast(Any, None))

    def told(**changes: Any) -> set[str]:
        nonlocal snapshot
        before = snapshot.revision
        snapshot = snapshot.apply(Update("e", before + 1, before, False, MeshConfig(), **changes))
        destination.refresh(snapshot, (), 0.0)
        return {host.uid for _ in range(ENOUGH) if (host := destination.pick(0.0, None, ())) is not None}

    assert told() == {"shop/v2"}
    hosts = destination.hosts
    assert told(workloads=(replace(pods[0], version="v2"),)) == {"shop/v1", "shop/v2"}
    (one,) = [host for host in hosts.all if host.uid == "shop/v1"]
    hosts.eject(one, 30.0)
    assert told(workloads=(pods[0],), traffic=(policy(v1=99, v2=1),)) == {"shop/v2"}
    assert told(traffic=(policy(v1=9, v2=1),)) == {"shop/v2"}
    assert destination.hosts is hosts
    assert told(traffic=(policy(v9=1),)) == set()
    assert destination.no_endpoint == NO_VERSION
    assert told(traffic=(policy(),)) == {"shop/v1", "shop/v2"}
    assert told(services=(replace(web, endpoints=()),)) == set()
    assert destination.no_endpoint == NO_ENDPOINT
    assert told(removed=("t:shop/t",), services=(web,)) == {"shop/v1", "shop/v2"}
