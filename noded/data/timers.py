"""Calls at a later time, without a task for each.

Timeouts are set for every request and nearly always cancelled, so a cancelled one must leave nothing behind: timers of
the same duration stand in a queue, in the order in which they are due, and leave it from anywhere.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
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
        self._sooner = trio.Event()
        self._next = -math.inf
        """When the task will wake by itself."""

    def after(self, seconds: float, call: Callable[[], Any]) -> Timer:
        """Call `call()` after so many seconds, from a trio task. It must not raise."""
        duration = math.ceil(seconds * 1000)
        queue = self._queues.get(duration)
        if queue is None:
            queue = self._queues[duration] = OrderedDict()
        due = time.monotonic() + duration / 1000
        if due < self._next:
            self._next = due
            self._engine.wake(self._sooner)
        return Timer(due, call, queue)

    async def run(self) -> None:
        """Make the calls until cancelled."""
        while True:
            now = time.monotonic()
            for queue in list(self._queues.values()):
                self._call_due(queue, now)
            self._queues = {duration: queue for duration, queue in self._queues.items() if queue}
            self._sooner = trio.Event()
            self._next = min((next(iter(queue))._due for queue in self._queues.values()), default=now + 3600)
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
