"""A node for tests: the node's side of `mesh.sync` over a real TLS connection, in trio.

`Credential` is what a joined node holds; `join` gets one. `NodeClient` is a connection that answers pings and
acknowledges updates by itself (unless `ack` says otherwise), keeps the updates in `updates`, and correlates requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mesh.model import Enrolment
from mesh.sync import (
    PROTOCOL,
    Ack,
    Enrol,
    Enrolled,
    FromController,
    FromNode,
    Hello,
    Join,
    Joined,
    Ping,
    Pong,
    Reader,
    Refused,
    Sign,
    Signed,
    Update,
    frame,
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A node's certificate chain, key and roots, all PEM."""

    chain: bytes
    key: bytes
    roots: bytes


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr_for(key: ec.EllipticCurvePrivateKey, *, uri: str = "spiffe://evil/ns/a/sa/b", name: str = "evil") -> bytes:
    """A request that also asks for a subject and a SAN, which a controller must ignore."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def root_hash_in(token: str) -> str:
    """`controller_root_sha256` of a join token."""
    head = token.split(".")[1]
    found: str = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["controller_root_sha256"]
    return found


def uris_of(pem: bytes) -> list[str]:
    san = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return san.value.get_values_for_type(x509.UniformResourceIdentifier)


def tls_context(credential: Credential | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    if credential is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(cadata=credential.roots.decode())
    memory = os.memfd_create("test-node")
    with os.fdopen(memory, "wb") as file:
        file.write(credential.chain + credential.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    return context


async def dial(port: int, credential: Credential | None = None) -> trio.SSLStream[trio.SocketStream]:
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, tls_context(credential), https_compatible=True)
    await stream.do_handshake()
    return stream


async def receive(stream: trio.abc.ReceiveStream, reader: Reader) -> list[Any]:
    """The next messages; empty when the controller has closed."""
    while True:
        data = await stream.receive_some(65536)
        if not data:
            return []
        if messages := reader.feed(bytes(data)):
            return messages


async def join(port: int, token: str, node: str, key: ec.EllipticCurvePrivateKey | None = None) -> Credential | Refused:
    """Come in with a token, checking the controller's root against it first."""
    key = key or new_key()
    stream = await dial(port)
    async with stream:
        leaf = stream.getpeercert(binary_form=True)
        assert leaf is not None
        await stream.send_all(frame(Join(token.rpartition(".")[2], node, csr_for(key)), FromNode))
        (answer,) = await receive(stream, Reader(FromController))
    if isinstance(answer, Refused):
        return answer
    assert isinstance(answer, Joined)
    root = x509.load_pem_x509_certificate(answer.roots)
    assert hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest() == root_hash_in(token)
    x509.load_der_x509_certificate(leaf).verify_directly_issued_by(root)
    return Credential(answer.chain, pem_of(key), answer.roots)


class NodeClient:
    """One authenticated connection. Use `connected`."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], *, ack: bool | Callable[[Update], bool]) -> None:
        self.stream = stream
        self.ack = ack
        self.updates: list[Update] = []
        self.messages: list[Any] = []
        """Everything received that is neither an update, a ping nor an answer."""
        self.closed = trio.Event()
        self._answers: dict[int, Any] = {}
        self._changed = trio.Event()
        self._requests = 0
        self._sending = trio.Lock()

    async def run(self) -> None:
        reader = Reader(FromController)
        try:
            while messages := await receive(self.stream, reader):
                for message in messages:
                    await self._take(message)
                self._changed.set()
                self._changed = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed.set()
        self._changed.set()

    async def _take(self, message: Any) -> None:
        if isinstance(message, Update):
            self.updates.append(message)
            if self.ack(message) if callable(self.ack) else self.ack:
                await self.send(Ack(message.revision))
        elif isinstance(message, Ping):
            await self.send(Pong())
        elif isinstance(message, Enrolled | Signed) or (isinstance(message, Refused) and message.request):
            self._answers[message.request] = message
        else:
            self.messages.append(message)

    async def send(self, message: object) -> None:
        async with self._sending:
            await self.stream.send_all(frame(message, FromNode))

    async def until(self, done: Any, what: str = "what was expected") -> Any:
        """Wait until `done()` is true (and return it), at most 10 s."""
        with trio.move_on_after(10):
            while not (found := done()):
                if self.closed.is_set():
                    raise AssertionError(f"connection closed while waiting for {what}; messages: {self.messages}")
                await self._changed.wait()
            return found
        raise AssertionError(f"waited in vain for {what}; updates: {self.updates}; messages: {self.messages}")

    async def enrol(self, workload: Enrolment) -> Enrolled | Refused:
        self._requests += 1
        request = self._requests
        await self.send(Enrol(request, workload))
        answer: Enrolled | Refused = await self.until(lambda: self._answers.pop(request, None), "Enrolled")
        return answer

    async def sign(self, uid: str, csr: bytes) -> Signed | Refused:
        self._requests += 1
        request = self._requests
        await self.send(Sign(request, uid, csr))
        answer: Signed | Refused = await self.until(lambda: self._answers.pop(request, None), "Signed")
        return answer


@asynccontextmanager
async def connected(
    port: int,
    credential: Credential,
    *,
    epoch: str = "",
    revision: int = 0,
    workloads: tuple[Enrolment, ...] = (),
    ack: bool | Callable[[Update], bool] = True,
) -> AsyncIterator[NodeClient]:
    """A connection that has said Hello."""
    stream = await dial(port, credential)
    client = NodeClient(stream, ack=ack)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            await client.send(Hello(PROTOCOL, "test", epoch, revision, workloads))
            yield client
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await trio.aclose_forcefully(stream)


def workload(name: str, address: str, *, namespace: str = "shop", account: str = "web", **labels: str) -> Enrolment:
    return Enrolment(name, namespace, account, labels, (address,))
