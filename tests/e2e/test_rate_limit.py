"""One rate limit for clients on three hosts, whose daemons share its tokens through the controller."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from testbed import mesh
from testbed.mesh import Testbed
from testbed.spec import parse
from tests.e2e.pods import Bed, eventually

RATE, BURST = 100, 50
CLIENTS = ("one", "two", "three")
PODS = """\
nodes: [a, b, c]
pods:
  - {name: one, node: a, namespace: shop, serviceAccount: one, labels: {app: one}}
  - {name: two, node: b, namespace: shop, serviceAccount: two, labels: {app: two}}
  - {name: three, node: c, namespace: shop, serviceAccount: three, labels: {app: three}}
  - {name: web, node: a, namespace: shop, serviceAccount: web, labels: {app: web}}
services:
  - {name: web, namespace: shop, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
POLICY = f"""\
apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web, namespace: shop}}
spec:
  targetRef: {{kind: Service, name: web}}
  rateLimits:
    - {{name: all, requests: {RATE}, burst: {BURST}, scope: Mesh}}
"""
GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    file = tmp_path_factory.mktemp("bed") / "limit.yaml"
    name = f"l{os.getpid()}"
    file.write_text(f"name: {name}\n{PODS}")
    made = Testbed(parse(file.read_text(), file))
    said: list[str] = []
    try:
        made.up(file.read_text(), file, said.append)
        yield Bed(made)
    finally:
        mesh.down(name)


def answer(conn: socket.socket) -> None:
    while conn.recv(4096):
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Load:
    """Clients on all hosts that ask as fast as they are answered; answers by client and status."""

    def __init__(self, bed: Bed, vip: str) -> None:
        self._bed, self._vip = bed, vip
        self._over = threading.Event()
        self.answers: Counter[tuple[str, bytes]] = Counter()
        self.errors: list[OSError] = []
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in CLIENTS for _ in range(3)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def admitted(self) -> int:
        return sum(number for (_, status), number in list(self.answers.items()) if status == b"200")

    def by_client(self) -> dict[str, int]:
        return {name: self.answers[name, b"200"] for name in CLIENTS}

    def _ask(self, name: str) -> None:
        try:
            with self._bed[name].connect(self._vip, 80) as conn:
                while not self._over.is_set():
                    conn.sendall(GET)
                    data = b""
                    while b"\r\n\r\n" not in data:
                        if not (more := conn.recv(65536)):
                            raise ConnectionError("closed in the middle of an answer")
                        data += more
                    self.answers[name, data[9:12]] += 1
                    self._over.wait(0.005)
        except OSError as error:
            self.errors.append(error)


def measure(load: Load, seconds: float, what: str) -> tuple[int, int, float]:
    """Admitted, all, and the seconds in which that was."""
    admitted, everything, began = load.admitted(), load.answers.total(), time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    admitted, everything = load.admitted() - admitted, load.answers.total() - everything
    rate, clients = admitted / elapsed, load.by_client()
    print(f"{what}: {admitted} of {everything} admitted in {elapsed:.2f} s, {rate:.1f}/s; since the start {clients}")
    return admitted, everything, elapsed


def test_one_limit_holds_for_all_hosts_with_the_controller_or_without(bed: Bed) -> None:
    processes = bed.testbed.processes
    with bed["web"].serve(answer), bed.resources(POLICY):
        vip = bed.service("web")
        with Load(bed, vip) as load:
            eventually(load.admitted)
            for _ in range(4):  # on a machine with too much to do, a daemon may stand still for seconds
                admitted, everything, elapsed = measure(load, 10, "with the controller")
                assert admitted <= BURST + RATE * elapsed * 1.05
                if admitted >= RATE * elapsed * 0.95:
                    break
            else:
                assert everything < 3 * RATE * elapsed, "the limit was not used up"
            processes.kill("controller")
            try:
                admitted, _, elapsed = measure(load, 8, "without")
                assert BURST < admitted <= BURST + RATE * elapsed * 1.05
            finally:
                bed.testbed.start_controller()
            admitted, _, elapsed = measure(load, 15, "with a new controller")
            assert BURST < admitted <= BURST + RATE * elapsed * 1.05
    assert load.errors == []
    assert {status for _, status in load.answers} == {b"200", b"429"}
