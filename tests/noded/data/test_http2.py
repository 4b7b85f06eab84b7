"""HTTP/2 and gRPC through a real pair of workers, with other people's clients and servers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.model import Action, Policy, Rule
from mesh.traffic import Backend, Parent, Retry, RetryBudget, Route, RouteRule, TrafficPolicy
from tests.noded.data import grpc_peer
from tests.noded.data.lab import Lab, Pod, lab, server
from tests.noded.data.test_http import BY_METHOD, VIP, Web, logged, service

pytestmark = pytest.mark.root


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Lab, Pod, Pod]]:
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        await made.publish()
        yield made, client, web


def command(pod: Pod, *args: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{pod.netns}", *args]


async def run(pod: Pod, *args: str) -> str:
    """What a program in the pod prints."""
    with trio.fail_after(120):
        done = await trio.run_process(command(pod, *args), capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


@contextmanager
def running(pod: Pod, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command(pod, *args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def nghttpd(pod: Pod, folder: Path, *options: str) -> Iterator[None]:
    """nghttpd with a file `x` of 700 bytes."""
    (folder / "x").write_bytes(b"hello\n" * 117)
    with running(pod, "nghttpd", "--no-tls", *options, "-d", str(folder), "8080"):
        deadline = time.monotonic() + 20
        while True:
            try:
                pod.connect("127.0.0.1", 8080).close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                break
        yield


@contextmanager
def grpc_server(pod: Pod) -> Iterator[None]:
    with running(pod, sys.executable, "-P", grpc_peer.__file__, "serve", "8080") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield


async def called(pod: Pod, *checks: str) -> dict[str, Any]:
    """What a gRPC client in the pod sees of these checks of `grpc_peer.Caller`."""
    out = await run(pod, sys.executable, "-P", grpc_peer.__file__, "call", f"{VIP}:80", ",".join(checks))
    found: dict[str, Any] = {}
    for line in out.splitlines():
        found |= json.loads(line)
    return found


# -- other people's HTTP/2 ---------------------------------------------------------------------------------------------


async def test_requests_of_one_connection_are_answered_together(pair: tuple[Lab, Pod, Pod], tmp_path: Path) -> None:
    _, client, pod = pair
    with nghttpd(pod, tmp_path):
        out = await run(client, "h2load", "-n", "2000", "-c", "2", "-m", "100", f"http://{VIP}/x")
        assert "status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx" in out
        out = await run(client, "h2load", "-n", "200", "-c", "1", "-m", "20", "-d", "/etc/services", f"http://{VIP}/x")
        assert "status codes: 200 2xx, 0 3xx, 0 4xx, 0 5xx" in out
    line = (await logged(client, 2200))[0]
    assert (line["protocol"], line["response_code"], line["response_flags"]) == ("HTTP/2", 200, "-")


async def test_a_head_request_keeps_its_length_and_has_no_body(pair: tuple[Lab, Pod, Pod], tmp_path: Path) -> None:
    _, client, pod = pair
    with nghttpd(pod, tmp_path):
        out = await run(client, "curl", "-sSI", "-m", "20", "--http2-prior-knowledge", f"http://{VIP}/x")
    assert out.startswith("HTTP/2 200")
    assert "content-length: 702" in out


async def test_an_http1_client_reaches_a_backend_that_declares_http2(
    pair: tuple[Lab, Pod, Pod], tmp_path: Path
) -> None:
    made, client, pod = pair
    made.services = (service(pod, protocol="http2"),)
    await made.publish()
    with nghttpd(pod, tmp_path):
        url = f"http://{VIP}/x"
        assert await run(client, "curl", "-sS", "-m", "20", "--http1.1", url, url) == "hello\n" * 234
        head = await run(client, "curl", "-sSI", "-m", "20", "--http1.1", url)
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "content-length: 702\r\n" in head
        upgrade = "-H", "Connection: upgrade", "-H", "Upgrade: websocket"
        assert await run(client, "curl", "-sS", "-m", "20", "--http1.1", *upgrade, url) == "hello\n" * 117
        posted = await run(
            client, "curl", "-sS", "-m", "20", "-H", "Transfer-Encoding: chunked", "-d", "@/etc/services", url
        )
        assert posted == "hello\n" * 117


async def test_an_http2_client_is_led_to_a_backend_that_declares_http1(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.services = (service(protocol="http2"), service(pod, protocol="http", name="old", vip="10.96.0.2"))
    rules = (RouteRule((), (Backend("shop/old", 80),)),)
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web"),), rules),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        out = await run(
            client, "curl", "-sS", "-m", "20", "--http2-prior-knowledge", "-H", "Cookie: a=b", "-d", "abc",
            f"http://{VIP}/x?y",
        )  # fmt: skip
        web.answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        web.answer += b"Trailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
        heads = await run(client, "curl", "-sSi", "-m", "20", "--http2-prior-knowledge", f"http://{VIP}/")
        web.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        length = await run(client, "curl", "-sSI", "-m", "20", "--http2-prior-knowledge", f"http://{VIP}/")
    assert out == "ok"
    assert heads.startswith("HTTP/2 103 \r\nlink: </a>\r\n\r\nHTTP/2 200 \r\n")
    assert heads.endswith("\r\n\r\nokx-sum: 1\r\n")
    assert "content-length: 5" in length
    head = web.heads[0]
    assert head.startswith(b"POST /x?y HTTP/1.1\r\nhost: 10.96.0.1\r\n")
    assert b"\r\ncookie: a=b" in head
    assert web.bodies[0] == b"abc"


async def test_a_backend_that_is_killed_under_load_costs_no_request(pair: tuple[Lab, Pod, Pod], tmp_path: Path) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod, other),)
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web"),), (RouteRule(retry=Retry(3, (503,), 0.01)),)),)
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", retry_budget=RetryBudget(min_per_second=1000)),)
    await made.publish()
    # an answer to HEAD is one frame: none can have begun
    load = "h2load", "-n", "20000", "-c", "4", "-m", "20", "-H", ":method: HEAD", f"http://{VIP}/x"
    kills = 0
    with nghttpd(other, tmp_path), running(client, *load) as process, trio.fail_after(100):
        while process.poll() is None:
            with nghttpd(pod, tmp_path):
                await trio.sleep(0.2)
            kills += 1
        assert process.stdout is not None
        out = process.stdout.read().decode()
    assert "status codes: 20000 2xx, 0 3xx, 0 4xx, 0 5xx" in out, out
    assert kills


# -- gRPC --------------------------------------------------------------------------------------------------------------

SEEN = {
    "unary": ["hello", "me", "word"],
    "large": True,
    "many": True,
    "failure": ["FAILED_PRECONDITION", "no, ünder no circumstances: 100 %", [0, 255], "r1"],
    "unknown": "UNIMPLEMENTED",
    "deadline": ["DEADLINE_EXCEEDED", "yes"],
    "to_client": True,
    "to_server": "200 10000000",
    "both": True,
    "watchers": True,
}


@pytest.mark.parametrize("protocol", ["grpc", ""])
async def test_all_kinds_of_calls_come_through(pair: tuple[Lab, Pod, Pod], protocol: str) -> None:
    made, client, pod = pair
    made.services = (service(pod, protocol=protocol),)
    await made.publish()
    with grpc_server(pod):
        assert await called(client, *SEEN) == SEEN


async def test_all_kinds_of_calls_come_through_where_policies_ask_for_requests(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.services = (service(pod, protocol="grpc"),)
    made.policies = (Policy("all", "shop", Action.ALLOW, (Rule(),)), replace(BY_METHOD, dry_run=True))
    await made.publish()
    with grpc_server(pod):
        assert await called(client, *SEEN) == SEEN
    assert {line["direction"] for line in await logged(pod)} == {"inbound"}


async def test_a_policy_denies_in_grpcs_own_way(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.services = (service(pod, protocol="grpc"),)
    made.policies = (Policy("none", "shop", Action.ALLOW, ()), replace(BY_METHOD, dry_run=True))
    await made.publish()
    with grpc_server(pod):
        assert await called(client, "denied") == {"denied": ["PERMISSION_DENIED", "RBAC: access denied"]}
    assert (await logged(pod))[0]["response_flags"] == "RBAC"


async def test_no_endpoint_is_unavailable_to_grpc(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, _pod = pair
    made.services = (service(protocol="grpc"),)
    await made.publish()
    code, details = (await called(client, "denied"))["denied"]
    assert code == "UNAVAILABLE"
    assert "no endpoint" in details
