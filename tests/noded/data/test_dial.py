"""Connecting in a client's name and in a workload's own: at once, later, never."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import trio

from mesh.authz import Authorizer, Peer, Permit
from noded.data import dial
from noded.data.dial import Dialler
from noded.data.engine import EPOLLERR, EPOLLOUT
from noded.data.sockets import orderly, tune
from tests.noded.data.loopback import Mesh, Side, mesh, random_address, received, tcp_pair, until


class Outcomes:
    """What `done` was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[socket.socket | None, str]] = []

    def done(self, sock: socket.socket | None, why: str) -> None:
        self.calls.append((sock, why))

    def socket(self) -> socket.socket:
        ((sock, why),) = self.calls
        assert sock is not None, why
        return sock

    def failure(self) -> str:
        ((sock, why),) = self.calls
        assert sock is None
        return why


class Dialling:
    """A dialler of the web's node, and somewhere to connect to."""

    def __init__(self, made: Mesh) -> None:
        self.mesh, self.side = made, made.web
        self.dialler = made.dialler
        self.outcomes = Outcomes()
        verdict = Authorizer.of((), (), namespace="shop", labels={}, root_namespace="r").check(
            Peer(None, "127.0.0.1", self.side.address, 1)
        )
        assert isinstance(verdict, Permit)
        self.permit = verdict

    def to_workload(self, port: int, client: str | None = None) -> None:
        client = client or self.mesh.client.address
        side: Side = self.side
        self.dialler.to_workload(self.permit, side.local, side.address, port, client, self.outcomes.done)


@pytest.fixture
async def dialling() -> AsyncIterator[Dialling]:
    async with mesh() as made:
        yield Dialling(made)


async def test_a_workload_sees_the_clients_address_and_a_port_outside_its_ephemeral_range(dialling: Dialling) -> None:
    listener = dialling.mesh.serve()
    dialling.to_workload(8080)
    sock = dialling.outcomes.socket()
    accepted, (address, port) = listener.accept()
    assert (address, port) == sock.getsockname()
    assert address == dialling.mesh.client.address
    assert port in range(10_240, 32_768)
    accepted.close()
    sock.close()


async def test_nobody_listening_is_told_at_once(dialling: Dialling) -> None:
    dialling.to_workload(8081)
    assert dialling.outcomes.failure() == f"connect to {dialling.side.address}:8081: Connection refused"


async def test_a_source_port_in_use_is_not_chosen(dialling: Dialling, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = dialling.mesh.serve()
    taken = socket.socket()
    taken.bind((dialling.mesh.client.address, 20_001))
    ports = iter([20_000, 20_001, 20_002])
    monkeypatch.setattr("noded.data.dial.random.choice", lambda _ports: next(ports))
    dialling.mesh.ports.take(20_000)
    dialling.to_workload(8080)
    assert dialling.outcomes.socket().getsockname()[1] == 20_002
    listener.accept()[0].close()
    taken.close()


async def test_when_all_source_ports_are_in_use_it_says_so(dialling: Dialling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_PORTS", range(20_000, 20_010))
    for port in range(20_000, 20_010):
        dialling.mesh.ports.take(port)
    dialling.to_workload(8080)
    assert "no free source port" in dialling.outcomes.failure()


async def test_an_address_that_cannot_be_bound_is_told(dialling: Dialling) -> None:
    dialling.to_workload(8080, "192.0.2.1")
    assert "no free source port" in dialling.outcomes.failure()


async def test_no_more_descriptors_is_told_and_not_raised(dialling: Dialling, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_address: str, *, transparent: bool = False) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(dialling.side.sockets, "make", make)
    dialling.to_workload(8080)
    dialling.dialler.from_workload(dialling.side.local, "127.0.0.1", 1, dialling.outcomes.done)
    assert [why.endswith("Too many open files") for _, why in dialling.outcomes.calls] == [True, True]


async def test_a_workload_connects_from_its_own_namespace(dialling: Dialling) -> None:
    listener = dialling.mesh.serve()
    local, address = dialling.side.local, dialling.side.address
    dialling.dialler.from_workload(local, address, 8080, dialling.outcomes.done)
    dialling.outcomes.socket()
    listener.accept()[0].close()
    dialling.outcomes.calls.clear()
    dialling.dialler.from_workload(local, address, 8081, dialling.outcomes.done)
    assert dialling.outcomes.failure().endswith("Connection refused")


# -- connects that take their time: a listener whose queue is full answers no SYN --------------------------------------


class Busy:
    """A listener whose queue is full until `relent`."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.address = random_address()
        self.listener.bind((self.address, 0))
        self.listener.listen(0)
        self.port = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self.filler = socket.create_connection((self.address, self.port), 10)

    def relent(self) -> None:
        self.listener.settimeout(10)
        self.accepted = [self.listener.accept()[0] for _ in range(2)]

    def close(self) -> None:
        for sock in (self.listener, self.filler, *self.accepted):
            sock.close()


@pytest.fixture
async def slow(dialling: Dialling) -> AsyncIterator[tuple[Dialling, Busy]]:
    busy = Busy()
    dialling.dialler.from_workload(dialling.side.local, busy.address, busy.port, dialling.outcomes.done)
    assert dialling.outcomes.calls == []
    yield dialling, busy
    busy.close()


async def test_a_connect_may_take_a_while(slow: tuple[Dialling, Busy]) -> None:
    dialling, busy = slow
    await trio.to_thread.run_sync(busy.relent)
    await until(lambda: dialling.outcomes.calls)
    assert dialling.outcomes.socket().getpeername() == (busy.address, busy.port)


async def test_an_event_that_means_nothing_is_not_taken_for_a_connection(slow: tuple[Dialling, Busy]) -> None:
    """The event may be that of an earlier socket with the same number (see `Engine._turn`)."""
    dialling, busy = slow
    (attempt,) = dialling.dialler._pending
    attempt.on_socket(EPOLLOUT)
    attempt.on_socket(EPOLLERR)
    assert dialling.outcomes.calls == []
    await trio.to_thread.run_sync(busy.relent)
    await until(lambda: dialling.outcomes.calls)
    dialling.outcomes.socket()
    attempt.on_socket(EPOLLOUT)
    assert len(dialling.outcomes.calls) == 1


async def test_a_connect_that_takes_too_long_is_given_up(slow: tuple[Dialling, Busy]) -> None:
    dialling, busy = slow
    (attempt,) = dialling.dialler._pending
    attempt.deadline = 0
    await until(lambda: dialling.outcomes.calls)
    assert dialling.outcomes.failure() == f"connect to {busy.address}:{busy.port}: timed out"
    assert not dialling.dialler._pending


async def test_a_connect_that_fails_later_says_why(slow: tuple[Dialling, Busy]) -> None:
    dialling, busy = slow
    busy.listener.close()  # the next SYN, sent again after a second, is answered with a reset
    await until(lambda: dialling.outcomes.calls)
    assert dialling.outcomes.failure().endswith("Connection refused")


async def test_a_bug_in_what_comes_after_gives_the_attempt_up(slow: tuple[Dialling, Busy]) -> None:
    dialling, _ = slow
    (attempt,) = dialling.dialler._pending
    attempt.abort("internal error")
    attempt.abort("again")
    attempt.expire()
    assert dialling.outcomes.failure().endswith("internal error")


# -- how a socket's end looks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_close_is_a_reset_until_the_connection_has_ended_in_order(in_order: bool) -> None:
    app, near = tcp_pair()  # the option is inherited from the listener
    near.send(b"last words")
    if in_order:
        orderly(near)
    near.close()
    got, how = await received(app)
    assert how == ("end" if in_order else "reset")
    if in_order:
        assert got == b"last words"
    orderly(near)


async def test_a_process_that_is_killed_shows_as_a_reset_on_both_its_legs() -> None:
    listener, target = socket.socket(), socket.socket()
    tune(listener)
    for sock in (listener, target):
        sock.bind((random_address(), 0))
        sock.listen()
    process = await trio.to_thread.run_sync(
        lambda: subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(listener.fileno()), *map(str, target.getsockname())],
            pass_fds=[listener.fileno()],
        )
    )
    try:
        app = socket.create_connection(listener.getsockname(), 20)
        listener.close()
        server = (await trio.to_thread.run_sync(target.accept))[0]
        for sock in (app, server):
            sock.settimeout(20)
            assert await trio.to_thread.run_sync(sock.recv, 10) == b"ready"
        os.kill(process.pid, signal.SIGKILL)
        assert await received(app) == (b"", "reset")
        assert await received(server) == (b"", "reset")
        app.close()
        server.close()
    finally:
        process.kill()
        await trio.to_thread.run_sync(process.wait)
        target.close()


_VICTIM = """
import socket, sys, time
from noded.data.sockets import tune
near, _ = socket.socket(fileno=int(sys.argv[1])).accept()
far = socket.socket()
tune(far)
far.connect((sys.argv[2], int(sys.argv[3])))
near.send(b"ready")
far.send(b"ready")
time.sleep(60)
"""


def test_the_dialler_needs_a_permit() -> None:
    dialler = Dialler.__new__(Dialler)
    with pytest.raises(AssertionError):
        dialler.to_workload(None, None, "127.0.0.1", random.randint(1, 9), "127.0.0.1", lambda _s, _w: None)  # type: ignore[arg-type]
