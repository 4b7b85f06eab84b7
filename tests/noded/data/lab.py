"""Workers alone: real worker processes, real capture, pods in namespaces on one bridge; the test plays control.

Each pod has a worker of its own, as if each were on a node of its own.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.model import MeshConfig, PeerAuth, Policy, RequestAuth, Service, Workload
from mesh.sync import Update
from mesh.traffic import Route, TrafficPolicy
from noded import buckets, source_ports
from noded import link as messages
from noded.link import Link, ToControl, ToWorker
from redirect import thread
from redirect.capture import Capture, new_mark
from redirect.netns import inside, listener, open_netns

PORTS = (15001, 15006, 15008)
TRUST_DOMAIN = "cluster.local"


class Authority:
    """A certificate authority for tests."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test root")])
        self._root = self._build(self._name, self._key, "spiffe://" + TRUST_DOMAIN, ca=True)

    @property
    def roots(self) -> bytes:
        return self._root.public_bytes(serialization.Encoding.PEM)

    def issue(self, *uris: str) -> tuple[bytes, bytes]:
        """Chain and key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self._build(x509.Name([]), key, *uris, ca=False).public_bytes(serialization.Encoding.PEM)
        return chain, key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *uris: str, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), True)
            .sign(self._key, hashes.SHA256())
        )


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


class _Started(NamedTuple):
    """A worker that waits for its configuration."""

    link: socket.socket
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Pod:
    """A pod and, if it is in the mesh, its worker."""

    name: str
    namespace: str
    netns: str
    address: str
    address6: str
    netns_fd: int
    link: Link | None = None
    process: subprocess.Popen[bytes] | None = None
    mark: int = 0
    capture: Capture | None = None
    log: Path | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    version: str = "v1"

    @property
    def uid(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def identity(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/ns/{self.namespace}/sa/{self.name}"

    def open(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A blocking socket inside the pod."""
        with inside(self.netns_fd):
            sock = socket.socket(family, kind)
        sock.settimeout(20)
        return sock

    def connect(self, address: str, port: int) -> socket.socket:
        sock = self.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def access_log(self) -> list[dict[str, Any]]:
        """The worker's access-log lines of connections so far."""
        return self._lines("access")

    def request_log(self) -> list[dict[str, Any]]:
        """Those of requests."""
        return self._lines("request")

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        assert self.log is not None
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line.get("type") == kind]


class Lab:
    """Make pods, put them in the mesh, tell the workers what they are to know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.prefix = f"nmlab{os.getpid() % 100000}{secrets.token_hex(1)}"
        self.pods: dict[str, Pod] = {}
        self.services: tuple[Service, ...] = ()
        self.policies: tuple[Policy, ...] = ()
        self.peer_auths: tuple[PeerAuth, ...] = ()
        self.request_auths: tuple[RequestAuth, ...] = ()
        self.routes: tuple[Route, ...] = ()
        self.traffic: tuple[TrafficPolicy, ...] = ()
        self.settings: dict[str, Any] = {}
        """Of `Configure`, for workers yet to be started."""
        self.config = MeshConfig(TRUST_DOMAIN, ranges=("10.79.0.0/16", "fd00:79::/64"))
        self.revision = 0
        self.switch = f"{self.prefix}-sw"
        self._spare = [self._started(number) for number in range(2)]
        """Workers that nothing was said to yet: they start at the same time, and while pods are made."""
        self._count = len(self._spare)
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")

    def pod(self, name: str, namespace: str = "shop") -> Pod:
        number = len(self.pods) + 2
        netns = f"{self.prefix}-{name}"
        address, address6 = f"10.79.0.{number}", f"fd00:79::{number}"
        ip("netns", "add", netns)
        veth = f"v{number}"
        ip("-n", self.switch, "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", netns)
        ip("-n", self.switch, "link", "set", veth, "master", "br0", "up")
        for args in (
            ("addr", "add", f"{address}/16", "dev", "eth0"),
            ("addr", "add", f"{address6}/64", "dev", "eth0", "nodad"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", "10.79.255.254"),
            ("-6", "route", "add", "default", "via", "fd00:79::ffff"),
        ):
            ip("-n", netns, *args)
        pod = Pod(name, namespace, netns, address, address6, open_netns(f"/run/netns/{netns}"))
        self.pods[name] = pod
        return pod

    def workload(self, pod: Pod) -> Workload:
        return Workload(
            pod.uid, pod.name, pod.namespace, pod.name, pod.netns, (pod.address, pod.address6), pod.link is not None,
            pod.name, pod.version,
        )  # fmt: skip

    async def enrol(self, pod: Pod, *, certificate: bool = True, hold_seconds: float = 5.0) -> None:
        """Start a worker for the pod and capture its traffic; tell nobody yet (see `publish`)."""
        if not self._spare:
            self._spare.append(self._started(self._count))
            self._count += 1
        started = self._spare.pop(0)
        pod.process, pod.log = started.process, started.log
        pod.link = Link(started.link, receives=ToControl, sends=ToWorker)
        tables = [source_ports.create(1), buckets.create()]
        await pod.link.send(messages.Configure(0, True, hold_seconds, 10, 5, "debug", **self.settings), tables)
        for table in tables:
            os.close(table)
        await self.expect(pod, messages.Ready)
        pod.mark = new_mark()
        listeners = [listener(pod.netns_fd, port) for port in PORTS]
        await pod.link.send(
            messages.WorkloadUp(self.workload(pod), {"app": pod.name}, pod.mark),
            [pod.netns_fd, *(sock.fileno() for sock in listeners)],
        )
        await self.expect(pod, messages.WorkloadReady)
        for sock in listeners:
            sock.close()
        if certificate:
            await self.certify(pod)
        pod.capture = Capture(f"/run/netns/{pod.netns}", pod.mark)
        await thread.run(pod.capture.apply)

    def _started(self, number: int) -> _Started:
        ours, theirs = socket.socketpair()
        log = self.folder / f"worker{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _START.format(fd=theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        theirs.close()
        return _Started(ours, process, log)

    async def certify(self, pod: Pod, *uris: str) -> None:
        assert pod.link is not None
        chain, key = self.authority.issue(*(uris or (pod.identity,)))
        in_an_hour = datetime.datetime.now(datetime.UTC).timestamp() + 3600
        await pod.link.send(messages.Certificate(pod.uid, chain, key, self.authority.roots, in_an_hour))

    async def publish(self) -> None:
        """Give every worker the mesh as it is now."""
        await self._tell(
            Update(
                "test", self.revision + 1, 0, True, self.config,
                workloads=tuple(self.workload(p) for p in self.pods.values()), services=self.services,
                has_policies=True, policies=self.policies, peer_auths=self.peer_auths,
                routes=self.routes, traffic=self.traffic, request_auths=self.request_auths,
            )
        )  # fmt: skip

    async def change(self, *policies: Policy, removed: tuple[str, ...] = ()) -> None:
        """Tell them of some policies that come, and of others that go."""
        base = self.revision
        await self._tell(Update("test", base + 1, base, False, self.config, removed=removed, policies=policies))

    async def _tell(self, update: Update) -> None:
        self.revision = update.revision
        for pod in self.pods.values():
            if pod.link is not None:
                await pod.link.send(messages.MeshUpdate(update))
                await self.expect(pod, messages.Applied)

    async def expect(self, pod: Pod, kind: type[Any]) -> Any:
        """The next message of this kind; counts on the way are gathered."""
        assert pod.link is not None
        with trio.fail_after(60):
            while (received := await pod.link.receive()) is not None:
                message, _ = received
                if isinstance(message, messages.Counts):
                    pod.answers.setdefault("counts", []).append(message)
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"worker of {pod.name} ended: {pod.log.read_text() if pod.log else ''}")

    async def query(self, pod: Pod, what: str, arguments: dict[str, str] | None = None) -> list[dict[str, Any]]:
        assert pod.link is not None
        await pod.link.send(messages.Query(1, what, arguments or {}))
        answer = await self.expect(pod, messages.Answer)
        rows: list[dict[str, Any]] = msgpack.unpackb(answer.rows)
        return rows

    def close(self) -> None:
        for pod in self.pods.values():
            if pod.link is not None:
                pod.link.close()
            os.close(pod.netns_fd)
        for started in self._spare:
            started.link.close()
        for process in (*(pod.process for pod in self.pods.values()), *(started.process for started in self._spare)):
            if process is not None:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for netns in [*(pod.netns for pod in self.pods.values()), self.switch]:
            subprocess.run(["ip", "netns", "del", netns], check=False, capture_output=True)


_START = "import os; os.dup2({fd}, 3); from noded.data.worker import main; main()"


@asynccontextmanager
async def lab(folder: Path) -> AsyncIterator[Lab]:
    made = Lab(folder)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def server(pod: Pod, port: int, handle: Any, *, address: str = "0.0.0.0", backlog: int = 512) -> Iterator[list[Any]]:
    """Serve inside the pod: `handle(connection)` in a thread for each. Yields the clients' addresses as they come."""
    sock = pod.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(backlog)
    sock.settimeout(None)
    seen: list[Any] = []

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                handle(connection)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, peer = sock.accept()
            except OSError:
                return
            connection.settimeout(30)
            seen.append(peer)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield seen
    finally:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()


def echo(connection: socket.socket) -> None:
    """Send back what comes, then end."""
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    """Until the end of data."""
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)
