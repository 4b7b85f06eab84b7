"""Load while backends die, stall and reset, endpoints come and go, and a node's worker is killed.

One endpoint of two is well at any time, so with retries on every idempotent request must succeed; and none that is not
idempotent may reach a backend twice.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from mesh.model import Policy
from mesh.traffic import RetryBudget, RetryPolicy, TrafficPolicy
from noded.link import Drain
from tests.noded.data.lab import Pod, lab
from tests.noded.data.test_http import VIP, service
from tests.noded.data.test_http_hostile import CHECKED

pytestmark = pytest.mark.root

_RESET = struct.pack("ii", 1, 0)
_TROUBLES = ("refuses", "resets", "resets late", "closes", "busy", "stalls")


class Backend:
    """Counts the ids of the requests that it takes, in whatever mood it is."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self.mood = ""
        self.taken: Counter[bytes] = Counter()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None

    def be(self, mood: str) -> None:
        """Change, at the cost of the connections there are."""
        self.mood = mood
        with self._lock:
            connections = list(self._open)
        if mood in ("refuses", "resets", "resets late"):
            for connection in connections:
                _drop(connection)
        if mood == "refuses":
            self.stop()
        elif self._listener is None:
            self.start()

    def start(self) -> None:
        self._listener = listener = self._pod.open()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 8080))
        listener.listen(512)
        listener.settimeout(None)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            try:
                self._listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(30)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        try:
            while self._answer(connection):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket) -> bool:
        if self.mood == "resets":
            _drop(connection)
            return False
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return False
            data += more
        path = data.split(b" ", 2)[1]
        with self._lock:
            self.taken[path] += 1
        mood = self.mood
        if mood == "resets late":
            _drop(connection)
            return False
        if mood == "closes":
            return False
        if mood == "stalls":
            time.sleep(1)
        status = b"503 Busy" if mood == "busy" else b"200 OK"
        connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(path), path))
        return True


def _drop(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        pass


class Load:
    """Clients that ask one after the other, now and then over a new connection."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self.stop = threading.Event()
        self.answers: list[tuple[bytes, bytes, str]] = []
        """Method, id, and how it ended: a status, or what was wrong."""

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        sock: socket.socket | None = None
        count = 0
        while not self.stop.is_set():
            count += 1
            if sock is None:
                sock = self._pod.connect(VIP, 80)
            method = chance.choice((b"GET", b"GET", b"PUT", b"POST"))
            path = b"/%d-%d" % (number, count)
            ended, keep = self._ask(sock, method, path)
            self.answers.append((method, path, ended))
            if not keep or chance.random() < 0.1:
                sock.close()
                sock = None
            time.sleep(0.002)
        if sock is not None:
            sock.close()

    def _ask(self, sock: socket.socket, method: bytes, path: bytes) -> tuple[str, bool]:
        data = b""
        try:
            sock.sendall(b"%b %b HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi" % (method, path))
            while True:
                more = sock.recv(65536)
                if not more:
                    return "closed", False
                data += more
                head, blank, body = data.partition(b"\r\n\r\n")
                length = [int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
                if blank and len(body) >= length[0]:
                    break
        except OSError as error:
            return repr(error), False
        status = head.split()[1].decode()
        if status == "200" and body != path:
            return f"another's answer: {body!r}", False
        return status, b"connection: close" not in head


@pytest.mark.parametrize("policies", [(), (CHECKED,)], ids=["routed", "routed and checked"])
async def test_with_one_endpoint_well_no_idempotent_request_fails_and_no_other_is_sent_twice(
    tmp_path: Path, policies: tuple[Policy, ...]
) -> None:
    async with lab(tmp_path) as made:
        client, first, second = (made.pod(name) for name in ("client", "first", "second"))
        for pod in (client, first, second):
            await made.enrol(pod)
        retries = RetryPolicy(attempts=3, codes=(503,), per_try_timeout=0.4, backoff=0.002)
        budget = RetryBudget(10_000, 1000)
        made.traffic = (TrafficPolicy("t", "shop", "shop/web", retries=retries, retry_budget=budget),)
        made.policies = policies
        made.services = (service(first, second),)
        await made.publish()
        backends = Backend(first), Backend(second)
        for backend in backends:
            backend.start()
        load = Load(client)
        try:
            with load.running(6):
                for turn, trouble in enumerate(_TROUBLES * 2):
                    well, ill = (first, second) if turn % 2 else (second, first)
                    backends[turn % 2].be(trouble)
                    for pods in ((well, ill), (well,), (ill, well)):
                        made.services = (service(*pods),)
                        await made.publish()
                        await trio.sleep(0.1)
                    backends[turn % 2].be("")
                    made.services = (service(first, second),)
                    await made.publish()
                    await trio.sleep(0.1)
                assert first.process is not None
                first.process.kill()
                await trio.sleep(0.5)
        finally:
            for backend in backends:
                backend.stop()
        first.link = None  # its worker is gone
    wrong = [answer for answer in load.answers if answer[0] != b"POST" and answer[2] != "200"]
    assert wrong == []
    assert all(how in ("200", "503", "502", "504") for _, _, how in load.answers)
    posted = {path for method, path, _ in load.answers if method == b"POST"}
    taken = backends[0].taken + backends[1].taken
    assert [path for path in posted if taken[path] > 1] == []
    assert sum(how == "200" for _, _, how in load.answers) > 100


@pytest.mark.parametrize("policies", [(), (CHECKED,)], ids=["routed", "routed and checked"])
async def test_a_drain_at_the_destination_fails_no_request(tmp_path: Path, policies: tuple[Policy, ...]) -> None:
    """Whatever its method: what the draining worker was sent before the source could know is answered."""
    async with lab(tmp_path) as made:
        client, first, second = (made.pod(name) for name in ("client", "first", "second"))
        for pod in (client, first, second):
            await made.enrol(pod)
        retries = RetryPolicy(attempts=2, codes=(), backoff=0.002)
        budget = RetryBudget(10_000, 1000)
        made.traffic = (TrafficPolicy("t", "shop", "shop/web", retries=retries, retry_budget=budget),)
        made.policies = policies
        made.services = (service(first, second),)
        await made.publish()
        backends = Backend(first), Backend(second)
        for backend in backends:
            backend.start()
        load = Load(client)
        try:
            with load.running(8):
                await trio.sleep(1)
                assert first.link is not None
                await first.link.send(Drain(600))
                assert first.process is not None
                with trio.fail_after(30):
                    while first.process.poll() is None:
                        await trio.sleep(0.05)
                await trio.sleep(0.3)
        finally:
            for backend in backends:
                backend.stop()
        first.link = None
    assert [answer for answer in load.answers if answer[2] != "200"] == []
    assert backends[0].taken
    assert max((backends[0].taken + backends[1].taken).values()) == 1
