"""Simulated nodes: what `noded` says to a controller, over real connections, without workloads, workers or rules.

A node joins with its pod's token, acknowledges each update when it has read it, enrols the pods that it is assigned,
and asks for a certificate for each. All nodes are in one process; an update that many are sent alike is decoded once.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh import sync
from mesh.codec import decode
from mesh.model import Enrolment
from redirect.netns import inside

_LENGTH = struct.Struct(">I")
_JOINING = 16
"""At once: the controller takes only so many from one address that have not said who they are."""

Stream = trio.SSLStream[trio.SocketStream]


class FleetError(RuntimeError):
    """A simulated node lost its connection, or was refused."""


@dataclass
class View:
    """What a node knows of one namespace."""

    namespace: str
    known: set[str] = field(default_factory=set)
    """Workloads, by uid, and those of them that are `meshed`."""
    meshed: set[str] = field(default_factory=set)
    endpoints: dict[str, frozenset[str]] = field(default_factory=dict)
    """Addresses, by the service's name."""
    policies: frozenset[str] = frozenset()
    """Names of authorization policies."""

    def apply(self, update: sync.Update) -> None:
        """Take over what an update says."""
        if update.full:
            self.known, self.meshed, self.endpoints = set(), set(), {}
        for workload in update.workloads:
            if workload.namespace == self.namespace:
                self.known.add(workload.uid)
                (self.meshed.add if workload.meshed else self.meshed.discard)(workload.uid)
        for service in update.services:
            if service.namespace == self.namespace:
                self.endpoints[service.name] = frozenset(entry.address for entry in service.endpoints)
        for key in update.removed:
            kind, _, name = key.partition(":")
            if kind == "w":
                self.known.discard(name)
                self.meshed.discard(name)
            elif kind == "s":
                self.endpoints.pop(name.partition("/")[2], None)
            elif kind == "p":
                self.policies -= {name.partition("/")[2]}
        if update.has_policies:
            self.policies = frozenset()
        self.policies |= {policy.name for policy in update.policies}


class Question:
    """Something that is to become true of every node's view; `Fleet.ask` before what makes it true."""

    def __init__(self, holds: Callable[[View], bool], nodes: set[str]) -> None:
        self._holds, self._missing = holds, nodes
        self._last = 0.0
        self._answered = trio.Event()

    @property
    def missing(self) -> int:
        """Of how many nodes it is not true yet."""
        return len(self._missing)

    def look(self, node: str, view: View) -> bool:
        """Whether it is true of all nodes, now that this one's view has changed."""
        if node in self._missing and self._holds(view):
            self._missing.discard(node)
            self._last = trio.current_time()
        if not self._missing:
            self._answered.set()
        return not self._missing

    async def answered(self) -> float:
        """When it became true of the last node (trio's clock)."""
        await self._answered.wait()
        return self._last


class Fleet:
    """All of the nodes. `netns`: a descriptor of the namespace from where the controllers are reached at `address`."""

    def __init__(self, netns: int, address: tuple[str, int], roots: str, namespace: str) -> None:
        self._netns, self._address, self._roots, self._namespace = netns, address, roots, namespace
        key = ec.generate_private_key(ec.SECP256R1())  # one for all: making keys is none of the controller's work
        self.key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        self.csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        self._limit = trio.CapacityLimiter(_JOINING)
        self._questions: list[Question] = []
        self.nodes: list[SimulatedNode] = []
        self.refusals: list[str] = []

    async def start(self, name: str, token: str, nursery: trio.Nursery) -> None:
        """Join and connect; returns when the node has its first update. It lives in the nursery."""
        async with self._limit:
            node = SimulatedNode(self, name, View(self._namespace))
            await node.join(token)
            await nursery.start(node.run)
        self.nodes.append(node)

    def ask(self, holds: Callable[[View], bool], nodes: Iterable[str] | None = None) -> Question:
        """When will this be true of all nodes, or of these? It must not be yet."""
        question = Question(holds, {node.name for node in self.nodes} if nodes is None else set(nodes))
        self._questions.append(question)
        return question

    def changed(self, node: str, view: View) -> None:
        """A node has read an update."""
        self._questions = [question for question in self._questions if not question.look(node, view)]

    async def connect(self, chain: bytes | None) -> Stream:
        """A stream to a controller, of a node with this certificate or none."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.check_hostname = False
        tls.load_verify_locations(cadata=self._roots)
        if chain is not None:
            memory = os.memfd_create("simulated-node", os.MFD_CLOEXEC)
            with os.fdopen(memory, "wb") as file:
                file.write(chain + self.key)
                file.flush()
                tls.load_cert_chain(f"/proc/self/fd/{memory}")
        with inside(self._netns):
            raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        tcp = trio.socket.from_stdlib_socket(raw)
        await tcp.connect(self._address)
        stream = trio.SSLStream(trio.SocketStream(tcp), tls, https_compatible=True)
        await stream.do_handshake()
        return stream


class SimulatedNode:
    """One node."""

    def __init__(self, fleet: Fleet, name: str, view: View) -> None:
        self._fleet, self.name, self.view = fleet, name, view
        self._chain = b""
        self._stream: Stream
        self._sending = trio.Lock()
        self._requests = 0
        self._asked: dict[int, tuple[str, str]] = {}
        """What a request was about: the kind, and the workload's uid."""
        self._mine: dict[str, str] = {}
        """Enrolled, by uid: the pod's own UID."""
        self.received = 0
        """Bytes of frames, inside TLS."""
        self.updates = 0
        self.certificates = 0

    async def join(self, token: str) -> None:
        """Get the node's certificate."""
        async with await self._fleet.connect(None) as self._stream:
            await self._send(sync.Join(token, self.name, self._fleet.csr))
            answer = await anext(aiter(_Frames(self._stream)))
        match decode(sync.FromController, answer):
            case sync.Joined(chain):
                self._chain = chain
            case other:
                raise FleetError(f"{self.name} could not join: {other}")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be connected until cancelled. Reports when the first update is there."""
        fleet, started = self._fleet, False
        self._stream = await fleet.connect(self._chain)
        await self._send(sync.Hello(sync.PROTOCOL, "simulated", "", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping)
            async for body in _Frames(self._stream):
                self.received += len(body) + _LENGTH.size
                await self._take(_decoded(body))
                if self.updates and not started:
                    started = True
                    task_status.started()
        raise FleetError(f"the controller closed the connection of {self.name}")

    async def _take(self, message: object) -> None:
        match message:
            case sync.Update():
                self.updates += 1
                self.view.apply(message)
                self._fleet.changed(self.name, self.view)
                await self._send(sync.Ack(message.revision))
            case sync.Assign(pods):
                await self._reconcile(pods)
            case sync.Enrolled(request):
                _, uid = self._asked.pop(request)
                await self._send(sync.Sign(self._about("certificate", uid), uid, self._fleet.csr))
            case sync.Signed(request):
                del self._asked[request]
                self.certificates += 1
            case sync.Refused(request, reason):
                self._fleet.refusals.append(f"{self.name}, {' of '.join(self._asked.pop(request, ('',)))}: {reason}")
            case sync.Ping():
                await self._send(sync.Pong())

    async def _reconcile(self, pods: tuple[sync.Assignment, ...]) -> None:
        wanted = {f"{pod.namespace}/{pod.name}": pod for pod in pods if pod.addresses}
        for uid in self._mine.keys() - wanted.keys():
            del self._mine[uid]
            await self._send(sync.Withdraw(uid))
        for uid, pod in wanted.items():
            if self._mine.get(uid) != pod.pod:
                self._mine[uid] = pod.pod
                labels = {**pod.labels, sync.POD_UID: pod.pod}
                workload = Enrolment(pod.name, pod.namespace, pod.service_account, labels, pod.addresses)
                await self._send(sync.Enrol(self._about("enrolment", uid), workload))

    def _about(self, kind: str, uid: str) -> int:
        """The number of a new request."""
        self._requests += 1
        self._asked[self._requests] = (kind, uid)
        return self._requests

    async def _ping(self) -> None:
        while True:
            await trio.sleep(sync.PING_SECONDS)
            await self._send(sync.Ping())

    async def _send(self, message: object) -> None:
        data = sync.frame(message, sync.FromNode)
        async with self._sending:
            await self._stream.send_all(data)


class _Frames:
    """The frames' bodies as they arrive, undecoded, until the peer closes."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._buffer = stream, bytearray()

    def __aiter__(self) -> _Frames:
        return self

    async def __anext__(self) -> bytes:
        buffer = self._buffer
        while True:
            if len(buffer) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
                if len(buffer) >= end:
                    body = bytes(buffer[_LENGTH.size : end])
                    del buffer[:end]
                    return body
            data = await self._stream.receive_some(256 * 1024)
            if not data:
                raise StopAsyncIteration
            buffer += data


@lru_cache(maxsize=8)
def _decoded(body: bytes) -> object:
    return decode(sync.FromController, body)
