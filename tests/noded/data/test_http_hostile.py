"""Clients and backends that mean no good, against a real pair of workers: both route and check requests."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from mesh.model import Action, Operation, Policy, Rule
from noded import link as messages
from tests.mesh.test_http1_hostile import BAD_REQUESTS, BAD_RESPONSES
from tests.noded.data.lab import Lab, Pod, lab, read_all, server
from tests.noded.data.test_http import GET, VIP, Web, asked, logged, service

pytestmark = pytest.mark.root

_RESET = struct.pack("ii", 1, 0)
CHECKED = Policy("all", "shop", Action.ALLOW, (Rule(operations=(Operation(paths=("/*",)),)),))
"""Has the destination's node read requests, too."""


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Lab, Pod, Pod]]:
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        made.policies = (CHECKED,)
        await made.publish()
        yield made, client, web


class Strict:
    """A backend that reads with another parser, a strict one."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes, bytes]] = []
        """Method, target and body of those that were complete."""
        self.errors: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        head: h11.Request | None = None
        body = b""
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                if "peer unexpectedly closed" not in str(error) and "incomplete" not in str(error):
                    self.errors.append(str(error))
                return
            if event is h11.NEED_DATA:
                parser.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                self.requests.append((head.method, head.target, body))
                connection.sendall(
                    parser.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
                    + parser.send(h11.Data(data=b"ok"))
                    + parser.send(h11.EndOfMessage())
                )
                parser.start_next_cycle()
            else:
                return


def sent(pod: Pod, address: str, port: int, pieces: list[bytes]) -> bytes:
    """All that comes back upon these pieces."""
    with pod.connect(address, port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        parts = []
        try:
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            while data := sock.recv(65536):
                parts.append(data)
        except ConnectionResetError:
            pass
        return b"".join(parts)


BEFORE = b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n"
AFTER = b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_of_what_could_be_read_in_two_ways_a_backend_sees_nothing(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    outsider = made.pod("outsider", "other")
    await made.publish()
    strict = Strict()

    def play() -> None:
        for name, (raw, _status) in BAD_REQUESTS.items():
            whole = BEFORE + raw + AFTER
            ways = [[whole]]
            if len(whole) < 400:
                ways.append([whole[i : i + 1] for i in range(len(whole))])
            for pieces in ways:
                for source, address, port in ((client, VIP, 80), (outsider, pod.address, 8080)):
                    answer = sent(source, address, port, pieces)
                    assert answer.count(b"HTTP/1.1 200 ") <= 1, name
                    assert len(re.findall(rb"HTTP/1\.1 [0-9]", answer)) <= 2, name

    with server(pod, 8080, strict):
        await trio.to_thread.run_sync(play)
    assert {target for _, target, _ in strict.requests} == {b"/before"}
    assert strict.errors == []


GOOD = {
    "absolute form": (b"GET http://web/x?y HTTP/1.1\r\nHost: web\r\n\r\n", (b"GET", b"/x?y", b"")),
    "odd case": (b"PUT /x HTTP/1.1\r\nhOsT: web\r\ncOnTeNt-LeNgTh: 3\r\n\r\nabc", (b"PUT", b"/x", b"abc")),
    "HTTP/1.0": (b"GET /x HTTP/1.0\r\n\r\n", (b"GET", b"/x", b"")),
    "extensions": (
        b"PUT /x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0;c\r\n\r\n",
        (b"PUT", b"/x", b"x"),
    ),
    "smuggled in a body": (
        b"PUT /x HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%b" % (len(AFTER), AFTER),
        (b"PUT", b"/x", AFTER),
    ),
    "a declined upgrade": (
        b"GET /x HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
        (b"GET", b"/x", b""),
    ),
    "dots": (b"GET /a/../x/./y HTTP/1.1\r\nHost: web\r\n\r\n", (b"GET", b"/x/y", b"")),
    "encoded dots": (b"GET /a/%2e%2e/x HTTP/1.1\r\nHost: web\r\n\r\n", (b"GET", b"/x", b"")),
}


@pytest.mark.parametrize(("raw", "seen"), GOOD.values(), ids=GOOD)
async def test_a_backend_sees_the_request_that_was_meant(
    pair: tuple[Lab, Pod, Pod], raw: bytes, seen: tuple[bytes, bytes, bytes]
) -> None:
    _, client, pod = pair
    strict = Strict()
    with server(pod, 8080, strict):
        for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
            answer = await trio.to_thread.run_sync(sent, client, VIP, 80, pieces)
            assert answer.startswith(b"HTTP/1.1 200 ")
    assert strict.requests == [seen, seen]
    assert strict.errors == []


PATHS = (
    b"/admin", b"/admin/", b"//admin", b"/./admin", b"/x/../admin", b"/%61dmin", b"/x/%2e%2e/admin", b"/x/..%2fadmin",
    b"/x%2f..%2fadmin", b"/x\\..\\admin", b"/x/..;/admin", b"/admin;a=b", b"/admin?x", b"/admin#x", b"/ADMIN",
    b"/%2561dmin", b"http://web/admin", b"HTTP://WEB/admin", b"http://web:80/admin", b"/x/.%2e/admin", b"/%2e/admin",
    b"/%00/../admin", b"///admin", b"/x/%2E%2E//admin",
)  # fmt: skip


async def test_no_way_of_writing_a_path_gets_past_a_policy(pair: tuple[Lab, Pod, Pod]) -> None:
    """What the backend then sees is what was checked: neither /admin nor anything a server would take for it."""
    made, client, pod = pair
    admin = Operation(paths=("/admin", "/admin/*"))
    made.policies = (CHECKED, Policy("no", "shop", Action.DENY, (Rule(operations=(admin,)),)))
    await made.publish()
    strict = Strict()

    def play() -> None:
        for path in PATHS:
            sent(client, VIP, 80, [b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n" % path])

    with server(pod, 8080, strict):
        await trio.to_thread.run_sync(play)
    assert strict.errors == []
    for _, target, _ in strict.requests:
        assert target.partition(b"?")[0].rstrip(b"/") != b"/admin"
        assert b"/../" not in target
        assert b"/./" not in target


async def test_a_backend_that_talks_nonsense_hurts_nobody_else(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    bad: list[bytes] = []

    def backend(connection: socket.socket) -> None:
        head = connection.recv(65536)
        if head.startswith(b"GET /bad"):
            connection.sendall(bad[0])
        while head.startswith(b"GET /good"):
            path = head.split()[1]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))
            head = connection.recv(65536)

    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    nonsense = {**BAD_RESPONSES, "an answer too many": extra + extra, "bytes behind it": extra + b"\0"}
    nonsense |= {
        "nothing": b"",
        "half a head": extra[:20],
        "half a body": extra[:-1],
        "only 1xx": b"HTTP/1.1 100 C\r\n\r\n",
    }
    with server(pod, 8080, backend):
        for number, (name, raw) in enumerate(nonsense.items()):
            bad[:] = [raw]
            answer = await trio.to_thread.run_sync(sent, client, VIP, 80, [b"GET /bad HTTP/1.1\r\nHost: web\r\n\r\n"])
            assert answer.count(b"HTTP/1.1 ") - answer.count(b"HTTP/1.1 1") <= 1, name
            good = b"/good/%d" % number
            answer = await asked(client, b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n" % good)
            assert answer.endswith(b"\r\n\r\n" + good), name


async def test_bytes_on_an_idle_connection_are_nobodys_answer(pair: tuple[Lab, Pod, Pod]) -> None:
    """Two clients share the connections to a backend: what it sends unasked must not be what the second one gets."""
    made, client, pod = pair
    made.policies = ()
    await made.publish()
    idle, spoken = threading.Event(), threading.Event()

    def backend(connection: socket.socket) -> None:
        head = connection.recv(65536)
        path = head.split()[1]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))
        if path == b"/1":
            idle.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            try:
                connection.recv(1)  # until the proxy closes it
            finally:
                spoken.set()
        connection.recv(1)

    with server(pod, 8080, backend) as seen:
        assert (await asked(client, b"GET /1 HTTP/1.1\r\nHost: web\r\n\r\n")).endswith(b"/1")
        idle.set()
        assert await trio.to_thread.run_sync(spoken.wait, 20)
        assert (await asked(client, b"GET /2 HTTP/1.1\r\nHost: web\r\n\r\n")).endswith(b"/2")
    assert len(seen) == 2


async def test_a_client_too_slow_for_the_end_of_an_answer_leaves_the_connection_usable(
    pair: tuple[Lab, Pod, Pod],
) -> None:
    made, client, pod = pair
    made.policies = ()
    await made.publish()
    body = bytes(8 << 20)
    web = Web(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def slow() -> int:
        with client.connect(VIP, 80) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(GET)
            time.sleep(0.3)
            size = 0
            while size < len(body):
                size += len(sock.recv(65536))
            return size

    with server(pod, 8080, web) as seen:
        for _ in range(4):
            assert await trio.to_thread.run_sync(slow) >= len(body)
    assert len(web.heads) == 4
    assert len(seen) == 1


@pytest.mark.parametrize("policies", [(), (CHECKED,)], ids=["routed", "routed and checked"])
async def test_a_backend_that_closes_as_it_is_used_again_fails_no_idempotent_request(
    pair: tuple[Lab, Pod, Pod], policies: tuple[Policy, ...]
) -> None:
    made, client, pod = pair
    made.policies = policies
    await made.publish()
    seen: list[bytes] = []

    def backend(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        seen.append(connection.recv(65536))  # it has taken this one, and closes all the same

    def run() -> tuple[bytes, bytes]:
        with client.connect(VIP, 80) as sock:
            answers = []
            for method in (b"GET", b"GET", b"POST"):
                sock.sendall(b"%b / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n" % method)
                answers.append(sock.recv(65536))
            assert answers[0].startswith(b"HTTP/1.1 200 ")
            return answers[1], answers[2]

    with server(pod, 8080, backend):
        second, third = await trio.to_thread.run_sync(run)
    assert second.startswith(b"HTTP/1.1 200 ")
    assert third.startswith(b"HTTP/1.1 503 "), "what is not idempotent may have been carried out"
    assert [request[:4] for request in seen if request] == [b"GET ", b"POST"]


def rss(pod: Pod) -> int:
    """Of the pod's worker, bytes."""
    assert pod.process is not None
    pages = int(Path(f"/proc/{pod.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("routed", [True, False], ids=["at the source", "at the destination"])
async def test_a_flood_of_pipelined_requests_is_answered_in_bounded_memory(
    pair: tuple[Lab, Pod, Pod], routed: bool
) -> None:
    """`routed`: the source's node reads them, one by one; else it carries bytes, and they come in one flood."""
    made, client, pod = pair
    address, port = (VIP, 80) if routed else (pod.address, 8080)
    no = Operation(methods=("GET",))
    made.policies = (Policy("no", "shop", Action.DENY, (Rule(operations=(no,)),)),)
    await made.publish()
    count = 5_000 if routed else 20_000
    flood = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * count
    first = await trio.to_thread.run_sync(sent, client, address, port, [flood[:26]])
    assert first.startswith(b"HTTP/1.1 403 ")
    before = rss(client), rss(pod)

    def run() -> int:
        with client.connect(address, port) as sock:
            writer = threading.Thread(target=sock.sendall, args=(flood,))
            writer.start()
            seen, tail = 0, b""
            while seen < count:
                data = tail + sock.recv(1 << 20)
                seen += data.count(b"HTTP/1.1 403 ")
                tail = data[-12:]
            writer.join()
            return seen

    assert await trio.to_thread.run_sync(run) == count
    assert {line["direction"] for line in await logged(pod)} == {"inbound"}
    for each, was in zip((client, pod), before, strict=True):
        assert rss(each) - was < 24 << 20


async def test_bodies_of_any_size_and_any_slowness_take_bounded_memory(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    size = 64 << 20
    go = threading.Event()
    before = rss(client), rss(pod)
    stuck: list[int] = []

    def backend(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1000)
        go.wait(20)
        left = size - len(head.partition(b"\r\n\r\n")[2])
        while left:
            left -= len(connection.recv(1 << 20))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))

    def run() -> int:
        with client.connect(VIP, 80) as sock:
            sock.sendall(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % size)
            writer = threading.Thread(target=sock.sendall, args=(bytes(size),))
            writer.start()
            _until_still(lambda: rss(client) + rss(pod))
            stuck.append(rss(client) - before[0])
            stuck.append(rss(pod) - before[1])
            go.set()
            writer.join()
            _until_still(lambda: rss(client) + rss(pod))
            stuck.append(rss(client) - before[0])
            stuck.append(rss(pod) - before[1])
            seen = 0
            while seen < size:
                seen += len(sock.recv(1 << 20))
            return seen

    with server(pod, 8080, backend):
        assert await trio.to_thread.run_sync(run) >= size
    assert max(stuck) < 32 << 20, stuck


def _until_still(measure: Callable[[], int]) -> None:
    """Until it has not changed for a while."""
    was, same = measure(), 0
    while same < 5:
        time.sleep(0.1)
        now = measure()
        same = same + 1 if now == was else 0
        was = now


async def test_half_a_method_and_the_end_do_not_keep_the_worker_busy(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, _pod = pair
    assert client.process is not None

    def cpu() -> float:
        assert client.process is not None
        fields = Path(f"/proc/{client.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    sock = client.connect(VIP, 80)
    with sock:
        sock.sendall(b"GE")
        sock.shutdown(socket.SHUT_WR)
        assert await trio.to_thread.run_sync(read_all, sock) == b""
    was = cpu()
    await trio.sleep(0.5)
    assert cpu() - was < 0.25


# -- ends -------------------------------------------------------------------------------------------------------------


async def ending(made: Lab, pod: Pod, end: Any) -> bytes:
    """What a client gets whose request is under way when `end` is told to the worker of `pod`.

    Another is idle, and one has said nothing yet; at the client's node both are closed before the answer is there.
    """
    client = made.pods["client"]
    started, go = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        while head := connection.recv(4096):
            if b"/slow" in head:
                started.set()
                go.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    idle, busy, silent = (client.connect(VIP, 80) for _ in range(3))
    with server(made.pods["web"], 8080, slow), idle, busy, silent:
        idle.sendall(GET)
        while not (await trio.to_thread.run_sync(idle.recv, 4096)).endswith(b"ok"):
            pass
        busy.sendall(b"POST /slow HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n")
        await trio.to_thread.run_sync(started.wait, 20)
        assert pod.link is not None
        await pod.link.send(end)
        if pod is client:
            assert await trio.to_thread.run_sync(read_all, idle) == b""
            assert await trio.to_thread.run_sync(read_all, silent) == b""
        go.set()
        answer = b""
        while not answer.endswith(b"ok"):
            more = await trio.to_thread.run_sync(busy.recv, 4096)
            assert more, answer
            answer += more
        if pod is client:
            assert await trio.to_thread.run_sync(busy.recv, 1) == b""
        return answer


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "not checked"])
@pytest.mark.parametrize("name", ["client", "web"])
async def test_a_drain_ends_when_the_answers_are_given(pair: tuple[Lab, Pod, Pod], name: str, checked: bool) -> None:
    """Where the destination's node does not read requests, it is the source's that lets go of what is idle."""
    made = pair[0]
    pod = made.pods[name]
    if not checked:
        made.policies = ()
        await made.publish()
    assert (await ending(made, pod, messages.Drain(600))).startswith(b"HTTP/1.1 200 ")
    assert pod.process is not None
    with trio.fail_after(60):
        while pod.process.poll() is None:
            await trio.sleep(0.05)


@pytest.mark.parametrize("name", ["client", "web"])
async def test_a_workload_that_leaves_has_its_answers_first(pair: tuple[Lab, Pod, Pod], name: str) -> None:
    made = pair[0]
    pod = made.pods[name]
    assert (await ending(made, pod, messages.WorkloadDown(pod.uid, 600))).startswith(b"HTTP/1.1 200 ")
    await made.expect(pod, messages.WorkloadGone)


# -- breaking off at every stage --------------------------------------------------------------------------------------


def descriptors(pod: Pod) -> int:
    """Of the pod's worker."""
    assert pod.process is not None
    return len(os.listdir(f"/proc/{pod.process.pid}/fd"))


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly"
REQUESTS = (
    GET + GET,
    b"PUT /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-a: b\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    UPGRADE,
)
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
)


async def test_whatever_breaks_off_at_whatever_stage_leaves_nothing_behind(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    answer: list[tuple[bytes, bool]] = [(ANSWERS[0], False)]

    def backend(connection: socket.socket) -> None:
        connection.recv(65536)
        raw, reset = answer[0]
        connection.sendall(raw)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def leave(raw: bytes, how: str) -> None:
        with client.connect(VIP, 80) as sock:
            sock.settimeout(0.02 if how == "late reset" else 20)
            sock.sendall(raw)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            if how == "half-close":
                sock.shutdown(socket.SHUT_WR)
            try:
                read_all(sock)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def play() -> None:
        for raw in REQUESTS:
            for cut in range(1, len(raw) + 1, 3):
                for how in ("reset", "half-close", "late reset"):
                    leave(raw[:cut], how)
        for raw in ANSWERS:
            for cut in range(0, len(raw) + 1, 3):
                for reset in (False, True):
                    answer[0] = raw[:cut], reset
                    leave(UPGRADE if b" 101 " in raw else GET, "half-close")

    with server(pod, 8080, backend):
        assert (await asked(client, GET)).endswith(b"hello")
        before = descriptors(client), descriptors(pod)
        await trio.to_thread.run_sync(play)
        with trio.fail_after(30):
            while descriptors(client) > before[0] + 1 or descriptors(pod) > before[1] + 1:
                await trio.sleep(0.1)
        answer[0] = ANSWERS[0], False
        assert (await asked(client, GET)).endswith(b"hello")
    for each in (client, pod):
        assert "bug" not in (each.log.read_text() if each.log else "")
        assert [row for row in await made.query(each, "connections") if row["state"] != "open"] == []


async def test_hundreds_of_clients_that_say_nothing_or_half_of_it_hold_up_nobody(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    silent: list[socket.socket] = []
    before = rss(client), rss(pod)
    with server(pod, 8080, Web()):
        try:
            for number in range(600):
                sock = client.connect(VIP, 80)
                silent.append(sock)
                sock.sendall(
                    (b"", b"G", GET[:-1], GET, b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\n")[number % 5]
                )
            assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
            for each, was in zip((client, pod), before, strict=True):
                assert rss(each) - was < 12 << 20
        finally:
            for sock in silent:
                sock.close()
        with trio.fail_after(60):
            while await made.query(client, "connections"):
                await trio.sleep(0.1)


async def test_a_connection_in_use_while_its_backend_joins_the_mesh_is_not_used_again(tmp_path: Path) -> None:
    """It is in plaintext, and the next request may not be."""
    started, go = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        while connection.recv(4096):
            started.set()
            go.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with lab(tmp_path) as made:
        client, pod = made.pod("client"), made.pod("web")
        await made.enrol(client)
        made.services = (service(pod),)
        await made.publish()
        with server(pod, 8080, slow) as seen:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asked, client, GET)
                await trio.to_thread.run_sync(started.wait, 20)
                await made.enrol(pod)
                await made.publish()
                go.set()
            assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
        assert len(seen) == 2
        assert {tunnel["peer"] for tunnel in await made.query(client, "tunnels")} == {pod.address}


async def test_an_idle_connection_is_not_used_for_another_workload_at_its_address(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    web = Web()
    with server(pod, 8080, web):
        assert (await asked(client, GET)).startswith(b"HTTP/1.1 200 ")
        pod.name = "other"  # with the certificate of the one before it
        made.services = (service(pod),)
        await made.publish()
        answer = await asked(client, GET)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert len(web.heads) == 1
