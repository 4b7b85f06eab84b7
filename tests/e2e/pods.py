"""Clients and servers inside the pods of a testbed, as plain sockets of the test's own process.

A socket stays in the network namespace that it was made in, so a thread enters the pod's for that moment only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from redirect.netns import inside
from testbed.mesh import Testbed
from testbed.network import NETNS
from testbed.spec import Node, Pod

PORT = 8080
Handler = Callable[[socket.socket], None]


def echo(conn: socket.socket) -> None:
    """Send back what comes, then the end of data."""
    while data := conn.recv(65536):
        conn.sendall(data)
    conn.shutdown(socket.SHUT_WR)


def read_all(conn: socket.socket) -> bytes:
    """Everything up to the end of data."""
    parts = []
    while data := conn.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def reset(conn: socket.socket) -> None:
    """Close with a RST."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


def talks(conn: socket.socket) -> bool:
    """Whether an echo server is at the other end of a connection."""
    try:
        conn.sendall(b"hello")
        return conn.recv(100) == b"hello"
    except OSError:
        return False


def eventually(check: Callable[[], Any], seconds: float = 15) -> Any:
    """The first true value of `check`; fails with its last value when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


class Server:
    """What a server in a pod has seen."""

    def __init__(self) -> None:
        self.peers: list[str] = []
        """Addresses of its clients, in order."""
        self.errors: list[OSError] = []
        """How connections ended that did not end well."""
        self.ended = 0
        """Connections that are over."""


class Pods:
    """A pod as a place for sockets."""

    def __init__(self, bed: Testbed, pod: Pod | str) -> None:
        self.pod = pod
        self._netns = str(NETNS / bed.spec.netns(pod))
        self.v4, self.v6 = pod.addresses if isinstance(pod, Pod) else ("", "")

    def open(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket in the pod. The caller closes it."""
        fd = os.open(self._netns, os.O_RDONLY)
        try:
            with inside(fd):
                made = socket.socket(family, kind, protocol)
        finally:
            os.close(fd)
        made.settimeout(30)
        return made

    def connect(self, address: str, port: int = PORT, seconds: float = 30) -> socket.socket:
        """A connection from the pod, each of whose steps may take `seconds`. Raises `OSError`."""
        conn = self.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
        conn.settimeout(seconds)
        try:
            conn.connect((address, port))
        except BaseException:
            conn.close()
            raise
        return conn

    def reaches(self, address: str, port: int = PORT, seconds: float = 30) -> bool:
        """Whether a new connection gets through to an echo server. (The mesh accepts before it decides.)"""
        try:
            with self.connect(address, port, seconds) as conn:
                return talks(conn)
        except OSError:
            return False

    @contextlib.contextmanager
    def serve(self, handler: Handler, port: int = PORT) -> Iterator[Server]:
        """A server in the pod, a thread for each connection; all gone at the end of the block."""
        listener = self.open(socket.AF_INET6)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", port))
        listener.listen(4096)
        listener.settimeout(None)
        server, open_now = Server(), set[socket.socket]()

        def one(conn: socket.socket) -> None:
            try:
                handler(conn)
            except OSError as error:
                server.errors.append(error)
            finally:
                open_now.discard(conn)
                conn.close()
                server.ended += 1

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    conn, (address, *_) = listener.accept()
                    server.peers.append(address.removeprefix("::ffff:"))
                    open_now.add(conn)
                    threading.Thread(target=one, args=(conn,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            listener.close()
            for conn in list(open_now):
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)


class Bed:
    """A testbed with its pods by name, for tests."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.pods = {pod.name: Pods(testbed, pod) for pod in testbed.spec.pods}
        self.fabric = Pods(testbed, "fabric")

    def __getitem__(self, name: str) -> Pods:
        return self.pods[name]

    def node(self, pod: str) -> Node:
        """The host of a pod."""
        return self.testbed.spec.node(self.testbed.spec.pod(pod).node)

    def service(self, name: str) -> str:
        """A service's virtual address."""
        services = self.testbed.controller_api("GET", "/v1/services")["items"]
        return str(next(service["addresses"][0] for service in services if service["name"] == name))

    def api(self, pod: str, path: str) -> Any:
        """The list that the noded of a pod's host answers with."""
        return self.testbed.node_api(self.node(pod), "GET", path)["items"]

    def connections(self, pod: str) -> list[dict[str, Any]]:
        """A pod's live connections through its noded."""
        uid = self.testbed.spec.pod(pod).uid
        return [connection for connection in self.api(pod, "/connections") if connection["workload"] == uid]

    def log(self, pod: str) -> str:
        """All that the noded of a pod's host has logged."""
        return self.testbed.processes.log(f"node/{self.node(pod).name}").read_text(errors="replace")

    @contextlib.contextmanager
    def resources(self, text: str) -> Iterator[None]:
        """Resources that hold for the block; every node has them, and has forgotten them, before it goes on."""
        self.testbed.apply({"test": text})
        try:
            self.settle()
            yield
        finally:
            self.testbed.controller_api("POST", "/v1/delete", {"files": [{"name": "test", "text": text}]})
            self.settle()

    def settle(self) -> None:
        """Wait until every connected node has acknowledged the latest revision."""

        def settled() -> bool:
            nodes = self.testbed.controller_api("GET", "/v1/nodes")["items"]
            return all(node["acked_revision"] == node["revision"] for node in nodes if node["connected"])

        eventually(settled)
