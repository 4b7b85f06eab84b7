"""Spans from the workers to an OTLP collector, through OpenTelemetry's SDK, which is loaded only if there is one."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Iterable

import trio

from noded.control.telemetry import Telemetry
from noded.link import Span

_log = logging.getLogger(__name__)
MAX_WAITING = 8192
_BATCH, _EVERY = 512, 1.0
_TIMEOUT = 10.0


class Exporter:
    """Takes spans at any time, sends them in batches, one at a time; drops and counts what it cannot hold."""

    def __init__(self, endpoint: str, node: str, telemetry: Telemetry) -> None:
        """`endpoint` is the collector's URL, as `http://collector:4318/v1/traces`."""
        self._endpoint, self._node, self._telemetry = endpoint, node, telemetry
        self._waiting: deque[Span] = deque()
        self._some = trio.Event()
        self._failing = False

    def add(self, spans: Iterable[Span]) -> None:
        """Keep these until they are sent."""
        for span in spans:
            if len(self._waiting) >= MAX_WAITING:
                self._telemetry.count("spans_dropped")
            else:
                self._waiting.append(span)
        self._some.set()

    async def run(self) -> None:
        """Send until cancelled; a batch that is under way then is left to itself."""
        from noded.control.otlp import Sender

        sender = await trio.to_thread.run_sync(functools.partial(Sender, self._endpoint, self._node, _TIMEOUT))
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                sent = await trio.to_thread.run_sync(sender.send, batch, abandon_on_cancel=True)
                self._said(sent, len(batch))
            await trio.sleep(_EVERY)

    def _said(self, problem: str, number: int) -> None:
        if problem:
            self._telemetry.count("spans_failed", number)
        else:
            self._telemetry.count("spans_exported", number)
        if problem and not self._failing:
            _log.warning("spans not exported", extra={"endpoint": self._endpoint, "error": problem})
        elif self._failing and not problem:
            _log.info("spans are exported again", extra={"endpoint": self._endpoint})
        self._failing = bool(problem)
