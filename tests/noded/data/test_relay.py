"""Connections through a real tunnel pair, and between two sockets: order of ends, resets, blocked sinks."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from mesh.h2.frames import DEFAULT_WINDOW, ErrorCode
from mesh.h2.headers import Fields
from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, Engine
from noded.data.inbound import InboundStream
from noded.data.socket_relay import SocketRelay
from noded.data.stream_relay import StreamRelay
from noded.data.tracker import Flow, Tracker
from tests.noded.data.loopback import Mesh, fill, mesh, received, reset, source_ports, tcp_pair, until


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    async with mesh() as made:
        yield made


async def flows_end(made: Mesh) -> None:
    await until(lambda: not len(made.client.node.tracker) and not len(made.web.node.tracker), "all flows end")


# -- through a tunnel -------------------------------------------------------------------------------------------------


async def test_bytes_cross_both_ways_and_orderly_ends_are_orderly(pair: Mesh) -> None:
    app, server, _ = await pair.joined(pair.serve())
    app.send(b"question")
    assert await trio.to_thread.run_sync(server.recv, 100) == b"question"
    server.send(b"answer")
    assert await trio.to_thread.run_sync(app.recv, 100) == b"answer"
    app.shutdown(socket.SHUT_WR)
    assert await received(server) == (b"", "end")
    server.close()
    assert await received(app) == (b"", "end")
    await flows_end(pair)
    for side in (pair.client, pair.web):
        (line,) = side.log()
        assert (line["received"], line["sent"], line["flags"], line["reason"]) == (8, 6, "-", "")
    assert not any(tunnel.connection.streams for tunnel in pair.tunnels())


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("pending", [0, 4_000_000], ids=["nothing pending", "megabytes pending"])
async def test_half_close_passes_after_all_bytes_before_it_and_the_other_way_stays_open(
    pair: Mesh, first: str, pending: int
) -> None:
    app, server, _ = await pair.joined(pair.serve(small=True), small=True)
    one, other = (app, server) if first == "client" else (server, app)
    payload = os.urandom(1000) * (pending // 1000)

    def send() -> None:
        one.sendall(payload)
        one.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, send)
        await trio.sleep(0.2)  # buffers fill
        assert await received(other) == (payload, "end")
    other.sendall(b"late words")
    other.close()
    assert await received(one) == (b"late words", "end")
    await flows_end(pair)


@pytest.mark.parametrize("first", ["client", "server"])
async def test_an_end_that_meets_bytes_still_pending_for_it_waits_for_them_asleep(pair: Mesh, first: str) -> None:
    """The far side ended with bytes left for a slow reader, who then ends, too: nothing is to do until it reads."""
    pair.web.sockets.small = True
    app, server, _ = await pair.joined(pair.serve(small=True), small=True)
    fast, slow = (server, app) if first == "client" else (app, server)
    payload = os.urandom(1000) * 60  # fits a stream's window, not the sockets
    engine_turns = 0

    def send() -> None:
        fast.sendall(payload)
        fast.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, send)
        await trio.sleep(0.2)
        slow.shutdown(socket.SHUT_WR)
        await trio.sleep(0.2)
        turn = pair.engine._turn

        def counting(timeout: float) -> bool:
            nonlocal engine_turns
            engine_turns += 1
            return turn(timeout)

        pair.engine._turn = counting  # type: ignore[method-assign]
        await trio.sleep(0.3)
        assert engine_turns < 100, "it spins"
        assert await received(slow) == (payload, "end")
    assert await received(fast) == (b"", "end")
    await flows_end(pair)
    assert pair.client.log()[0]["flags"] == pair.web.log()[0]["flags"] == "-"


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("when", ["idle", "half-closed by itself", "half-closed by the other", "sending", "blocked"])
async def test_a_reset_is_passed_on_as_a_reset_at_any_point(pair: Mesh, who: str, when: str) -> None:
    app, server, _ = await pair.joined(pair.serve(small=True), small=True)
    one, other = (app, server) if who == "client" else (server, app)
    if when == "half-closed by itself":
        one.shutdown(socket.SHUT_WR)
        assert await received(other) == (b"", "end")
        other.settimeout(20)
    elif when == "half-closed by the other":
        other.shutdown(socket.SHUT_WR)
        assert await received(one) == (b"", "end")
    elif when == "sending":
        one.send(b"some words")
        assert await trio.to_thread.run_sync(other.recv, 100) == b"some words"
    elif when == "blocked":
        await fill(other)
    reset(one)
    if when == "half-closed by itself":
        # `other` has had its end of data; that it may send no more, it learns by sending
        def send() -> None:
            for _ in range(2000):
                other.send(b"x")
                trio.from_thread.run(trio.sleep, 0.005)

        with pytest.raises(OSError):
            await trio.to_thread.run_sync(send)
    else:
        assert (await received(other))[1] == "reset"
    await flows_end(pair)
    assert [side.log()[0]["reason"] != "" for side in (pair.client, pair.web)] == [True, True]


async def test_a_stalled_reader_holds_one_window_and_stops_its_sender_only(pair: Mesh) -> None:
    pair.web.sockets.small = True
    listener = pair.serve(small=True)
    app, server, stalled = await pair.joined(listener, small=True)
    sent = await fill(app)
    assert sent < 3_000_000
    other, other_server, _ = await pair.joined(listener)
    other.sendall(b"unhindered")
    assert await trio.to_thread.run_sync(other_server.recv, 100) == b"unhindered"
    (inbound,) = (
        s for t in pair.web.local.tunnels for s in t.connection.streams.values() if s.stream_id == stalled.stream_id
    )
    assert isinstance(inbound, StreamRelay)
    assert 0 < len(inbound._pending or b"") <= DEFAULT_WINDOW
    app.shutdown(socket.SHUT_WR)
    assert await received(server) == (bytes(sent), "end")


async def test_a_paused_relay_whose_socket_is_shut_both_ways_sleeps_until_it_may_read_the_rest(pair: Mesh) -> None:
    """The kernel reports the hang-up for ever, but what the application sent before it is still to be read."""
    app, server, stream = await pair.joined(pair.serve())
    server.shutdown(socket.SHUT_WR)
    await until(lambda: stream._half_closed)
    stream.send_window, left = 0, stream.send_window
    app.sendall(b"the rest")
    app.shutdown(socket.SHUT_WR)
    await until(lambda: stream._muted)
    stream.send_window = left
    stream.resume()
    assert await received(server) == (b"the rest", "end")
    await flows_end(pair)
    assert pair.client.log()[0]["flags"] == "-"


async def test_two_sockets_a_sender_that_is_shut_both_ways_with_bytes_pending_is_read_to_its_end(
    engine: Engine,
) -> None:
    joined = Joined(engine, small=True)
    joined.server.shutdown(socket.SHUT_WR)
    assert await received(joined.client) == (b"", "end")
    sent = await fill(joined.client)
    joined.client.shutdown(socket.SHUT_WR)
    await until(lambda: joined.relay._forward._muted or joined.relay._forward._pending)
    assert await received(joined.server) == (bytes(sent), "end")
    await until(lambda: joined.flow.finished)


async def test_an_abort_resets_both_applications(pair: Mesh) -> None:
    app, server, stream = await pair.joined(pair.serve())
    stream.abort("policy", "RBAC")
    stream.abort("again")
    assert (await received(app))[1] == "reset"
    assert (await received(server))[1] == "reset"
    await flows_end(pair)
    (line,) = pair.client.log()
    assert (line["flags"], line["reason"]) == ("RBAC", "policy")


async def test_the_tunnels_death_resets_both_applications(pair: Mesh) -> None:
    app, server, stream = await pair.joined(pair.serve())
    stream.tunnel.close("broken")
    assert (await received(app))[1] == "reset"
    assert (await received(server))[1] == "reset"
    await flows_end(pair)


async def test_the_tunnels_death_after_both_ends_loses_no_byte_that_had_arrived(pair: Mesh) -> None:
    app, server, stream = await pair.joined(pair.serve(small=True), small=True)
    payload = os.urandom(1000) * 40
    app.shutdown(socket.SHUT_WR)
    assert await received(server) == (b"", "end")
    server.sendall(payload)
    server.close()
    await until(lambda: stream._half_closed, "the server's end")
    stream.tunnel.close("broken")
    await trio.sleep(0.05)
    assert await received(app) == (payload, "end")
    await flows_end(pair)
    assert pair.client.log()[0]["flags"] == "-"


@pytest.mark.parametrize("pending", [0, 40_000])
async def test_a_peer_that_has_sent_all_and_wants_no_more_ends_it_in_order(pair: Mesh, pending: int) -> None:
    """As a node closes the connection of an HTTP client or backend: END_STREAM, then NO_ERROR."""
    app, _, stream = await pair.joined(pair.serve(small=True), small=True)
    (far,) = {
        id(s): s for tunnel in pair.tunnels() for s in tunnel.connection.streams.values() if s is not stream
    }.values()
    assert isinstance(far, StreamRelay)
    payload = os.urandom(1000) * (pending // 1000)
    far.connection.send_data(far, payload, end=True)
    far.connection.reset(far, ErrorCode.NO_ERROR)
    far.tunnel.flush()
    assert await received(app) == (payload, "end")
    far.on_reset(ErrorCode.CONNECT_ERROR)  # as if its own peer had
    await flows_end(pair)
    assert pair.client.log()[0]["flags"] == "-"


async def test_events_that_mean_nothing_are_stood(pair: Mesh) -> None:
    """A socket gets the event of one that had its number earlier in the same turn (see `Engine._turn`)."""
    app, server, stream = await pair.joined(pair.serve())
    for mask in (EPOLLIN, EPOLLHUP, EPOLLERR, EPOLLIN | EPOLLHUP | EPOLLERR):
        stream.on_socket(mask)
    app.sendall(b"x")
    assert await trio.to_thread.run_sync(server.recv, 10) == b"x"


async def test_a_relay_that_is_closed_ignores_whatever_still_comes(pair: Mesh) -> None:
    _, _, stream = await pair.joined(pair.serve())
    stream.abort("over")
    stream.on_end()
    stream.on_reset(0)
    stream.resume()
    stream.on_socket(EPOLLIN)
    stream.on_headers([], True)
    assert stream.on_data(memoryview(b"abc")) == 3
    await flows_end(pair)
    assert len(pair.client.log()) == 1


# -- before and around the answer -------------------------------------------------------------------------------------


async def test_bytes_that_come_before_the_answer_are_delivered_after_it(pair: Mesh) -> None:
    listener = pair.serve()
    _, _, first = await pair.joined(listener)
    connection = first.connection
    app, stream = pair.stream()
    stream.open_in(first.tunnel)
    connection.send_data(stream, b"early")
    connection.end(stream)
    server, _ = await trio.to_thread.run_sync(listener.accept)
    server.settimeout(20)
    assert await received(server) == (b"early", "end")
    server.close()
    app.close()


@pytest.mark.parametrize("what", ["data", "end", "headers that end", "no status"])
async def test_a_peer_that_does_not_answer_as_it_should_costs_that_connection_only(pair: Mesh, what: str) -> None:
    listener = pair.serve()
    live, server, first = await pair.joined(listener)
    app, stream = pair.stream()
    (tunnel,) = pair.web.local.tunnels

    class Misbehaving(InboundStream):
        def on_headers(self, fields: Fields, end: bool) -> None:
            if what == "data":
                self.connection.send_data(self, b"no answer")
            elif what == "end":
                self.connection.end(self)
            elif what == "headers that end":
                self.connection.send_headers(self, b"\x88", end=True)
            else:
                self.connection.send_headers(self, b"\x84")
            self.engine.mark(tunnel)

    pair.inbound.tunnel_request = lambda t: Misbehaving(pair.inbound, pair.web.local, t)  # type: ignore[method-assign,assignment]
    stream.open_in(first.tunnel)
    assert (await received(app))[1] == "reset"
    live.send(b"still here")
    assert await trio.to_thread.run_sync(server.recv, 100) == b"still here"
    assert not first.tunnel.closed


# -- between two sockets ----------------------------------------------------------------------------------------------


class Joined:
    """Two applications with a `SocketRelay` between."""

    def __init__(self, engine: Engine, *, small: bool = False) -> None:
        self.tracker = Tracker(source_ports(), access_log=True, log_fd=-1)
        self.client, near = tcp_pair(small=small)
        self.server, far = tcp_pair(small=small)
        self.flow = Flow(self.tracker, "shop/client", "outbound", "10.0.0.1", 1)
        self.flow.establish()
        self.relay = SocketRelay(engine, self.flow, near, far)
        self.flow.carrier = self.relay

    def ends(self, first: str) -> tuple[socket.socket, socket.socket]:
        return (self.client, self.server) if first == "client" else (self.server, self.client)

    def line(self) -> str:
        (line,) = self.tracker._lines
        return line


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with trio.open_nursery() as nursery:
        made = Engine(nursery)
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("size", [10, 5_000_000])
async def test_two_sockets_half_close_in_either_order_with_bytes_pending(engine: Engine, first: str, size: int) -> None:
    joined = Joined(engine, small=True)
    one, other = joined.ends(first)
    payload = os.urandom(10) * (size // 10)

    def send() -> None:
        one.sendall(payload)
        one.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, send)
        await trio.sleep(0.1)
        assert await received(other) == (payload, "end")
    other.sendall(b"late")
    other.close()
    assert await received(one) == (b"late", "end")
    await until(lambda: joined.flow.finished)
    assert sorted(joined.relay.counts()) == sorted((size, 4))
    assert '"flags":"-"' in joined.line()


@pytest.mark.parametrize("first", ["client", "server"])
async def test_two_sockets_a_reader_that_ended_and_is_slow_does_not_make_the_engine_spin(
    engine: Engine, first: str
) -> None:
    joined = Joined(engine, small=True)
    fast, slow = joined.ends(first)
    payload = os.urandom(1000) * 2000

    def send() -> None:
        fast.sendall(payload)
        fast.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, send)
        await trio.sleep(0.1)
        slow.shutdown(socket.SHUT_WR)
        await trio.sleep(0.1)
        turns, turn = 0, engine._turn

        def counting(timeout: float) -> bool:
            nonlocal turns
            turns += 1
            return turn(timeout)

        engine._turn = counting  # type: ignore[method-assign]
        await trio.sleep(0.3)
        assert turns < 100, "it spins"
        assert await received(slow) == (payload, "end")
    await until(lambda: joined.flow.finished)


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("when", ["idle", "half-closed by the other", "blocked", "after sending"])
async def test_two_sockets_a_reset_is_passed_on_as_a_reset(engine: Engine, who: str, when: str) -> None:
    joined = Joined(engine, small=True)
    one, other = joined.ends(who)
    if when == "half-closed by the other":
        other.shutdown(socket.SHUT_WR)
        assert await received(one) == (b"", "end")
    elif when == "blocked":
        await fill(other)
    elif when == "after sending":
        one.sendall(b"words")
        assert await trio.to_thread.run_sync(other.recv, 10) == b"words"
    reset(one)
    assert (await received(other))[1] == "reset"
    await until(lambda: joined.flow.finished)
    assert '"flags":"-"' not in joined.line()


async def test_two_sockets_abort_resets_both_and_once(engine: Engine) -> None:
    joined = Joined(engine)
    joined.relay.abort("policy", "RBAC")
    joined.relay.abort("again")
    assert (await received(joined.client))[1] == "reset"
    assert (await received(joined.server))[1] == "reset"
    assert '"flags":"RBAC"' in joined.line()


async def test_two_sockets_a_bug_closes_that_pair_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, other = Joined(engine), Joined(engine)

    def bug(_size: int) -> bytes:
        raise ZeroDivisionError("a bug")

    broken.relay._forward._recv = bug  # type: ignore[assignment]
    broken.client.send(b"x")
    other.client.send(b"x")
    assert await trio.to_thread.run_sync(other.server.recv, 10) == b"x"
    assert (await received(broken.server))[1] == "reset"
    assert broken.flow.finished
    other.relay.abort("over")


async def test_two_sockets_events_that_mean_nothing_are_stood(engine: Engine) -> None:
    joined = Joined(engine)
    for half in (joined.relay._forward, joined.relay._backward):
        for mask in (EPOLLIN, EPOLLHUP, EPOLLERR, EPOLLIN | EPOLLHUP | EPOLLERR):
            half.on_source(mask)
    joined.client.send(b"x")
    assert await trio.to_thread.run_sync(joined.server.recv, 10) == b"x"
    joined.relay.abort("over")
    joined.relay._forward.on_source(EPOLLIN)
