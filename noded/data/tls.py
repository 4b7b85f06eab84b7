"""TLS of tunnels: contexts from PEM in memory, handshakes, and who the peer is.

TLS 1.3 only, ALPN `h2`, both sides authenticate, no tickets and no resumption (an identity is proven afresh each time).
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any

import trio

from mesh.identity import Identity, IdentityError


class HandshakeFailed(Exception):
    """No tunnel: the peer is not who it should be, or does not speak HBONE."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """A workload's certificate, ready for either role."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    not_after: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Session:
    """An established TLS session over memory BIOs."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


def contexts(chain: bytes, key: bytes, roots: bytes, not_after: float) -> Contexts:
    """Build both contexts. Raises `ssl.SSLError` if the PEM is not what it should be.

    `ssl` loads keys only from files, so they pass through a memfd: memory, never a disk.
    """
    fd = os.memfd_create("nodemesh-key", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(key + b"\n" + chain)
        path = f"/proc/self/fd/{fd}"
        made = []
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.check_hostname = False  # identities are SPIFFE ids, compared in `peer_identity`
            context.verify_mode = ssl.CERT_REQUIRED
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.set_alpn_protocols(["h2"])
            context.load_cert_chain(path)
            context.load_verify_locations(cadata=roots.decode("ascii"))
            context.options |= ssl.OP_NO_TICKET
            if protocol == ssl.PROTOCOL_TLS_SERVER:
                context.num_tickets = 0
            made.append(context)
        return Contexts(made[0], made[1], not_after)
    finally:
        os.close(fd)


async def handshake(sock: socket.socket, context: ssl.SSLContext, *, server: bool, seconds: float) -> Session:
    """Do the handshake on a connected, non-blocking socket, which the caller keeps. Raises `HandshakeFailed`."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=server)
    try:
        with trio.fail_after(seconds):
            while True:
                try:
                    tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    done = False
                await _send(sock, outgoing.read())
                if done:
                    break
                await _receive(sock, incoming)
    except ssl.SSLError as error:
        await _alert(sock, outgoing)
        raise HandshakeFailed(f"TLS handshake: {error.reason or error}") from error
    except OSError as error:
        raise HandshakeFailed(f"TLS handshake: {error.strerror or error}") from error
    except trio.TooSlowError:
        raise HandshakeFailed(f"TLS handshake took over {seconds:g} s") from None
    if tls.selected_alpn_protocol() != "h2":
        raise HandshakeFailed("the peer does not speak HTTP/2 (ALPN)")
    return Session(tls, incoming, outgoing)


async def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive(sock: socket.socket, incoming: ssl.MemoryBIO) -> None:
    while True:
        try:
            data = sock.recv(65_536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data:
            raise HandshakeFailed("the peer closed the connection during the TLS handshake")
        incoming.write(data)
        return


async def _alert(sock: socket.socket, outgoing: ssl.MemoryBIO) -> None:
    """Tell the peer why, if it can be told at once."""
    try:
        sock.send(outgoing.read())
    except OSError:
        pass
    await trio.lowlevel.checkpoint()


def peer_identity(tls: ssl.SSLObject) -> Identity:
    """The workload identity in the peer's verified certificate: exactly one URI SAN. Raises `HandshakeFailed`."""
    certificate: dict[str, Any] = tls.getpeercert() or {}
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise HandshakeFailed(f"the peer's certificate has {len(uris)} URI names; a SPIFFE certificate has one")
    try:
        return Identity.parse(uris[0])
    except IdentityError as error:
        raise HandshakeFailed(f"the peer's certificate: {error}") from error


def peer_not_after(tls: ssl.SSLObject) -> float:
    """When the peer's certificate expires, Unix seconds."""
    return float(ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"])))
