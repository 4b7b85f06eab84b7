"""Calls at a later time, without a task for each.

Timeouts are set for every request and nearly always cancelled, so a cancelled one must leave nothing behind: timers of
the same duration stand in a queue, in the order in which they are due, and leave it from anywhere. Of queues there may
be many (a retry waits for some time by chance), so a heap says whose turn it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import trio

from noded.data.engine import Engine

log = logging.getLogger(__name__)


class Timer:
    """A call that is to come."""

    __slots__ = ("_call", "_due", "_queue")

    def __init__(self, due: float, call: Callable[[], Any], queue: OrderedDict[Timer, None]) -> None:
        self._due, self._call, self._queue = due, call, queue
        queue[self] = None

    def cancel(self) -> None:
        """Don't. Harmless when it was made already."""
        self._queue.pop(self, None)


class Timers:
    """`run` must run beside the engine. Durations are rounded up to whole milliseconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: dict[int, OrderedDict[Timer, None]] = {}
        self._turns: list[tuple[float, int]] = []
        """A heap with an entry for each queue: when its first was due, as of the last look, and the duration."""
        self._sooner = trio.Event()
        self._next = -math.inf
        """When the task will wake by itself."""

    def after(self, seconds: float, call: Callable[[], Any]) -> Timer:
        """Call `call()` after so many seconds, from a trio task. It must not raise."""
        duration = math.ceil(seconds * 1000)
        due = time.monotonic() + duration / 1000
        queue = self._queues.get(duration)
        if queue is None:
            queue = self._queues[duration] = OrderedDict()
            heappush(self._turns, (due, duration))
        if due < self._next:
            self._next = due
            self._engine.wake(self._sooner)
        return Timer(due, call, queue)

    async def run(self) -> None:
        """Make the calls until cancelled."""
        turns = self._turns
        while True:
            now = time.monotonic()
            while turns and turns[0][0] <= now:
                _, duration = heappop(turns)
                queue = self._queues[duration]
                self._call_due(queue, now)
                if queue:
                    heappush(turns, (next(iter(queue))._due, duration))
                else:
                    del self._queues[duration]
            self._sooner = trio.Event()
            self._next = turns[0][0] if turns else now + 3600
            with trio.move_on_after(max(0.0, self._next - time.monotonic())):
                await self._sooner.wait()

    def _call_due(self, queue: OrderedDict[Timer, None], now: float) -> None:
        while queue:
            timer = next(iter(queue))
            if timer._due > now:
                return
            del queue[timer]
            try:
                timer._call()
            except Exception:
                log.exception("bug: a timer raised")
