"""TLS to the controller: whom a node trusts before and after it has joined.

Before, it has only a hash of the controller's root in its join token. A first connection, over which nothing but the
handshake is sent, gets the chain; the certificate with that hash becomes the one root of a second, ordinarily verified
connection, and only that one carries the secret.
"""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

import trio

from mesh.identity import Identity, IdentityError, controller_identity
from noded.control.failure import Failure

CONNECT_SECONDS = 10.0
_MAX_CHAIN = 8

Stream = trio.SSLStream[trio.SocketStream]


def context(roots_pem: str, credential: Path | None) -> ssl.SSLContext:
    """A client context that trusts `roots_pem` only, with the key and chain in `credential` if there is one.

    Host names aren't checked: who the controller is stands in its SPIFFE id (`connect` checks it).
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=roots_pem)
    if credential is not None:
        made.load_cert_chain(credential)
    return made


async def connect(address: tuple[str, int], tls: ssl.SSLContext, trust_domain: str | None) -> tuple[Stream, str]:
    """Return a stream to the controller, which the caller must close, and the trust domain that it belongs to.

    `trust_domain` None accepts any (a node that joins doesn't know it yet). Raises `OSError`, `ssl.SSLError`,
    `trio.BrokenResourceError`, `trio.TooSlowError`, or `Failure` if somebody else answers there.
    """
    stream = await _handshake(address, tls)
    try:
        identity = _identity(stream)
        if trust_domain not in (None, identity.trust_domain):
            raise _impostor(address, identity.uri)
        if identity != controller_identity(identity.trust_domain):
            raise _impostor(address, identity.uri)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream, identity.trust_domain


async def find_root(address: tuple[str, int], sha256: str) -> str:
    """The controller's root certificate (PEM), known by the SHA-256 of its DER. Raises as `connect` does."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.minimum_version = ssl.TLSVersion.TLSv1_3
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    stream = await _handshake(address, unverified)
    try:
        chain = _unverified_chain(stream)
    finally:
        await trio.aclose_forcefully(stream)
    for der in chain[:_MAX_CHAIN]:
        if hashlib.sha256(der).hexdigest() == sha256:
            return ssl.DER_cert_to_PEM_cert(der)
    raise Failure(
        f"what answers at {address[0]}:{address[1]} is not the controller that the join token is for",
        "check controller.address; if the controller was set up anew, make a new token",
    )


async def _handshake(address: tuple[str, int], tls: ssl.SSLContext) -> Stream:
    with trio.fail_after(CONNECT_SECONDS):
        raw = await trio.open_tcp_stream(*address)
        stream = trio.SSLStream(raw, tls, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    return stream


def _identity(stream: Stream) -> Identity:
    certificate = stream.getpeercert() or {}
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    try:
        if len(uris) != 1:
            raise IdentityError(f"{len(uris)} URI names")
        return Identity.parse(uris[0])
    except IdentityError as error:
        raise Failure(f"the controller's certificate has no usable SPIFFE id: {error}", "check its address") from error


def _impostor(address: tuple[str, int], uri: str) -> Failure:
    return Failure(f"{address[0]}:{address[1]} answers as {uri}, which is not this mesh's controller", "check address")


def _unverified_chain(stream: Stream) -> list[bytes]:
    """DER of what the peer sent. `ssl` offers this from Python 3.13 on; before, only the object below it does."""
    tls: Any = stream._ssl_object
    if hasattr(tls, "get_unverified_chain"):
        return list(tls.get_unverified_chain())
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in tls._sslobj.get_unverified_chain()]
