"""The engine beside trio: events, deadlines, sleep, and bugs in one connection's callbacks."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from noded.data import engine as engine_module
from noded.data.engine import EPOLLIN, EPOLLOUT, Engine, trio_epoll_fd

LONG = 0.05
"""Several times what the engine waits before it goes to sleep."""


class Counting(Engine):
    """Counts its turns."""

    turns = 0

    def _turn(self, timeout: float) -> bool:
        self.turns += 1
        return super()._turn(timeout)


@pytest.fixture(params=["nested", "fallback"])
async def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counting]:
    """A running engine, in trio's epoll or, as where that can't be had, under trio."""
    if request.param == "fallback":
        monkeypatch.setattr(engine_module, "trio_epoll_fd", lambda: None)
    async with trio.open_nursery() as nursery:
        made = Counting(nursery)
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


class Line:
    """One socket of a pair in the engine; its far end is ours."""

    def __init__(self, engine: Engine, act: Callable[[bytes], object] | None = None) -> None:
        self.engine, self.act = engine, act
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.got = b""
        self.masks: list[int] = []
        self.aborted = ""
        self.heard = trio.Event()
        engine.add(self.near.fileno(), self.on_socket)

    def on_socket(self, mask: int) -> None:
        self.masks.append(mask)
        try:
            data = self.near.recv(1000)
        except BlockingIOError:
            return
        self.got += data
        if self.act is not None:
            self.act(data)
        self.engine.wake(self.heard)

    def abort(self, reason: str, /) -> None:
        self.aborted = reason
        self.close()

    async def hears(self, data: bytes) -> None:
        """Send to it, and wait until it was called."""
        self.heard = trio.Event()
        self.far.send(data)
        with trio.fail_after(60):
            await self.heard.wait()
        assert self.got.endswith(data)

    def close(self) -> None:
        self.engine.forget(self.near.fileno())
        self.near.close()
        self.far.close()


class Gatherer:
    """Counts its flushes."""

    def __init__(self, act: Callable[[], object] | None = None) -> None:
        self.flushes, self.act, self.flushed = 0, act, trio.Event()
        self.aborted = ""

    def flush(self) -> None:
        self.flushes += 1
        self.flushed.set()
        if self.act is not None:
            self.act()

    def abort(self, reason: str, /) -> None:
        self.aborted = reason


class Storm:
    """Two sockets that send a byte back and forth for ever, so that the engine always has something to do."""

    def __init__(self, engine: Engine) -> None:
        self.rounds, self._engine = 0, engine
        self._socks = socket.socketpair()
        self._until = time.monotonic() + 20
        for sock in self._socks:
            sock.setblocking(False)
            engine.add(sock.fileno(), self._back(sock))
        self._socks[0].send(b"x")

    def _back(self, sock: socket.socket) -> Callable[[int], None]:
        def callback(_mask: int) -> None:
            self.rounds += 1
            assert time.monotonic() < self._until, "trio never came to its turn"
            sock.send(sock.recv(1))

        return callback

    def close(self) -> None:
        for sock in self._socks:
            self._engine.forget(sock.fileno())
            sock.close()


def bug(*_: object) -> None:
    raise ZeroDivisionError("a bug")


async def test_events_come_after_a_pause_of_any_length(engine: Counting) -> None:
    line = Line(engine)
    for turn in range(8):
        await line.hears(b"a%d" % turn)
        await line.hears(b"b%d" % turn)
        await trio.sleep(LONG if turn % 2 else 0)
    line.close()


async def test_an_idle_engine_sleeps(engine: Counting) -> None:
    line = Line(engine)
    await line.hears(b"x")
    await trio.sleep(LONG)
    before = engine.turns
    await trio.sleep(4 * LONG)
    assert engine.turns == before
    line.close()


async def test_trios_deadlines_and_sockets_are_served_while_the_engine_is_busy(engine: Counting) -> None:
    storm = Storm(engine)
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _answer() -> None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            assert await stream.receive_some(10) == b"question"
            await trio.sleep(0.02)
            await stream.send_all(b"answer")

        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        await trio.sleep(0.01)
        with trio.move_on_after(0.02) as expired:
            await trio.sleep_forever()
        assert expired.cancelled_caught
        await stream.send_all(b"question")
        assert await stream.receive_some(10) == b"answer"
    assert storm.rounds > 10
    storm.close()
    ours.close()
    theirs.close()


async def test_a_chain_of_trio_tasks_runs_while_the_engine_is_busy(engine: Counting) -> None:
    storm = Storm(engine)
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _produce() -> None:
            async with send:
                for number in range(50):
                    await send.send(number)

        assert [number async for number in receive] == list(range(50))
    storm.close()


async def test_what_a_task_marks_is_flushed_once_whether_the_engine_sleeps_or_not(engine: Counting) -> None:
    for pause in (0.0, LONG, LONG, 0.0):
        await trio.sleep(pause)
        gatherer = Gatherer()
        engine.mark(gatherer)
        engine.mark(gatherer)
        with trio.fail_after(60):
            await gatherer.flushed.wait()
        await trio.sleep(LONG)
        assert gatherer.flushes == 1


async def test_what_is_marked_before_the_engine_starts_is_flushed() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine(nursery)
        gatherer = Gatherer()
        engine.mark(gatherer)
        nursery.start_soon(engine.run)
        with trio.fail_after(60):
            await gatherer.flushed.wait()
        nursery.cancel_scope.cancel()


async def test_what_a_flush_marks_is_flushed_in_the_same_turn(engine: Counting) -> None:
    second = Gatherer()
    first = Gatherer(lambda: engine.mark(second))
    line = Line(engine, lambda _data: engine.mark(first))
    await line.hears(b"x")
    assert (first.flushes, second.flushes) == (1, 1)
    line.close()


async def test_a_callback_that_raises_takes_down_its_own_connection_only(
    engine: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [Line(engine, bug if number == 2 else None) for number in range(5)]
    for line in lines:
        line.far.send(b"x")
    with trio.fail_after(60):
        for line in lines[:2] + lines[3:]:
            await line.heard.wait()
    assert [line.aborted for line in lines] == ["", "", "internal error", "", ""]
    assert "a bug" in caplog.text
    for line in lines[:2] + lines[3:]:
        await line.hears(b"again")
        line.close()


async def test_a_callback_whose_abort_raises_too_does_not_end_the_engine(
    engine: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    class Worse(Line):
        def abort(self, reason: str, /) -> None:
            super().abort(reason)
            raise KeyError("worse")

    worse, line = Worse(engine, bug), Line(engine)
    worse.far.send(b"x")
    await line.hears(b"x")
    await line.hears(b"y")
    assert worse.aborted
    assert "closing it raised, too" in caplog.text
    line.close()


async def test_a_flush_that_raises_takes_down_what_it_belongs_to_and_the_others_are_flushed(engine: Counting) -> None:
    broken = Gatherer(bug)
    others = [Gatherer() for _ in range(5)]
    for gatherer in (*others[:2], broken, *others[2:]):
        engine.mark(gatherer)
    with trio.fail_after(60):
        for gatherer in others:
            await gatherer.flushed.wait()
    assert broken.aborted == "internal error"


async def test_a_callback_may_close_what_has_an_event_in_the_same_turn(engine: Counting) -> None:
    lines: list[Line] = []

    def close_others(_data: bytes) -> None:
        for line in lines:
            if line.near.fileno() >= 0 and not line.got:
                line.close()

    lines += [Line(engine, close_others) for _ in range(6)]
    for line in lines:
        os.write(line.far.fileno(), b"x")
    await trio.sleep(LONG)
    assert sorted(len(line.masks) for line in lines) == [0, 0, 0, 0, 0, 1]
    for line in lines:
        if line.got:
            line.close()


async def test_a_task_started_from_a_callback_runs_and_its_bug_stays_its_own(
    engine: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    ran = trio.Event()

    async def task(fails: bool) -> None:
        if fails:
            raise ZeroDivisionError("in a task")
        ran.set()

    line = Line(engine, lambda data: engine.spawn(task, data == b"fail"))
    await line.hears(b"fail")
    await line.hears(b"work")
    with trio.fail_after(60):
        await ran.wait()
    assert "in a task" in caplog.text
    line.close()


async def test_room_to_write_is_told_only_while_it_is_asked_for(engine: Counting) -> None:
    line = Line(engine)
    engine.modify(line.near.fileno(), EPOLLIN | EPOLLOUT)
    await trio.sleep(LONG)
    assert line.masks
    assert all(mask == EPOLLOUT for mask in line.masks)
    engine.modify(line.near.fileno(), EPOLLIN)
    await trio.sleep(LONG)
    seen = len(line.masks)
    await trio.sleep(LONG)
    assert len(line.masks) == seen
    line.close()


async def test_what_was_removed_is_not_called_and_removing_it_again_is_harmless(engine: Counting) -> None:
    line, witness = Line(engine), Line(engine)
    engine.remove(line.near.fileno())
    engine.remove(line.near.fileno())
    line.far.send(b"x")
    await witness.hears(b"x")
    assert line.masks == []
    engine.add(line.near.fileno(), line.on_socket)
    with trio.fail_after(60):
        await line.heard.wait()
    line.close()
    witness.close()


async def test_more_descriptors_than_a_batch_are_all_served(engine: Counting) -> None:
    lines = [Line(engine) for _ in range(300)]
    for line in lines:
        line.far.send(b"x")
    with trio.fail_after(60):
        for line in lines:
            await line.heard.wait()
    for line in lines:
        line.close()


async def test_cancelling_ends_it_asleep_or_busy() -> None:
    for pause in (0.0, LONG):
        async with trio.open_nursery() as nursery:
            engine = Engine(nursery)
            nursery.start_soon(engine.run)
            await trio.sleep(pause)
            nursery.cancel_scope.cancel()
        assert engine._epoll.closed


async def test_trios_own_epoll_is_found_in_this_version_of_trio_and_missed_without_harm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fd = trio_epoll_fd()
    assert fd is not None
    assert "eventpoll" in os.readlink(f"/proc/self/fd/{fd}")
    from trio._core import _run

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(_run, "GLOBAL_RUN_CONTEXT", object())
        assert trio_epoll_fd() is None
        patch.delattr(_run, "GLOBAL_RUN_CONTEXT")
        assert trio_epoll_fd() is None
