"""Requests through a real pair of workers: HTTP/1.1 routed at the source's node."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.model import Action, Endpoint, Operation, Policy, Rule, Service, ServicePort
from mesh.traffic import Backend, Compare, Parent, Retry, Route, RouteMatch, RouteRule
from tests.noded.data.lab import Lab, Pod, lab, read_all, server

pytestmark = pytest.mark.root

VIP = "10.96.0.1"


class Web:
    """A backend that answers what it is told to, and keeps the heads and bodies that it got."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                if not (more := connection.recv(65536)):
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
            while len(data) < length:
                data += connection.recv(65536)
            self.heads.append(head)
            self.bodies.append(data[:length])
            data = data[length:]
            connection.sendall(self.answer)
            if b"connection: close" in self.answer.lower():
                return


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Lab, Pod, Pod]]:
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        await made.publish()
        yield made, client, web


def service(*pods: Pod, protocol: str = "http", name: str = "web", vip: str = VIP) -> Service:
    endpoints = tuple(Endpoint(pod.address, pod.uid, (8080,)) for pod in pods)
    return Service(name, "shop", (vip,), (ServicePort("p", 80, protocol),), endpoints)


def ask(client: Pod, request: bytes, *, vip: str = VIP) -> bytes:
    """Send this, then end; all that comes back."""
    with client.connect(vip, 80) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


async def asked(client: Pod, request: bytes, **other: Any) -> bytes:
    return await trio.to_thread.run_sync(lambda: ask(client, request, **other))


async def logged(pod: Pod, count: int = 1) -> list[dict[str, Any]]:
    """The log lines of at least `count` requests."""
    with trio.fail_after(20):
        while len(lines := pod.request_log()) < count:  # noqa: ASYNC110
            await trio.sleep(0.05)
    return lines


GET = b"GET /a?b=c HTTP/1.1\r\nHost: web\r\n\r\n"


async def test_a_request_and_its_response_come_through(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web()
    with server(pod, 8080, web):
        answer = await asked(client, GET)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nok")
    assert web.heads == [b"GET /a?b=c HTTP/1.1\r\nhost: web"]
    (line,) = await logged(client)
    assert (line["method"], line["path"], line["response_code"], line["response_flags"]) == ("GET", "/a?b=c", 200, "-")
    assert (line["upstream_host"], line["security"]) == (f"{pod.address}:8080", "mutual_tls")


async def test_pipelined_requests_are_answered_in_order(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web()
    with server(pod, 8080, web):
        answer = await asked(client, b"".join(b"GET /%d HTTP/1.1\r\nHost: web\r\n\r\n" % i for i in range(20)))
    assert answer.count(b"HTTP/1.1 200 ") == 20
    assert [head.split()[1] for head in web.heads] == [b"/%d" % i for i in range(20)]


async def test_bodies_of_any_size_stream_both_ways(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    body = bytes(range(256)) * 16_384
    web = Web(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with server(pod, 8080, web):
        head = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % len(body)
        answer = await asked(client, head + body)
    assert web.bodies == [body]
    assert answer.partition(b"\r\n\r\n")[2] == body


async def test_what_is_no_request_gets_400_and_never_reaches_the_backend(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web()
    smuggled = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x"
    with server(pod, 8080, web):
        answer = await asked(client, smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert web.heads == []
    (line,) = await logged(client)
    assert line["response_flags"] == "DPE"


async def test_a_response_that_makes_no_sense_is_answered_with_502(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    twice = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"
    with server(pod, 8080, Web(twice)):
        answer = await asked(client, GET)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert (await logged(client))[0]["response_flags"] == "UPE"


async def test_no_endpoint_is_503_and_says_so(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, _pod = pair
    made.services = (service(),)
    await made.publish()
    answer = await asked(client, GET)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert (await logged(client))[0]["response_flags"] == "UH"


async def test_routes_choose_the_backend_and_what_none_takes_is_404(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod), service(other, name="other", vip="10.96.0.2"))
    rules = (RouteRule((RouteMatch("/v2", Compare.PREFIX),), (Backend("shop/other", 80),)),)
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web"),), rules),)
    await made.publish()
    web, second = Web(), Web(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
    with server(pod, 8080, web), server(other, 8080, second):
        assert (await asked(client, b"GET /v2/x HTTP/1.1\r\nHost: web\r\n\r\n")).endswith(b"other")
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 404 ")
    assert web.heads == []
    assert [line["response_flags"] for line in await logged(client, 2)] == ["-", "NR"]


async def test_a_failed_try_is_repeated_elsewhere(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod, other),)
    rules = (RouteRule(retry=Retry(2, (503,), 0.001)),)
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web"),), rules),)
    await made.publish()
    bad, good = Web(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"), Web()
    with server(pod, 8080, bad), server(other, 8080, good):
        for _ in range(10):
            assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
    assert len(good.heads) == 10
    assert bad.heads


async def test_what_speaks_no_http_on_an_undeclared_port_stays_as_it_is(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.services = (service(pod, protocol=""),)
    await made.publish()

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 hello\r\n" + connection.recv(100))

    with server(pod, 8080, greet):
        assert await asked(client, b"\x00\x01binary") == b"220 hello\r\n\x00\x01binary"


BY_METHOD = Policy(
    "reads", "shop", Action.ALLOW, (Rule(operations=(Operation(http_clauses=("methods",)),)),), {"app": "web"}
)


async def test_a_policy_that_asks_for_requests_has_them_read_at_the_destination(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    web = Web()
    with server(pod, 8080, web):
        made.policies = (replace(BY_METHOD, action=Action.DENY),)
        await made.publish()
        answer = await asked(client, GET)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"RBAC: access denied\n")
        (line,) = await logged(pod)
        assert (line["direction"], line["response_code"], line["response_flags"]) == ("inbound", 403, "RBAC")
        assert web.heads == []
        made.policies = (Policy("all", "shop", Action.ALLOW, (Rule(),)), replace(BY_METHOD, dry_run=True))
        await made.publish()
        assert (await asked(client, GET + GET)).count(b"HTTP/1.1 200 ") == 2
        assert len(web.heads) == 2


async def test_plaintext_is_read_where_a_policy_asks_for_requests(pair: tuple[Lab, Pod, Pod]) -> None:
    made, _client, pod = pair
    outsider = made.pod("outsider", "other")
    made.policies = (replace(BY_METHOD, action=Action.DENY),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):

        def direct() -> bytes:
            with outsider.connect(pod.address, 8080) as sock:
                sock.sendall(GET)
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert (await trio.to_thread.run_sync(direct)).startswith(b"HTTP/1.1 403 ")
        made.policies = (Policy("all", "shop", Action.ALLOW, (Rule(),)), replace(BY_METHOD, dry_run=True))
        await made.publish()
        assert (await trio.to_thread.run_sync(direct)).startswith(b"HTTP/1.1 200 ")
    assert len(web.heads) == 1
