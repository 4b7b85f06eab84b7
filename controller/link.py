"""The server that nodes connect to: TLS 1.3, certificate optional, who comes in and how many.

A connection without a certificate may do one thing: show a join token and get one. A connection with one is a node's;
a newer connection of the same node replaces the older, which is most likely dead without having said so. One with the
controller's own identity is another replica's (see `controller.forwarding`).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import trio
from cryptography import x509

from controller.ca import Authority, Issued, signer_of
from controller.enrol import Refusal
from controller.forwarding import FromReplica, ReplicaSession
from controller.session import Broken, NodeStatus, Parts, Session
from mesh.codec import DecodeError
from mesh.identity import IdentityError, controller_identity, parse_node_uri, renew_at
from mesh.sync import (
    MAX_FRAME,
    MAX_FRAME_BEFORE_HELLO,
    FromController,
    FromNode,
    Hello,
    Join,
    Joined,
    Reader,
    Refused,
    frame,
)

_log = logging.getLogger(__name__)
_HELLO_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_MAX_STRANGERS = 512
"""Connections that have not yet said who they are; one more is closed at once."""
_MAX_STRANGERS_EACH = 32
"""Those of one address, so that no single host keeps the nodes out."""
_CROWD_LOG_SECONDS = 10.0
_SERVER_LIFE = timedelta(hours=24)


class ServerTls:
    """The controller's own certificate as an SSL context, made anew at half of its life and when the CA changes."""

    def __init__(self, authority: Authority, names: list[str], clock: Callable[[], float]) -> None:
        self._authority, self._names, self._clock = authority, names, clock
        self._context: ssl.SSLContext | None = None
        self._renew_at = 0.0
        self._generation = 0

    @property
    def trust_domain(self) -> str:
        """The mesh's."""
        return self._authority.trust_domain

    def context(self) -> ssl.SSLContext:
        """The one to accept with now."""
        if self._context is None or self._generation != self._authority.generation or self._clock() >= self._renew_at:
            self._context, self._generation = self._make(), self._authority.generation
        return self._context

    def client_context(self) -> ssl.SSLContext:
        """One to connect to another replica with. Who answers is to be checked by `is_controller`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        self._load(context)
        return context

    def is_controller(self, certificate: bytes) -> bool:
        """Whether a certificate (DER), verified by TLS, has the controller's own identity."""
        return _uri_of(certificate) == controller_identity(self.trust_domain).uri

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # a resumed session would skip the look at the certificate
        context.verify_mode = ssl.CERT_OPTIONAL
        issued = self._load(context)
        self._renew_at = renew_at(issued.not_before, issued.not_after, 0.0)
        return context

    def _load(self, context: ssl.SSLContext) -> Issued:
        """A new certificate and the roots."""
        issued, key = self._authority.server_credential(self._names, _SERVER_LIFE, self._clock())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._authority.bundle.decode())
        # `ssl` loads keys from files only, and a key is not to be on a disk.
        memory = os.memfd_create("controller-key", os.MFD_CLOEXEC)
        with os.fdopen(memory, "wb") as file:
            file.write(issued.chain + key)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        return issued


class LinkServer:
    """Accepts nodes and keeps what is known of each connection."""

    def __init__(self, parts: Parts, tls: ServerTls) -> None:
        self._parts, self._tls = parts, tls
        self.statuses: dict[str, NodeStatus] = {}
        self._live: dict[str, trio.CancelScope] = {}
        self._strangers: Counter[str] = Counter()
        """By address."""
        self._crowd_logged = -math.inf
        self.accepted = 0
        """Connections since the start, and those of them that were `refused`."""
        self.refused = 0

    def rejecting(self) -> int:
        """How many connected nodes rejected what they were last sent."""
        return sum(bool(self.statuses[node].last_nack) for node in self._live)

    def connected(self, node: str) -> bool:
        """Whether the node has a connection now."""
        return node in self._live

    def disconnect(self, node: str) -> None:
        """End a node's connection and what is known of it, because it was forgotten."""
        if (scope := self._live.pop(node, None)) is not None:
            scope.cancel()
        self.statuses.pop(node, None)

    async def serve(self, listener: socket.socket) -> NoReturn:
        """Serve on the listener, which it owns, until cancelled."""
        await trio.serve_listeners(self._handle, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])

    async def _handle(self, tcp: trio.SocketStream) -> None:
        self.accepted += 1
        peer = "unknown"
        try:
            peer = str(tcp.socket.getpeername()[0])
            await self._guarded(tcp, peer)
        except (Broken, DecodeError, Refusal) as error:
            self.refused += 1
            _log.warning("node connection ended", extra={"peer": peer, "reason": str(error)})
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            reason = error.__cause__ or error
            _log.info("node connection broke", extra={"peer": peer, "reason": str(reason) or type(reason).__name__})
        except Exception:  # whatever one node says or is to be told, the others go on
            self.refused += 1
            _log.exception("bug in serving a node", extra={"peer": peer})
        finally:
            await trio.aclose_forcefully(tcp)

    async def _guarded(self, tcp: trio.SocketStream, peer: str) -> None:
        if self._strangers[peer] >= _MAX_STRANGERS_EACH or self._strangers.total() >= _MAX_STRANGERS:
            self._crowded(peer)
            return
        stream = trio.SSLStream(tcp, self._tls.context(), server_side=True, https_compatible=True)
        self._strangers[peer] += 1
        try:
            with trio.move_on_after(_HELLO_SECONDS) as scope:
                await stream.do_handshake()
                certificate: bytes | None = stream.getpeercert(binary_form=True)
                replica = certificate is not None and self._tls.is_controller(certificate)
                node = self._node_of(certificate) if certificate and not replica else None
                known = replica or node is not None
                reader = Reader(FromReplica if replica else FromNode, MAX_FRAME if known else MAX_FRAME_BEFORE_HELLO)
                messages = await _some(stream, reader)
                if not messages:  # a node that joins looks at the certificate first, and comes back
                    return
                first, *early = messages
                if not known:
                    await self._join(stream, first)
            if scope.cancelled_caught:
                raise Broken(f"said nothing for {_HELLO_SECONDS:.0f} s")
        except Refusal as refusal:
            with trio.move_on_after(_CLOSE_SECONDS):
                await stream.send_all(frame(Refused(0, str(refusal)), FromController))
                await stream.aclose()
            raise
        finally:
            self._strangers[peer] -= 1
            if not self._strangers[peer]:
                del self._strangers[peer]
        if replica:
            await self._serve_replica(stream, reader, messages)
        elif node is not None:
            if not isinstance(first, Hello):
                raise Broken(f"sent {type(first).__name__} before Hello")
            await self._serve_node(node, stream, reader, first, early, peer)

    def _crowded(self, peer: str) -> None:
        """Too many strangers: counted, and logged now and then, since whoever floods us would flood the log, too."""
        self.refused += 1
        if trio.current_time() - self._crowd_logged >= _CROWD_LOG_SECONDS:
            self._crowd_logged = trio.current_time()
            _log.warning(
                "connections that have not said who they are: too many, closed at once",
                extra={"peer": peer, "of_peer": self._strangers[peer], "of_all": self._strangers.total()},
            )

    def _node_of(self, certificate: bytes) -> str:
        """The node that a certificate, verified by TLS, stands for. Raises `Refusal`."""
        parsed = x509.load_der_x509_certificate(certificate)
        try:
            trust_domain, node = parse_node_uri(_uri_of(certificate))
        except IdentityError as error:
            raise Refusal(f"the certificate is not a node's: {error}") from error
        if trust_domain != self._tls.trust_domain:
            raise Refusal(f"the certificate is of trust domain {trust_domain}")
        self._parts.enroller.authenticate(node, f"{parsed.serial_number:x}")
        return node

    async def _join(self, stream: trio.SSLStream[trio.SocketStream], message: object) -> None:
        if not isinstance(message, Join):
            raise Refusal(f"{type(message).__name__} without a certificate: join first")
        issued = await self._parts.enroller.admit(message.token, message.node, message.csr)
        joined = Joined(issued.chain, self._parts.roots(), self._tls.trust_domain)
        await stream.send_all(frame(joined, FromController))
        await stream.aclose()

    async def _serve_replica(
        self, stream: trio.SSLStream[trio.SocketStream], reader: Reader, messages: list[object]
    ) -> None:
        try:
            await ReplicaSession(self._parts.limits, stream, reader).run(messages)
        except* (DecodeError, trio.TooSlowError) as group:
            raise Broken(f"replica: {str(_only(group)) or 'silent, or does not read'}") from group
        except* (trio.BrokenResourceError, trio.ClosedResourceError) as group:
            _log.info("another replica's connection broke", extra={"reason": str(_only(group).__cause__)})

    async def _serve_node(
        self,
        node: str,
        stream: trio.SSLStream[trio.SocketStream],
        reader: Reader,
        hello: Hello,
        early: list[object],
        peer: str,
    ) -> None:
        if (older := self._live.get(node)) is not None:
            _log.info("a newer connection replaces an older", extra={"node": node})
            older.cancel()
        now = self._parts.clock()
        before = self.statuses.get(node)
        own = {"", *(workload.uid for workload in hello.workloads)}
        signers = {uid: key for uid, key in before.signers.items() if uid in own} if before else {}
        status = NodeStatus(True, now, now, peer, hello.software[:200], signers=signers)
        self.statuses[node] = status
        if shown := stream.getpeercert(binary_form=True):
            certificate = x509.load_der_x509_certificate(shown)
            status.signers[""] = signer_of(certificate)
            status.certificate_expires = certificate.not_valid_after_utc.timestamp()
        with trio.CancelScope() as scope:
            self._live[node] = scope
            try:
                _log.info("node connected", extra={"node": node, "peer": peer, "software": status.software})
                await Session(self._parts, node, stream, reader, status).run(hello, early)
            except* (Broken, DecodeError) as group:
                raise Broken(f"node {node}: {_only(group)}") from group
            except* (trio.BrokenResourceError, trio.ClosedResourceError) as group:
                _log.info("node connection broke", extra={"node": node, "reason": str(_only(group).__cause__)})
            finally:
                status.connected = False
                status.since = self._parts.clock()
                if self._live.get(node) is scope:
                    del self._live[node]
        _log.info("node disconnected", extra={"node": node})


def _uri_of(certificate: bytes) -> str:
    """The one SPIFFE id of a certificate (DER), or `""`."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        san = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = san.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return ""
    return uri


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _some(stream: trio.abc.ReceiveStream, reader: Reader) -> list[object]:
    """The next message or messages; none if the peer closes first."""
    while True:
        data = await stream.receive_some(64 * 1024)
        if not data:
            return []
        if messages := reader.feed(bytes(data)):
            return messages
