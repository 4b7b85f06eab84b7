"""Requests through a real pair of workers: HTTP/1.1 routed at the source's node."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.model import Action, Endpoint, Operation, Policy, Rule, Service, ServicePort
from mesh.traffic import (
    Backend,
    Balance,
    CircuitBreaker,
    Compare,
    Cors,
    Fault,
    HashOn,
    HeaderEdit,
    LoadBalancing,
    Mirror,
    OutlierDetection,
    Parent,
    PathEdit,
    Redirect,
    Retry,
    Rewrite,
    Route,
    RouteMatch,
    RouteRule,
    TrafficPolicy,
    ValueMatch,
)
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
    with trio.fail_after(60):
        while len(lines := pod.request_log()) < count:
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


async def test_routes_choose_the_backend_what_none_takes_is_404_and_a_backend_that_may_not_be_used_500(
    pair: tuple[Lab, Pod, Pod],
) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod), service(other, name="other", vip="10.96.0.2"))
    rules = (
        RouteRule((RouteMatch("/v2", Compare.PREFIX),), (Backend("shop/other", 80),)),
        RouteRule((RouteMatch("/bank", Compare.PREFIX),), (Backend("bank/b", 80, invalid="RefNotPermitted"),)),
    )
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web"),), rules),)
    await made.publish()
    web, second = Web(), Web(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
    with server(pod, 8080, web), server(other, 8080, second):
        assert (await asked(client, b"GET /v2/x HTTP/1.1\r\nHost: web\r\n\r\n")).endswith(b"other")
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 404 ")
        assert (await asked(client, GET.replace(b"/a", b"/bank"))).startswith(b"HTTP/1.1 500 ")
    assert web.heads == []
    lines = await logged(client, 3)
    assert [line["response_flags"] for line in lines] == ["-", "NR", "NC"]
    assert lines[2]["reason"] == "backend bank/b:80: RefNotPermitted"


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


BY_METHOD = Policy("reads", "shop", Action.ALLOW, (Rule(operations=(Operation(methods=("GET",)),)),), {"app": "web"})


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


def route(*rules: RouteRule) -> Route:
    return Route("HTTPRoute", "r", "shop", (Parent("shop/web"),), rules)


async def test_filters_edit_requests_and_responses(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.routes = (
        route(
            RouteRule(
                (RouteMatch("/old"),),
                request_headers=HeaderEdit(set=(("x-set", "1"),), remove=("x-secret",)),
                response_headers=HeaderEdit(add=(("x-seen", "yes"),)),
                rewrite=Rewrite("other.example", PathEdit.PREFIX, "/new"),
            ),
            RouteRule((RouteMatch("/gone"),), redirect=Redirect("https", "there.example", status=301)),
            RouteRule((RouteMatch("/shared"),), cors=Cors(("https://a.example",), ("PUT",))),
        ),
    )
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        answer = await asked(client, b"GET /old/x?q HTTP/1.1\r\nHost: web\r\nX-Secret: s\r\n\r\n")
        assert b"\r\nx-seen: yes\r\n" in answer
        head = web.heads[0].split(b"\r\n")
        assert head[:2] == [b"GET /new/x?q HTTP/1.1", b"host: other.example"]
        assert b"x-set: 1" in head
        assert not any(b"secret" in line for line in head)
        answer = await asked(client, b"GET /gone HTTP/1.1\r\nHost: web\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 301 ")
        assert b"\r\nlocation: https://there.example/gone\r\n" in answer
        preflight = b"OPTIONS /shared HTTP/1.1\r\nHost: web\r\nOrigin: https://a.example\r\n"
        answer = await asked(client, preflight + b"Access-Control-Request-Method: PUT\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert b"\r\naccess-control-allow-origin: https://a.example\r\n" in answer
    assert len(web.heads) == 1


async def test_a_mirror_gets_a_copy_and_holds_nothing_up(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod), service(other, name="other", vip="10.96.0.2"))
    made.routes = (route(RouteRule(mirrors=(Mirror(Backend("shop/other", 80)),))),)
    await made.publish()
    web, copy = Web(), Web(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    with server(pod, 8080, web), server(other, 8080, copy):
        answer = await asked(client, b"POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello")
        assert answer.startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(60):
            while not copy.bodies:
                await trio.sleep(0.02)
    assert copy.bodies == web.bodies == [b"hello"]
    assert len(await logged(client)) == 1


async def test_time_limits_end_a_try_and_the_whole(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.routes = (
        route(
            RouteRule((RouteMatch("/whole"),), timeout=0.2),
            RouteRule((RouteMatch("/try"),), backend_timeout=0.1, retry=Retry(2, (), 0.001)),
        ),
    )
    await made.publish()
    tries: list[bytes] = []

    def silent(connection: socket.socket) -> None:
        tries.append(connection.recv(4096))
        connection.recv(1)

    with server(pod, 8080, silent):
        assert (await asked(client, b"GET /whole HTTP/1.1\r\nHost: web\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
        assert len(tries) == 1
        assert (await asked(client, b"GET /try HTTP/1.1\r\nHost: web\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
        assert len(tries) == 4
        assert (await asked(client, b"POST /try HTTP/1.1\r\nHost: web\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
        assert len(tries) == 5, "what is not idempotent was repeated"
    assert [line["response_flags"] for line in await logged(client, 3)] == ["UT", "UT,URX", "UT"]


async def test_faults_delay_and_abort(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    matched = (ValueMatch("x-fault", "yes"),)
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", fault=Fault(0.1, 10_000, 418, 10_000, matched)),)
    await made.publish()
    with server(pod, 8080, Web()):
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
        answer = await asked(client, b"GET / HTTP/1.1\r\nHost: web\r\nX-Fault: yes\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 418 ")
    line = (await logged(client, 2))[1]
    assert line["response_flags"] == "FI"
    assert line["duration"] >= 100


async def test_the_circuit_breaker_bounds_what_is_under_way(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", circuit_breaker=CircuitBreaker(max_requests=1)),)
    await made.publish()
    started, go = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        connection.recv(4096)
        started.set()
        go.wait(20)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with server(pod, 8080, slow):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, client, GET)
            await trio.to_thread.run_sync(started.wait, 20)
            assert (await asked(client, GET)).startswith(b"HTTP/1.1 503 ")
            go.set()
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
    assert sorted(line["response_flags"] for line in await logged(client, 3)) == ["-", "-", "UO"]


async def test_a_cookie_keeps_a_client_at_one_endpoint(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    other = made.pod("other")
    await made.enrol(other)
    made.services = (service(pod, other),)
    balancing = LoadBalancing(Balance.MAGLEV, HashOn(cookie="stick"))
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", load_balancing=balancing),)
    await made.publish()
    web, second = Web(), Web()
    with server(pod, 8080, web), server(other, 8080, second):
        answer = await asked(client, GET)
        (line,) = [line for line in answer.split(b"\r\n") if line.startswith(b"set-cookie: stick=")]
        cookie = line.split(b": ")[1].split(b";")[0]
        for _ in range(6):
            answer = await asked(client, b"GET / HTTP/1.1\r\nHost: web\r\nCookie: a=b; %b\r\n\r\n" % cookie)
            assert b"set-cookie" not in answer
    assert sorted((len(web.heads), len(second.heads))) == [0, 7]


async def test_an_upgraded_connection_carries_bytes_both_ways(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def websocket(connection: socket.socket) -> None:
        head = connection.recv(4096)
        assert b"upgrade: websocket" in head.lower()
        connection.sendall(b"HTTP/1.1 101 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        while data := connection.recv(4096):
            connection.sendall(data[::-1])

    def talk() -> bytes:
        with client.connect(VIP, 80) as sock:
            sock.sendall(b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            data = b""
            while not data.endswith(b"first"):
                data += sock.recv(4096)
            assert data.startswith(b"HTTP/1.1 101 ")
            sock.sendall(b"\x81\x00abc")
            assert sock.recv(4096) == b"cba\x00\x81"
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    with server(pod, 8080, websocket):
        assert await trio.to_thread.run_sync(talk) == b""


async def test_a_refused_upgrade_leaves_an_ordinary_connection(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web()
    with server(pod, 8080, web):
        upgrade = b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert (await asked(client, upgrade + GET)).count(b"HTTP/1.1 200 ") == 2
    assert len(web.heads) == 2


async def test_chunks_trailers_and_100_continue_pass(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    got: list[bytes] = []

    def backend(connection: socket.socket) -> None:
        head = connection.recv(4096)
        assert b"expect: 100-continue" in head.lower()
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += connection.recv(4096)
        got.append(data)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n")
        connection.sendall(b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n")

    def talk() -> bytes:
        with client.connect(VIP, 80) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
            sock.sendall(b"4\r\nbody\r\n0\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    with server(pod, 8080, backend):
        answer = await trio.to_thread.run_sync(talk)
    assert got == [b"4\r\nbody\r\n0\r\n\r\n"]
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n")


async def test_a_response_broken_off_is_broken_off_for_the_client_too(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def backend(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    def talk() -> None:
        with client.connect(VIP, 80) as sock:
            sock.sendall(GET)
            with pytest.raises(ConnectionResetError):
                read_all(sock)

    with server(pod, 8080, backend):
        await trio.to_thread.run_sync(talk)
    assert (await logged(client))[0]["response_flags"] == "UC"


async def test_the_answer_to_head_has_the_length_that_get_would_have(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web(b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n")
    with server(pod, 8080, web):
        answer = await asked(client, b"HEAD / HTTP/1.1\r\nHost: web\r\n\r\n" * 2)
    assert answer.count(b"\r\ncontent-length: 77\r\n") == 2


async def test_http_1_0_without_a_host_is_served_and_closed(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    def talk() -> bytes:
        with client.connect(VIP, 80) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return read_all(sock)

    with server(pod, 8080, web):
        answer = await trio.to_thread.run_sync(talk)
    assert answer.endswith(b"\r\n\r\nok")
    assert b"host: 10.96.0.1" in web.heads[0]


async def test_a_request_waits_for_an_endpoint_that_is_not_known_yet(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    known = made.pods.pop("web")
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        async with trio.open_nursery() as nursery:
            answers: list[bytes] = []

            async def ask_early() -> None:
                answers.append(await asked(client, GET))

            nursery.start_soon(ask_early)
            await trio.sleep(0.3)
            assert not answers
            made.pods["web"] = known
            await made.publish()
    assert answers[0].startswith(b"HTTP/1.1 200 ")
    assert (await logged(client))[0]["security"] == "mutual_tls"


async def test_a_denial_by_the_destination_is_403_and_neither_tried_again_nor_held_against_it(
    pair: tuple[Lab, Pod, Pod],
) -> None:
    made, client, pod = pair
    made.policies = (Policy("nobody", "shop", Action.ALLOW, ()),)
    made.routes = (route(RouteRule(retry=Retry(3, (403, 503), 0.001))),)
    made.traffic = (TrafficPolicy("t", "shop", "shop/web", outlier_detection=OutlierDetection(1)),)
    await made.publish()
    with server(pod, 8080, Web()):
        answer = await asked(client, GET)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"RBAC: access denied\n")
        made.policies = ()
        await made.publish()
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(60):
            while not pod.access_log():
                await trio.sleep(0.05)
    assert [line["response_flags"] for line in await logged(client, 2)] == ["RBAC", "-"]
    assert [line["flags"] for line in pod.access_log()] == ["RBAC"]  # the second's connection is kept
