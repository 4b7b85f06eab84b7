"""Calls at a later time."""

from __future__ import annotations

import random
import time
from typing import Any, cast

import trio

from noded.data.engine import Engine
from noded.data.timers import Timer, Timers


class _Engine:
    def wake(self, event: trio.Event) -> None:
        event.set()


async def test_calls_are_made_in_order_and_not_early_whatever_their_durations_and_not_if_cancelled() -> None:
    timers = Timers(cast(Engine, _Engine()))
    chance = random.Random(7)
    due: dict[int, float] = {}
    called: list[int] = []
    early: list[int] = []

    def call(number: int) -> None:
        called.append(number)
        if time.monotonic() < due[number]:
            early.append(number)
        if number < 100:  # one call leads to the next, of a duration that there is or not
            start(number + 10_000, chance.choice((0.0, 0.005, chance.random() / 50)))

    def start(number: int, seconds: float) -> Timer:
        due[number] = time.monotonic() + seconds
        return timers.after(seconds, lambda: call(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        started = [start(number, chance.choice((0.02, chance.random() / 5))) for number in range(2000)]
        for timer in started[::2]:
            timer.cancel()
        wanted = {*range(1, 2000, 2), *range(10_001, 10_100, 2)}
        with trio.fail_after(30):
            while len(called) < len(wanted):
                await trio.sleep(0.01)
            while timers._queues:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert set(called) == wanted
    assert len(called) == len(wanted)
    assert early == []
    assert timers._turns == []


async def test_ten_thousand_calls_of_as_many_durations_are_not_looked_at_for_each() -> None:
    """Retries wait for a time by chance: looking at all that wait took a worker whole."""
    timers = Timers(cast(Engine, _Engine()))
    looked = 0

    class Counted(dict[int, Any]):
        def __getitem__(self, duration: int) -> Any:
            nonlocal looked
            looked += 1
            return super().__getitem__(duration)

        def values(self) -> Any:
            nonlocal looked
            looked += len(self)
            return super().values()

    called = 0

    def call() -> None:
        nonlocal called
        called += 1

    timers._queues = Counted()
    for number in range(10_000):
        timers.after(60 + number / 1000, call)
    for number in range(100):
        timers.after(number / 1000, call)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        with trio.fail_after(30):
            while called < 100:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert looked <= 200
