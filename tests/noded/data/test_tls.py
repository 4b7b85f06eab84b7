"""Handshakes between certificates that fit and that don't, and with peers that speak something else."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.identity import Identity
from noded.data import tls
from tests.noded.data.lab import Authority

AUTHORITY = Authority()
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def contexts(*uris: str, authority: Authority = AUTHORITY, roots: bytes = b"") -> tls.Contexts:
    chain, key = authority.issue(*(uris or (WEB,)))
    return tls.contexts(chain, key, roots or authority.roots, 0.0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    socks = socket.socketpair()
    for sock in socks:
        sock.setblocking(False)
    yield socks
    for sock in socks:
        sock.close()


async def shake(
    pair: tuple[socket.socket, socket.socket], client: ssl.SSLContext, server: ssl.SSLContext
) -> list[tls.Session | tls.HandshakeFailed]:
    """Both sides' outcomes, client first; a side that fails closes, as its caller would."""
    outcomes: list[tls.Session | tls.HandshakeFailed] = [tls.HandshakeFailed("not yet")] * 2

    async def side(index: int, context: ssl.SSLContext) -> None:
        try:
            outcomes[index] = await tls.handshake(pair[index], context, server=bool(index), seconds=5)
        except tls.HandshakeFailed as failed:
            outcomes[index] = failed
            pair[index].close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(side, 0, client)
        nursery.start_soon(side, 1, server)
    return outcomes


async def test_both_sides_prove_who_they_are(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = await shake(pair, contexts("spiffe://cluster.local/ns/shop/sa/client").client, contexts().server)
    assert isinstance(client, tls.Session)
    assert isinstance(server, tls.Session)
    assert tls.peer_identity(client.tls) == Identity("cluster.local", "shop", "web")
    assert tls.peer_identity(server.tls) == Identity("cluster.local", "shop", "client")
    assert client.tls.version() == "TLSv1.3"
    assert client.tls.selected_alpn_protocol() == server.tls.selected_alpn_protocol() == "h2"
    in_an_hour = datetime.datetime.now(datetime.UTC).timestamp() + 3600
    assert abs(tls.peer_not_after(client.tls) - in_an_hour) < 60


async def test_a_server_of_another_root_is_refused_by_the_client(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = await shake(pair, contexts().client, contexts(authority=Authority()).server)
    assert isinstance(client, tls.HandshakeFailed)
    assert "CERTIFICATE_VERIFY_FAILED" in str(client)
    assert isinstance(server, tls.HandshakeFailed)
    assert "ALERT" in str(server), "it was told"


async def test_a_client_of_another_root_is_refused_by_the_server(pair: tuple[socket.socket, socket.socket]) -> None:
    stranger = contexts(authority=Authority(), roots=AUTHORITY.roots)
    _, server = await shake(pair, stranger.client, contexts().server)
    assert isinstance(server, tls.HandshakeFailed)
    assert "CERTIFICATE_VERIFY_FAILED" in str(server)


def plain_client(change: Callable[[ssl.SSLContext], None]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    change(context)
    return context


async def test_a_client_without_certificate_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    _, server = await shake(pair, plain_client(lambda _context: None), contexts().server)
    assert isinstance(server, tls.HandshakeFailed)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(server)


async def test_tls_before_1_3_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    def older(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    _, server = await shake(pair, plain_client(older), contexts().server)
    assert isinstance(server, tls.HandshakeFailed)
    assert "UNSUPPORTED_PROTOCOL" in str(server)


async def test_a_peer_that_does_not_speak_http2_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    client = contexts().client
    client.set_alpn_protocols(["http/1.1"])
    outcomes = await shake(pair, client, contexts().server)
    assert any("ALPN" in str(outcome) for outcome in outcomes)
    assert isinstance(outcomes[1], tls.HandshakeFailed)


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize(
    ("wire", "why"), [(b"GET / HTTP/1.1\r\n\r\n" * 10, "TLS handshake"), (b"", "closed the connection")]
)
async def test_a_peer_that_speaks_no_tls_or_leaves_is_told_apart(
    pair: tuple[socket.socket, socket.socket], server: bool, wire: bytes, why: str
) -> None:
    made = contexts()
    pair[1].send(wire) if wire else pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(tls.HandshakeFailed, match=why):
        await tls.handshake(pair[0], made.server if server else made.client, server=server, seconds=5)


async def test_a_peer_that_says_nothing_is_given_up(
    pair: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(tls.HandshakeFailed, match="over 10 s"):
        await tls.handshake(pair[0], contexts().server, server=True, seconds=10)


async def test_a_connection_that_breaks_is_a_failed_handshake(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(tls.HandshakeFailed, match="Broken pipe"):
        await tls.handshake(pair[0], contexts().client, server=False, seconds=5)


async def test_a_handshake_that_does_not_fit_the_socket_at_once_is_waited_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    uris = [WEB, *(f"spiffe://cluster.local/ns/shop/sa/x{number}" for number in range(300))]
    client, server = await shake(pair, contexts().client, contexts(*uris).server)
    assert isinstance(client, tls.Session)
    assert isinstance(server, tls.Session)


@pytest.mark.parametrize(
    ("uris", "why"),
    [
        ([], "has 0 URI names"),
        ([WEB, "spiffe://cluster.local/ns/shop/sa/other"], "has 2 URI names"),
        (["https://example.com/"], "the peer's certificate"),
        (["spiffe://cluster.local/ns/shop"], "the peer's certificate"),
    ],
)
async def test_a_certificate_that_does_not_name_one_workload_proves_nobody(
    pair: tuple[socket.socket, socket.socket], uris: list[str], why: str
) -> None:
    made = tls.contexts(*issue(uris), AUTHORITY.roots, 0.0)
    client, _ = await shake(pair, contexts().client, made.server)
    assert isinstance(client, tls.Session)
    with pytest.raises(tls.HandshakeFailed, match=why):
        tls.peer_identity(client.tls)


async def test_an_expired_certificate_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    expired = tls.contexts(*issue([WEB], minutes=-1), AUTHORITY.roots, 0.0)
    client, _ = await shake(pair, contexts().client, expired.server)
    assert isinstance(client, tls.HandshakeFailed)
    assert "CERTIFICATE_VERIFY_FAILED" in str(client)


def issue(uris: list[str], minutes: int = 60) -> tuple[bytes, bytes]:
    """A chain and key of the authority, also with names or times that it would not give."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(AUTHORITY._name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(minutes=minutes))
        .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName("web")]), True)
        .sign(AUTHORITY._key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), pem


async def test_no_session_is_ever_resumed(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = await shake(pair, contexts().client, contexts().server)
    assert isinstance(client, tls.Session)
    assert isinstance(server, tls.Session)
    server.tls.write(b"x")
    client.incoming.write(server.outgoing.read())
    assert client.tls.read(10) == b"x"
    assert client.tls.session is None or not client.tls.session.has_ticket


def test_keys_that_do_not_fit_are_refused_and_leave_no_descriptor_behind() -> None:
    chain, _ = AUTHORITY.issue(WEB)
    _, key = AUTHORITY.issue(WEB)
    before = set(os.listdir("/proc/self/fd"))
    for pem in ((chain, key), (b"nonsense", key), (chain, b"nonsense")):
        with pytest.raises(ssl.SSLError):
            tls.contexts(*pem, AUTHORITY.roots, 0.0)
    contexts()
    assert set(os.listdir("/proc/self/fd")) == before
