"""What a service's traffic policy does to requests, in real workers."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mesh.model import Service
from mesh.ratelimit import Grant
from mesh.sync import LimitGrants, LimitReports
from mesh.traffic import (
    Balance,
    CircuitBreaker,
    Fault,
    LoadBalancing,
    Parent,
    RateLimit,
    Route,
    RouteMatch,
    RouteRule,
    TrafficPolicy,
)
from tests.noded.data.lab import Lab, Pod, echo, read_all, server
from tests.noded.data.test_http import GET, VIP, Web, asked, logged, pair, service
from tests.noded.data.test_http2 import nghttpd, run

__all__ = ["pair"]
pytestmark = pytest.mark.root
HOUR = 3600.0


def limited(*limits: RateLimit) -> tuple[TrafficPolicy, ...]:
    return (TrafficPolicy("t", "shop", "shop/web", rate_limits=limits),)


def headers(answer: bytes) -> dict[bytes, bytes]:
    head = answer.partition(b"\r\n\r\n")[0]
    return dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])


async def test_requests_over_a_limit_are_429_and_say_when_to_come_again(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("few", 3, HOUR))
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        answer = await asked(client, GET * 5)
    assert (answer.count(b"HTTP/1.1 200 "), answer.count(b"HTTP/1.1 429 ")) == (3, 2)
    assert len(web.heads) == 3
    told = headers(answer[answer.index(b"HTTP/1.1 429 ") :])
    assert told[b"x-ratelimit-limit"] == b"3"
    assert told[b"x-ratelimit-remaining"] == b"0"
    assert 1100 < int(told[b"retry-after"]) <= 1200
    assert told[b"x-ratelimit-reset"] == told[b"retry-after"]
    seen = sorted((line["response_code"], line["response_flags"]) for line in await logged(client, 5))
    assert seen == [(200, "-")] * 3 + [(429, "RL")] * 2


async def test_a_grpc_client_is_told_unavailable(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("one", 1, HOUR))
    await made.publish()
    grpc = b"POST /s/m HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n"
    with server(pod, 8080, Web()):
        answer = await asked(client, GET + grpc)
    assert headers(answer[answer.rindex(b"HTTP/1.1 200 ") :])[b"grpc-status"] == b"14"


async def test_an_abort_may_have_a_status_of_grpc(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    fault = Fault(abort=503, abort_share=10_000, grpc_status=8)
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", fault=fault),)
    await made.publish()
    grpc = b"POST /s/m HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n"
    with server(pod, 8080, Web()):
        assert headers(await asked(client, grpc))[b"grpc-status"] == b"8"
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 503 ")


async def test_only_requests_that_match_count(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("writes", 1, HOUR, matches=(RouteMatch("/a", method="POST"), RouteMatch("/b"))))
    await made.publish()
    with server(pod, 8080, Web()):
        b = b"GET /b HTTP/1.1\r\nHost: web\r\n\r\n"
        answer = await asked(client, GET * 3 + b + b + GET)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"200", b"200", b"429", b"200"]


async def test_a_request_that_one_limit_refuses_takes_nothing_of_the_others(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    limits = RateLimit("all", 3, HOUR), RateLimit("b", 1, HOUR, matches=(RouteMatch("/b"),))
    made.traffic = limited(*limits)
    await made.publish()
    with server(pod, 8080, Web()):
        b = b"GET /b HTTP/1.1\r\nHost: web\r\n\r\n"
        answer = await asked(client, b * 4 + GET * 3)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", *[b"429"] * 3, b"200", b"200", b"429"]


async def test_each_value_of_a_header_has_a_bucket(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("each", 1, HOUR, by_header="x-user"))
    await made.publish()
    with server(pod, 8080, Web()):
        requests = [b"GET / HTTP/1.1\r\nHost: web\r\nX-User: %b\r\n\r\n" % user for user in (b"a", b"a", b"b", b"a")]
        answer = await asked(client, b"".join(requests) + GET * 2)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"429", b"200", b"429", b"200", b"429"]


async def test_a_limit_stays_as_it_is_when_something_else_changes(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("one", 1, HOUR))
    await made.publish()
    with server(pod, 8080, Web()):
        assert b" 200 " in await asked(client, GET)
        made.traffic = limited(RateLimit("one", 1, HOUR), RateLimit("other", 100, HOUR))
        await made.publish()
        assert b" 429 " in await asked(client, GET)
        made.traffic = limited(RateLimit("one", 2, HOUR))
        await made.publish()
        assert b" 200 " in await asked(client, GET)


async def test_tokens_come_back_with_time(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("quick", 5, 1.0, burst=1))
    await made.publish()
    with server(pod, 8080, Web()):
        began, passed = time.monotonic(), 0
        with trio.fail_after(30):
            while passed < 4:
                passed += b" 200 " in await asked(client, GET)
        assert passed <= 1 + 5 * (time.monotonic() - began)


class Slow:
    """A backend that keeps its requests until it is told to go; counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.go = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        self.connections += 1
        while data := connection.recv(4096):
            self.requests.append(data.split()[1])
            self.go.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def guarded(**bounds: int) -> tuple[TrafficPolicy, ...]:
    return (TrafficPolicy("t", "shop", "shop/web", circuit_breaker=CircuitBreaker(**bounds)),)


async def until(true: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.sleep(0.02)


async def test_requests_wait_for_one_of_so_many_connections_and_over_that_are_503(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = guarded(max_connections=1, max_pending=1)
    await made.publish()
    slow = Slow()
    answers: dict[bytes, bytes] = {}

    async def get(path: bytes) -> None:
        answers[path] = await asked(client, b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n" % path)

    with server(pod, 8080, slow):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, b"/1")
            await until(lambda: slow.requests)
            nursery.start_soon(get, b"/2")
            nursery.start_soon(get, b"/3")
            await until(lambda: answers)
            slow.go.set()
    assert sorted(answer[9:12] for answer in answers.values()) == [b"200", b"200", b"503"]
    assert (slow.connections, len(slow.requests)) == (1, 2)
    assert sorted(line["response_flags"] for line in await logged(client, 3)) == ["-", "-", "UO"]


async def test_a_connection_for_another_endpoint_takes_the_place_of_an_idle_one(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod, other),)
    bounds = CircuitBreaker(max_connections=1, max_pending=1)
    balancing = LoadBalancing(Balance.ROUND_ROBIN)
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", load_balancing=balancing, circuit_breaker=bounds),)
    await made.publish()
    web, second = Web(), Web()
    with server(pod, 8080, web), server(other, 8080, second):
        for _ in range(4):
            assert b" 200 " in await asked(client, GET)
    assert (len(web.heads), len(second.heads)) == (2, 2)


async def test_a_connection_carries_so_many_requests_and_no_more(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = guarded(max_requests_per_connection=2)
    await made.publish()
    slow = Slow()
    slow.go.set()
    with server(pod, 8080, slow):
        for _ in range(5):
            assert b" 200 " in await asked(client, GET)
    assert slow.connections == 3


async def test_who_gives_up_makes_room_for_another_to_wait(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = guarded(max_connections=1, max_pending=1)
    made.routes = (
        Route(
            "HTTPRoute",
            "r",
            "shop",
            (Parent("shop/web"),),
            (RouteRule((RouteMatch("/short"),), timeout=0.1), RouteRule()),
        ),
    )
    await made.publish()
    slow = Slow()
    with server(pod, 8080, slow):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, client, GET)
            await until(lambda: slow.requests)
            for _ in range(3):
                assert b" 504 " in await asked(client, b"GET /short HTTP/1.1\r\nHost: web\r\n\r\n")
            slow.go.set()
        assert b" 200 " in await asked(client, GET)


async def test_a_route_s_0s_is_no_limit_whatever_the_policy_says(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", timeout=0.2),)
    made.routes = (
        Route(
            "HTTPRoute",
            "r",
            "shop",
            (Parent("shop/web"),),
            (RouteRule((RouteMatch("/long"),), timeout=-1.0), RouteRule()),
        ),
    )
    await made.publish()
    slow = Slow()
    with server(pod, 8080, slow):
        answers = []

        async def long() -> None:
            answers.append(await asked(client, b"GET /long HTTP/1.1\r\nHost: web\r\n\r\n"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(long)
            await until(lambda: slow.requests)
            assert b" 504 " in await asked(client, GET)
            assert b" 504 " in await asked(client, GET)
            slow.go.set()
    assert b" 200 " in answers[0]


def faulty(pod: Pod, fault: Fault) -> tuple[tuple[Service, ...], tuple[TrafficPolicy, ...]]:
    """A port that is not HTTP."""
    return (service(pod, protocol="tcp"),), (TrafficPolicy("t", "shop", "shop/web", fault=fault),)


async def test_a_connection_that_is_not_http_is_reset_by_a_fault(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.services, made.traffic = faulty(pod, Fault(reset_share=10_000))
    await made.publish()
    with server(pod, 8080, echo) as seen:

        def talk() -> None:
            with pytest.raises(ConnectionResetError), client.connect(VIP, 80) as sock:
                read_all(sock)

        await trio.to_thread.run_sync(talk)
    assert seen == []
    await until(client.access_log)
    assert client.access_log()[0]["flags"] == "FI"


async def test_a_connection_that_is_not_http_is_held_up_by_a_fault(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.services, made.traffic = faulty(pod, Fault(delay=0.3, delay_share=10_000))
    await made.publish()

    def talk() -> bytes:
        with client.connect(VIP, 80) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    with server(pod, 8080, echo):
        began = time.monotonic()
        assert await trio.to_thread.run_sync(talk) == b"hello"
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("meshed", [True, False])
async def test_a_connection_that_is_not_http_is_slowed_down_by_a_fault(
    pair: tuple[Lab, Pod, Pod], meshed: bool
) -> None:
    """Both ways, in a tunnel and in plaintext; no byte is lost, and the end comes after the last."""
    made, client, pod = pair
    target = pod if meshed else made.pod("outside")
    made.services, made.traffic = faulty(target, Fault(bandwidth=400_000, bandwidth_share=10_000))
    await made.publish()
    body = bytes(range(256)) * 1600
    seconds = len(body) / 400_000

    def upload() -> bytes:
        with client.connect(VIP, 80) as sock:
            sock.sendall(body)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def swallow(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(read_all(connection)).digest())

    with server(target, 8080, swallow):
        began = time.monotonic()
        assert await trio.to_thread.run_sync(upload) == hashlib.sha256(body).digest()
        assert time.monotonic() - began >= 0.8 * seconds

    def download() -> bytes:
        with client.connect(VIP, 80) as sock:
            sock.sendall(b"x")
            return read_all(sock)

    def send(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(body)

    with server(target, 8080, send):
        began = time.monotonic()
        assert await trio.to_thread.run_sync(download) == body
        assert time.monotonic() - began >= 0.8 * seconds


async def ask_control(made: Lab, pod: Pod) -> LimitReports:
    """What the worker asks its control process for."""
    message = await made.expect(pod, LimitReports)
    assert isinstance(message, LimitReports)
    return message


async def test_a_limit_of_the_mesh_holds_a_request_until_there_is_a_token(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    assert client.link is not None
    made.traffic = limited(RateLimit("all", 100, HOUR, shared=True))
    await made.publish()
    answers: list[bytes] = []
    given: list[int] = []

    async def get() -> None:
        answers.append(await asked(client, GET))

    async def give(tokens: int, *, plenty: bool = True) -> None:
        assert client.link is not None
        given.append(tokens)
        await client.link.send(LimitGrants({"shop/web/all": Grant(tokens, 1, plenty)}))

    with server(pod, 8080, Web()):
        # A token that comes at once: one that comes after 100 ms, as on a machine with too much to do, comes too late.
        while not answers or b" 200 " not in answers[-1]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get)
                if not answers:
                    reports = (await ask_control(made, client)).reports
                    assert reports["shop/web/all"].wanted > 0
                await give(1)
        await give(0, plenty=False)
        while b" 429 " not in answers[-1]:
            await get()
        assert sum(b" 200 " in answer for answer in answers) == sum(given)
    flags = {line["response_flags"] for line in await logged(client, len(answers))}
    assert flags == {"-", "RL"}


async def test_a_limit_of_the_mesh_that_goes_lets_go_of_who_it_holds(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = limited(RateLimit("all", 100, HOUR, shared=True))
    await made.publish()
    with server(pod, 8080, Web()):
        assert (await asked(client, GET))[9:12] == b"429", "no token ever came"
        reports = await ask_control(made, client)
        assert reports.left == ()
        made.traffic = ()
        await made.publish()
        assert (await asked(client, GET))[9:12] == b"200"
        left = await ask_control(made, client)
        while not left.left:
            left = await ask_control(made, client)
        assert left.left == ("shop/web/all",)


async def test_http2_connections_are_bounded_and_worn_out_likewise(pair: tuple[Lab, Pod, Pod], tmp_path: Path) -> None:
    """Requests find one connection that takes but ten at a time, and wait; each connection carries five hundred."""
    made, client, pod = pair
    made.services = (service(pod, protocol="http2"),)
    made.traffic = guarded(max_connections=1, max_requests_per_connection=500)
    await made.publish()
    with nghttpd(pod, tmp_path, "-m", "10"):
        out = await run(client, "h2load", "-n", "1200", "-c", "4", "-m", "20", f"http://{VIP}/x")
    assert "1200 succeeded, 0 failed, 0 errored" in out
    assert "status codes: 1200 2xx" in out
