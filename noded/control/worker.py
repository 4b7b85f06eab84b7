"""One running worker as the control process sees it: what it was told, what it has said, and the queue to it."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence

import trio

from mesh.codec import DecodeError
from noded import link
from noded.control.process import Process

_log = logging.getLogger(__name__)
_MAX_QUEUE = 50_000  # messages; a worker this far behind is stuck
_ANSWERS = 16  # to queries; whoever asked earlier than that has given up


class Worker:
    """Owns the process. `heard` is called with each message once it is noted here."""

    def __init__(self, index: int, process: Process, heard: Callable[[Worker, object], None]) -> None:
        self.index, self.process, self._heard = index, process, heard
        self.configured = False
        self.ready: set[str] = set()
        """Workloads that it accepts for."""
        self.present: set[str] = set()
        """Workloads that it was told of and has not yet said are gone."""
        self.unapplied = 0
        """Updates sent and not yet answered."""
        self.totals: dict[str, int] = {}
        self.answers: dict[int, bytes] = {}
        self.ending = False
        """It was told to end: then its link may."""
        self._queue: deque[tuple[object, list[int]]] = deque()
        self._queued = trio.Event()

    def post(self, message: object, fds: Sequence[int] = ()) -> None:
        """Queue one message with duplicates of `fds`."""
        if len(self._queue) >= _MAX_QUEUE:
            self.process.kill()
            return
        self._queue.append((message, [os.dup(fd) for fd in fds]))
        self._queued.set()

    async def serve(self) -> int:
        """Send what is posted and note what comes, until the process ends: its status (see `Process.wait`)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            nursery.start_soon(self._receive)
            status = await self.process.wait()
            nursery.cancel_scope.cancel()
        return status

    async def close(self) -> None:
        """End the process; drop what was not sent."""
        for _, fds in self._queue:
            _close(fds)
        self._queue.clear()
        await self.process.close()

    async def _send(self) -> None:
        while True:
            while self._queue:
                message, fds = self._queue.popleft()
                try:
                    await self.process.link.send(message, fds)
                except OSError:
                    return  # it has ended, or is about to; `wait` tells
                finally:
                    _close(fds)
            self._queued = trio.Event()
            await self._queued.wait()

    async def _receive(self) -> None:
        while True:
            try:
                received = await self.process.link.receive()
            except (DecodeError, OSError) as error:
                _log.error("bad message from worker", extra={"worker": self.index, "error": str(error)})
                received = None
            if received is None:
                if not self.ending:
                    self.process.kill()  # a worker without its link is of no use
                return
            message, fds = received
            _close(fds)
            self._note(message)
            self._heard(self, message)
            await trio.lowlevel.checkpoint()  # many may have come at once, and some (tokens to check) cost 0.1 ms

    def _note(self, message: object) -> None:
        match message:
            case link.Ready():
                self.configured = True
            case link.WorkloadReady(uid):
                self.ready.add(uid)
            case link.WorkloadGone(uid):
                self.present.discard(uid)
            case link.Applied():
                self.unapplied = max(0, self.unapplied - 1)
            case link.Answer(request, rows):
                self.answers = {request: rows, **{k: v for k, v in self.answers.items() if k > request - _ANSWERS}}
            case link.Counts():
                self.totals = message.totals


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
