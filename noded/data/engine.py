"""The engine: one trio task that moves bytes by callbacks from an epoll of its own.

A trio task a socket costs 10-30 µs a wake-up; a callback here costs 1. trio and the engine nest in two ways:

- Busy: trio's own epoll descriptor is one more entry in the engine's epoll. The task blocks in the engine's `poll`, and
  yields to trio when trio has I/O, after a callback that woke a trio task (`engine.woken`), and every 10 ms for trio's
  deadlines. This is as fast as having no trio at all.
- Idle, after 10 ms without an event, or where trio's descriptor (which has no public name) cannot be had: the task
  waits for the engine's epoll with `trio.lowlevel.wait_readable`, so that an idle process sleeps. The next event then
  costs one trio wake-up.

The two descriptors cannot watch each other at once (the kernel refuses the cycle), so trio's is taken out while idle.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP

_BATCH = 256
_TRIO_EVERY = 0.010
_SETTLE = 3

log = logging.getLogger(__name__)


class Handler(Protocol):
    """What a registered callback is bound to."""

    def abort(self, reason: str, /) -> None:
        """A callback of this object raised, which is a bug: give up what it holds."""


class Flushable(Protocol):
    """Something that gathers output during a turn."""

    def flush(self) -> None:
        """Write what was gathered. Called once at the end of a turn in which this object was given to `Engine.mark`."""


def trio_epoll_fd() -> int | None:
    """The descriptor of the running trio's own epoll; None where this version of trio does not have one there."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        return int(GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except (ImportError, AttributeError):
        return None


class Engine:
    """Callbacks by descriptor. Not thread-safe; all callbacks run inside `run`'s task and must not block."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._dirty: set[Flushable] = set()
        self._asleep: trio.CancelScope | None = None
        self.woken = False
        """Set when a trio task was made runnable from a callback: the engine then yields at the end of the turn."""

    def add(self, fd: int, callback: Callable[[int], None], events: int = EPOLLIN) -> None:
        """Call `callback(mask)`, a method of a `Handler`, whenever `fd` has one of `events`, an error or a hang-up."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change what is waited for. Errors and hang-ups are always reported."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`, which must still be open. Harmless if it was never added."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Forget `fd`, which the caller closes right after: the kernel then drops it from the epoll by itself."""
        self._callbacks.pop(fd, None)

    def mark(self, gathered: Flushable) -> None:
        """`gathered` has output: call its `flush` once, at the end of this turn (soon, if called from a trio task)."""
        self._dirty.add(gathered)
        if self._asleep is not None:
            self._asleep.cancel()

    def flush(self) -> None:
        """Flush now what was marked."""
        dirty = self._dirty
        while dirty:
            gathered = dirty.pop()
            try:
                gathered.flush()
            except Exception:
                self._broken(gathered.flush)

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Start a trio task from a callback. It must clean up after itself, whatever it raises."""
        self._nursery.start_soon(self._guard, function, args)
        self.woken = True

    async def _guard(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        except Exception:
            log.exception("bug: a connection's task raised")

    def wake(self, event: trio.Event) -> None:
        """Set a trio event from a callback."""
        event.set()
        self.woken = True

    async def run(self) -> None:
        """Serve until cancelled. Closes the epoll, not the sockets."""
        trio_fd = trio_epoll_fd()
        try:
            while True:
                if trio_fd is not None:
                    self._callbacks[trio_fd] = self._trio_has_something
                    self._epoll.register(trio_fd, EPOLLIN)
                    try:
                        await self._run_busy()
                    finally:
                        self._epoll.unregister(trio_fd)
                        del self._callbacks[trio_fd]
                await self._sleep()
                for _ in range(16):
                    if not self._turn(0):
                        break
                self.woken = False
        finally:
            self._epoll.close()

    async def _run_busy(self) -> None:
        """Serve until 10 ms pass with nothing to do."""
        now = time.monotonic
        checkpoint = trio.lowlevel.checkpoint
        yielded = now()
        settling = 0
        while True:
            busy = self._turn(0 if settling else _TRIO_EVERY)
            if self.woken or settling or now() - yielded > _TRIO_EVERY:
                # a woken task may wake another, which nothing here would notice: yield a few times more
                settling = _SETTLE if self.woken else max(0, settling - 1)
                self.woken = False
                await checkpoint()
                yielded = now()
                if self._dirty:
                    self.flush()
            if not busy and not settling:
                return

    async def _sleep(self) -> None:
        """Wait for an event, or until a trio task marks something."""
        with trio.CancelScope() as self._asleep:
            if not self._dirty:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
        self._asleep = None
        trio.lowlevel.notify_closing(self._epoll.fileno())  # trio would keep it registered, and so the cycle

    def _trio_has_something(self, _mask: int) -> None:
        self.woken = True

    def _turn(self, timeout: float) -> bool:
        """One poll and its callbacks; False if there was nothing."""
        events = self._epoll.poll(timeout, _BATCH)
        callbacks = self._callbacks
        callback = None
        queue = iter(events)
        while True:
            try:
                for fd, mask in queue:
                    # gone if an earlier callback of this turn closed it; if a new socket took its number, that one
                    # gets a spurious call, which every callback must stand
                    callback = callbacks.get(fd)
                    if callback is not None:
                        callback(mask)
                break
            except Exception:
                self._broken(callback)  # and go on with the rest
        self.flush()
        return bool(events)

    def _broken(self, callback: Any) -> None:
        """A bug in one connection's code must not take the others down, nor leave that one half alive."""
        log.exception("bug: a callback raised; its connection is closed")
        try:
            callback.__self__.abort("internal error")
        except Exception:
            log.exception("bug: closing it raised, too")
