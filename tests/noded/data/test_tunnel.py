"""One tunnel's life: blocked sockets, bad bytes, silence, retirement, and how its end looks from the other side."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import trio

from mesh.h2 import frames
from mesh.h2.connection import MAX_QUEUED
from mesh.h2.frames import ErrorCode
from noded.data.engine import EPOLLIN, EPOLLOUT
from noded.data.tunnel import TICK_SECONDS, Tunnel
from tests.noded.data.loopback import Mesh, fill, mesh, received, reset, until


class Joined:
    """A mesh with one connection through one tunnel."""

    def __init__(self, made: Mesh) -> None:
        self.mesh = made

    async def start(self) -> None:
        self.listener = self.mesh.serve()
        self.app, self.server, self.stream = await self.mesh.joined(self.listener)
        self.near: Tunnel = self.stream.tunnel
        (self.far,) = self.mesh.web.local.tunnels

    async def works(self) -> None:
        """Bytes get through on the connection."""
        self.app.sendall(b"ping")
        assert await trio.to_thread.run_sync(self.server.recv, 10) == b"ping"

    def say(self, tunnel: Tunnel, frame: bytes) -> None:
        """Let one end say something that it would not say."""
        tunnel.connection.out.append(frame)
        self.mesh.engine.mark(tunnel)

    def deafen(self, tunnel: Tunnel) -> None:
        """One end reads no more."""
        self.mesh.engine.remove(tunnel._fd)

    def cure(self, tunnel: Tunnel) -> None:
        self.mesh.engine.add(tunnel._fd, tunnel.on_socket, EPOLLIN | (EPOLLOUT if tunnel.blocked else 0))

    async def finish(self) -> None:
        """End the connection in order."""
        self.app.shutdown(socket.SHUT_WR)
        self.server.shutdown(socket.SHUT_WR)
        await until(lambda: not self.near.connection.streams and not self.far.connection.streams)


@pytest.fixture
async def pair() -> AsyncIterator[Joined]:
    async with mesh() as made:
        joined = Joined(made)
        await joined.start()
        yield joined


@pytest.fixture
async def narrow() -> AsyncIterator[Joined]:
    """The client's tunnel has a small socket buffer."""
    async with mesh() as made:
        made.client.sockets.small = True
        joined = Joined(made)
        await joined.start()
        yield joined


# -- backpressure -----------------------------------------------------------------------------------------------------


async def test_a_peer_that_does_not_read_stops_all_senders_and_no_byte_is_lost(narrow: Joined) -> None:
    others = [await narrow.mesh.joined(narrow.listener) for _ in range(5)]
    pairs = [(narrow.app, narrow.server), *((app, server) for app, server, _ in others)]
    narrow.deafen(narrow.far)
    payload = os.urandom(1 << 19)

    def send(app: socket.socket) -> None:
        app.sendall(payload)
        app.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        for app, _ in pairs:
            nursery.start_soon(trio.to_thread.run_sync, send, app)
        await until(lambda: narrow.near.blocked)
        await trio.sleep(0.2)
        queued = sum(len(part) for part in narrow.near.connection.out) + len(narrow.near._unsent)
        assert queued < 6 * 600_000, "a window each, and what one turn read"
        narrow.cure(narrow.far)
        results = [await received(server) for _, server in pairs]
    assert results == [(payload, "end")] * 6


async def test_a_peer_that_asks_and_does_not_read_the_answers_is_cut_off(narrow: Joined) -> None:
    near, far = narrow.near, narrow.far
    near._read = lambda: None  # type: ignore[method-assign]
    far._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    most = 0
    while not far.closed:
        near.connection.out += [frames.ping(b"12345678")] * 500
        narrow.mesh.engine.mark(near)
        await trio.sleep(0.002)
        far.connection.tick()
        most = max(most, len(far.connection.out))
    assert most <= MAX_QUEUED + 15_000
    assert "ENHANCE_YOUR_CALM" in far.reason


async def test_many_pieces_leave_in_bounded_writes_and_in_order(pair: Joined) -> None:
    for _ in range(300):
        pair.near.connection.out.append(frames.ping(b"abcdefgh"))
    pair.near.connection.send_data(pair.stream, b"after them")
    pair.mesh.engine.mark(pair.near)
    assert await trio.to_thread.run_sync(pair.server.recv, 100) == b"after them"


async def test_frames_cut_anywhere_between_tls_records_are_read_whole(pair: Joined) -> None:
    wire = frames.ping(b"cut here") + frames.head(6 << 8 | frames.DATA, 0, 1) + b"a word" + frames.ping(b"and here")
    for byte in wire:
        pair.near._tls.write(bytes([byte]))
        pair.near._write(memoryview(pair.near._outgoing.read()))
        await trio.lowlevel.checkpoint()
    assert await trio.to_thread.run_sync(pair.server.recv, 100) == b"a word"
    assert not pair.far.closed


async def test_events_that_mean_nothing_are_stood(pair: Joined) -> None:
    pair.near.on_socket(EPOLLIN | EPOLLOUT)
    pair.far.on_socket(EPOLLIN | EPOLLOUT)
    await pair.works()


# -- bad bytes, and ends ----------------------------------------------------------------------------------------------


async def test_what_breaks_http2_ends_the_tunnel_and_says_so_to_the_peer(pair: Joined) -> None:
    await pair.finish()
    pair.say(pair.far, frames.window_update(0, 0))
    await until(lambda: pair.near.closed and pair.far.closed)
    assert pair.near.reason == "PROTOCOL_ERROR: WINDOW_UPDATE of 0"
    assert pair.far.reason == f"the peer sent GOAWAY ({ErrorCode.PROTOCOL_ERROR:d})"


async def test_what_is_not_tls_ends_the_tunnel(pair: Joined) -> None:
    pair.far._sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    await until(lambda: pair.near.closed)
    assert pair.near.reason.startswith("TLS: ")
    assert (await received(pair.app))[1] == "reset"


async def test_tls_records_that_carry_next_to_nothing_end_the_tunnel(pair: Joined) -> None:
    for byte in frames.ping(b"12345678") * 1000:
        pair.near._tls.write(bytes((byte,)))
    pair.near._write(memoryview(pair.near._outgoing.read()))
    await until(lambda: pair.far.closed)
    assert pair.far.reason == "the peer sends TLS records that carry next to nothing"


async def test_small_records_are_forgiven_at_each_tick(pair: Joined) -> None:
    for _ in range(4):
        for byte in frames.ping(b"12345678") * 200:
            pair.near._tls.write(bytes((byte,)))
        wire = pair.near._outgoing.read()
        expected = pair.far.received + len(wire)
        pair.near._write(memoryview(wire))

        def arrived(expected: int = expected) -> bool:
            return pair.far.received >= expected

        await until(arrived)
        pair.far.tick(0)
    await pair.works()


async def test_a_record_for_each_frame_is_nothing_unusual(pair: Joined) -> None:
    for _ in range(6000):
        pair.near._tls.write(frames.window_update(0, 1))
    pair.near._write(memoryview(pair.near._outgoing.read()))
    await pair.works()


async def test_what_tls_has_to_answer_leaves_at_the_next_tick(pair: Joined) -> None:
    pair.far._outgoing.write(b"an answer to a key update")
    pair.far.tick(0)
    assert not pair.far._outgoing.pending


async def test_a_peer_that_does_not_read_the_answers_of_tls_is_cut_off(pair: Joined) -> None:
    pair.far.blocked = True
    pair.far._outgoing.write(bytes(2_000_000))
    pair.far.tick(0)
    assert pair.far.closed


async def test_the_end_of_tls_is_the_end(pair: Joined) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        pair.far._tls.unwrap()
    pair.far._write(memoryview(pair.far._outgoing.read()))
    await until(lambda: pair.near.closed)
    assert pair.near.reason == "the peer closed the connection"
    assert (await received(pair.app))[1] == "reset", "its stream had not ended"


async def test_a_reset_of_the_connection_is_the_end(pair: Joined) -> None:
    pair.deafen(pair.far)
    reset(pair.far._sock)
    await until(lambda: pair.near.closed)
    assert "Connection reset" in pair.near.reason
    assert (await received(pair.app))[1] == "reset"


async def test_a_write_to_a_peer_that_is_gone_is_the_end(pair: Joined) -> None:
    pair.deafen(pair.near)
    pair.far._sock.shutdown(socket.SHUT_RD)
    pair.near._sock.shutdown(socket.SHUT_WR)
    pair.near.connection.ping()
    pair.near.flush()
    assert pair.near.closed
    assert "Broken pipe" in pair.near.reason


def drain(sock: socket.socket) -> None:
    """Read to the end."""
    while sock.recv(65536):
        pass


async def test_a_tunnel_with_streams_ends_in_a_reset_and_one_without_in_order(pair: Joined) -> None:
    # watched at the socket, since either way a tunnel takes it for an end
    pair.deafen(pair.far)
    pair.near.close("why")
    with pytest.raises(ConnectionResetError):
        drain(pair.far._sock)


async def test_an_idle_tunnel_ends_in_order(pair: Joined) -> None:
    await pair.finish()
    pair.deafen(pair.far)
    pair.near.close("why")
    drain(pair.far._sock)
    pair.far.on_socket(EPOLLIN)
    pair.near.on_socket(EPOLLIN)
    pair.near.close("again")
    assert (pair.near.reason, pair.near.closed) == ("why", True)


async def test_a_bug_in_a_tunnel_ends_it_only(pair: Joined) -> None:
    pair.near.abort("internal error")
    assert (await received(pair.app))[1] == "reset"
    await pair.mesh.joined(pair.listener)


# -- time -------------------------------------------------------------------------------------------------------------


async def test_a_silent_peer_is_asked_for_a_sign_of_life_and_one_that_gives_it_lives(pair: Joined) -> None:
    for _ in range(20):
        pair.near.tick(0)
        if pair.near.connection.ping_outstanding:
            await until(lambda: not pair.near.connection.ping_outstanding)
    assert not pair.near.closed
    await pair.works()


async def test_a_dead_peer_is_noticed(pair: Joined) -> None:
    pair.deafen(pair.far)
    for _ in range(1 + 20 // TICK_SECONDS):
        pair.near.tick(0)
        await trio.lowlevel.checkpoint()
    assert pair.near.closed
    assert pair.near.reason == "the peer does not answer"
    assert (await received(pair.app))[1] == "reset"


async def test_a_tunnel_is_retired_before_its_certificate_expires_and_ends_with_its_last_stream(pair: Joined) -> None:
    pair.near.tick(pair.near._expires - 50)
    assert pair.near.row(0)["state"] == "draining"
    await pair.works()
    await pair.finish()
    pair.near.tick(0)
    assert pair.near.closed
    assert pair.near.reason == "its certificate expires"


@pytest.mark.parametrize("leaves", ["client", "server"])
async def test_after_one_end_retires_both_close_when_the_streams_have_ended(pair: Joined, leaves: str) -> None:
    one, other = (pair.near, pair.far) if leaves == "client" else (pair.far, pair.near)
    one.retire("draining")
    await until(lambda: other.connection.closing)
    other.tick(0)
    assert not other.closed
    await pair.works()
    await pair.finish()
    other.tick(0)
    assert other.closed
    await until(lambda: one.closed)
    assert pair.mesh.pool.tunnels() == []
    assert not pair.mesh.web.local.tunnels


@pytest.mark.parametrize("who", ["client", "server"])
async def test_an_idle_tunnel_says_goaway_before_it_closes(pair: Joined, who: str) -> None:
    await pair.finish()
    one, other = (pair.near, pair.far) if who == "client" else (pair.far, pair.near)
    one._idle = 10_000
    one.tick(0)
    assert one.closed
    await until(lambda: other.closed)
    assert other.reason == "the peer sent GOAWAY (0)"


async def test_nuisances_are_forgiven_at_each_tick(pair: Joined) -> None:
    for _ in range(3):
        for _ in range(1900):
            pair.near.connection.out.append(frames.ping(b"12345678"))
        pair.mesh.engine.mark(pair.near)
        await pair.works()
        pair.far.tick(0)
        pair.near.tick(0)
    assert not pair.far.closed


async def test_a_row_tells_what_it_is(pair: Joined) -> None:
    await pair.works()
    row = pair.near.row(3)
    assert (row["worker"], row["direction"], row["streams"], row["state"]) == (3, "client", 1, "open")
    assert row["peer_identity"] == pair.mesh.web.identity.uri
    assert row["received"] > 0 < row["sent"]
    assert pair.far.row(0)["direction"] == "server"


async def test_a_stream_stopped_by_the_window_goes_on_when_it_opens(pair: Joined) -> None:
    sent = await fill(pair.app)
    assert sent > 200_000

    def drain() -> int:
        left = sent
        while left:
            left -= len(pair.server.recv(min(left, 65536)))
        return left

    assert await trio.to_thread.run_sync(drain) == 0
    await pair.works()
