"""How tunnels are opened, shared, refused, retried and given up, over real TLS on loopback."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from mesh.h2 import frames
from mesh.h2.connection import MAX_STREAMS
from mesh.h2.frames import ErrorCode, Setting
from mesh.model import HBONE_PORT
from noded.data import tls
from tests.noded.data.loopback import Mesh, mesh, received, until


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    async with mesh() as made:
        yield made


def counted(made: Mesh, name: str) -> int:
    return made.client.node.tracker.totals.get(name, 0)


async def test_a_burst_to_a_new_destination_costs_one_handshake(pair: Mesh) -> None:
    pair.serve()
    streams = [pair.connect()[1] for _ in range(20)]
    await until(lambda: all(stream.established for stream in streams))
    assert counted(pair, "handshakes") == 1
    assert len(pair.pool.tunnels()) == 1


async def test_more_connections_than_a_tunnel_holds_share_several(pair: Mesh) -> None:
    pair.serve()
    streams = [pair.connect()[1] for _ in range(2 * MAX_STREAMS + 1)]
    await until(lambda: all(stream.established for stream in streams))
    assert sorted(len(tunnel.connection.streams) for tunnel in pair.pool.tunnels()) == [1, MAX_STREAMS, MAX_STREAMS]
    streams[0].abort("over")
    _, stream = pair.connect()
    assert stream.tunnel is streams[0].tunnel, "its room is used before a new tunnel is opened"


async def test_when_no_tunnel_can_be_opened_all_who_wait_are_reset_and_the_next_tries_again(pair: Mesh) -> None:
    assert pair.listener is not None
    pair.listener.close()
    pair.listener = None
    apps = [pair.connect()[0] for _ in range(5)]
    for app in apps:
        assert (await received(app))[1] == "reset"
    assert pair.pool._entries == {}
    assert {(line["flags"], line["duration_ms"] >= 0) for line in pair.client.log()} == {("UF", True)}
    assert pair.client.log()[0]["reason"].endswith(":15008: Connection refused")
    assert "Errno" not in pair.client.log()[0]["reason"]
    pair.listen()
    await pair.joined(pair.serve())


async def test_a_client_whose_certificate_the_server_refuses_learns_it_before_it_uses_the_tunnel(pair: Mesh) -> None:
    pair.certify(pair.client.local, "spiffe://cluster.local/ns/shop/sa/a", "spiffe://cluster.local/ns/shop/sa/b")
    app, _ = pair.connect()
    assert (await received(app))[1] == "reset"
    assert "refused the tunnel" in pair.client.log()[0]["reason"]
    assert pair.pool.tunnels() == []


async def test_a_workload_with_no_certificate_waits_for_one_and_then_gives_up(pair: Mesh) -> None:
    contexts, pair.client.local.contexts = pair.client.local.contexts, None
    app, _ = pair.connect()
    assert (await received(app))[1] == "reset"
    assert "no certificate yet" in pair.client.log()[0]["reason"]
    server = pair.serve()
    _, stream = pair.connect()
    await trio.sleep(0.1)
    pair.client.local.contexts = contexts
    pair.client.node.changed()
    await until(lambda: stream.established)
    server.close()


async def test_a_server_with_another_identity_is_not_talked_to(pair: Mesh) -> None:
    pair.certify(pair.web.local, "spiffe://cluster.local/ns/shop/sa/impostor")
    app, _ = pair.connect()
    assert (await received(app))[1] == "reset"
    assert "impostor" in pair.client.log()[0]["reason"]


# -- a peer that is ours to script ------------------------------------------------------------------------------------


class Peer:
    """A raw HTTP/2 server end over TLS."""

    def __init__(self, sock: socket.socket, session: tls.Session) -> None:
        self.sock, self.session = sock, session

    async def write(self, data: bytes) -> None:
        self.session.tls.write(data)
        pending = self.session.outgoing.read()
        while pending:
            pending = pending[self.sock.send(pending) :]
            await trio.lowlevel.checkpoint()

    async def frames(self) -> list[tuple[int, int]]:
        """Wait for something; the types and streams of the frames in it."""
        wire = b""
        while not wire:
            await trio.lowlevel.wait_readable(self.sock)
            if not (data := self.sock.recv(65536)):
                return []
            self.session.incoming.write(data)
            try:
                while True:
                    wire += self.session.tls.read(65536)
            except ssl.SSLWantReadError:
                pass
        wire = wire.removeprefix(frames.PREFACE)
        found = []
        while wire:
            found.append((wire[3], int.from_bytes(wire[5:9], "big")))
            wire = wire[9 + int.from_bytes(wire[:3], "big") :]
        return found

    async def request(self) -> int:
        """The number of the next stream that is opened; 0 if the connection ends first."""
        while found := await self.frames():
            for kind, stream in found:
                if kind == frames.HEADERS:
                    return stream
        return 0


async def scripted(made: Mesh, act: Callable[[Peer, int], Awaitable[None]]) -> None:
    """Serve the web's port with `await act(peer, n)`, n counting the tunnels."""
    assert made.listener is not None
    made.listener.close()
    made.listener = None
    listener = trio.socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    await listener.bind((made.web.address, HBONE_PORT))
    listener.listen(50)
    contexts = made.web.local.contexts
    assert contexts is not None
    count = 0

    async def one(sock: socket.socket, number: int) -> None:
        with sock:
            session = await tls.handshake(sock, contexts.server, server=True, seconds=5)
            await act(Peer(sock, session), number)

    async def accept() -> None:
        nonlocal count
        with listener:
            while True:
                accepted, _ = await listener.accept()
                count += 1
                sock = socket.socket(fileno=accepted.detach())
                sock.setblocking(False)
                made.nursery.start_soon(one, sock, count)

    made.nursery.start_soon(accept)


async def quiet(peer: Peer) -> None:
    while await peer.frames():
        pass


async def test_a_stream_that_the_peer_refuses_is_tried_once_more_and_not_twice(pair: Mesh) -> None:
    tried = []

    async def refuse(peer: Peer, number: int) -> None:
        await peer.write(frames.settings({}))
        while stream := await peer.request():
            tried.append((number, stream))
            await peer.write(frames.rst_stream(stream, ErrorCode.REFUSED_STREAM))

    await scripted(pair, refuse)
    app, _ = pair.connect()
    assert (await received(app))[1] == "reset"
    assert tried == [(1, 1), (1, 3)]
    (line,) = pair.client.log()
    assert line["flags"] == "UR"


async def test_a_stream_that_crossed_the_peers_goaway_goes_through_another_tunnel(pair: Mesh) -> None:
    tried = []

    async def leave(peer: Peer, number: int) -> None:
        await peer.write(frames.settings({}))
        stream = await peer.request()
        tried.append((number, stream))
        if number == 1:
            await peer.write(frames.goaway(0, ErrorCode.NO_ERROR))
        else:
            await peer.write(frames.headers(stream, b"\x88", False))
        await quiet(peer)

    await scripted(pair, leave)
    _, stream = pair.connect()
    await until(lambda: pair.client.node.tracker.live()[0].opened)
    assert tried == [(1, 1), (2, 1)]
    assert not stream.established, "the second try is another stream"


async def test_a_tunnel_that_dies_before_the_answer_is_tried_once_more(pair: Mesh) -> None:
    tried = []

    async def die(peer: Peer, number: int) -> None:
        await peer.write(frames.settings({}))
        tried.append(await peer.request())

    await scripted(pair, die)
    app, _ = pair.connect()
    assert (await received(app))[1] == "reset"
    assert tried == [1, 1]
    await until(lambda: pair.pool._entries == {}, "nothing is kept")


@pytest.mark.parametrize(
    "greeting",
    [
        frames.settings({}) + frames.goaway(0, ErrorCode.NO_ERROR),
        frames.settings({Setting.MAX_CONCURRENT_STREAMS: 0}),
        frames.goaway(0, ErrorCode.NO_ERROR),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
    ],
    ids=["goaway after settings", "no streams", "goaway only", "http/1.1", "nothing"],
)
async def test_a_peer_that_takes_no_streams_is_not_dialled_again_and_again(pair: Mesh, greeting: bytes) -> None:
    tunnels = 0

    async def greet(peer: Peer, number: int) -> None:
        nonlocal tunnels
        tunnels = number
        if greeting:
            await peer.write(greeting)
            await quiet(peer)

    await scripted(pair, greet)
    apps = [pair.connect()[0] for _ in range(3)]
    for app in apps:
        assert (await received(app))[1] == "reset"
    assert tunnels == 1
    assert {line["flags"] for line in pair.client.log()} == {"UF"}
    await until(lambda: pair.pool._entries == {})


async def test_a_tunnel_that_leaves_is_not_forgotten_by_a_failed_successor(pair: Mesh) -> None:
    """It still carries streams when a new tunnel to the same place fails; its own end must not trip over that."""
    app, server, stream = await pair.joined(pair.serve())
    leaving = stream.tunnel
    leaving.retire("its certificate expires")
    assert pair.listener is not None
    pair.listener.close()
    pair.listener = None
    failed, _ = pair.connect()
    assert (await received(failed))[1] == "reset"
    app.send(b"x")
    assert await trio.to_thread.run_sync(server.recv, 10) == b"x"
    stream.abort("over")
    leaving.tick(0.0)
    assert leaving.closed
    assert pair.pool.tunnels() == []
    assert pair.pool._entries == {}


async def test_a_retired_tunnel_takes_no_new_streams(pair: Mesh) -> None:
    listener = pair.serve()
    _, _, one = await pair.joined(listener)
    one.tunnel.retire("its certificate expires")
    _, _, two = await pair.joined(listener)
    assert one.tunnel is not two.tunnel
    assert not one.closed


async def test_who_gives_up_while_waiting_is_not_carried(pair: Mesh) -> None:
    pair.serve()
    _, one = pair.connect()
    _, two = pair.connect()
    one.abort("gone", "DC")
    await until(lambda: two.established)
    assert not hasattr(one, "tunnel")
    assert pair.client.log()[0]["reason"] == "gone"


async def test_too_many_who_wait_are_refused(pair: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noded.data.pool._MAX_WAITING", 3)
    for _ in range(3):
        pair.connect()
    app, _ = pair.connect()
    assert (await received(app))[1] == "reset"
    assert pair.client.log()[0]["flags"] == "UO"


async def test_cancelling_while_dialling_resets_all_who_wait() -> None:
    apps = []
    async with mesh() as made:

        async def silent(peer: Peer, _number: int) -> None:
            await quiet(peer)

        await scripted(made, silent)
        apps += [made.connect()[0] for _ in range(3)]
        await until(lambda: made.client.node.tracker.totals.get("handshakes"))
        tracker = made.client.node.tracker
        made.open.clear()
    for app in apps:
        assert (await received(app))[1] == "reset"
        app.close()
    assert not len(tracker)


async def test_a_server_that_speaks_no_tls_is_a_failed_handshake(pair: Mesh) -> None:
    assert pair.listener is not None
    pair.listener.close()
    pair.listener = None
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((pair.web.address, HBONE_PORT))
    listener.listen()

    def garbage() -> None:
        sock, _ = listener.accept()
        sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        sock.recv(10)
        sock.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, garbage)
        app, _ = pair.connect()
        assert (await received(app))[1] == "reset"
    listener.close()
    assert counted(pair, "handshake_failures") == 1
