"""Rate limits that hold for the whole mesh: this worker's tokens of them, and asking the control process for more."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from mesh.message import Request
from mesh.ratelimit import Share
from mesh.sync import LimitGrants, LimitReports
from mesh.traffic import RateLimit
from noded.data.node import Node
from noded.data.timers import Timer, Timers

_HOLD_SECONDS = 0.1
"""How long a request waits for a token that it may well get."""
_SPACING = 0.01
_IDLE_SECONDS = 10.0
"""Without requests; then the tokens are given back and no more is said."""

log = logging.getLogger(__name__)

Resume = Callable[[bool], None]


class SharedTokens:
    """Those of one limit; as `limiters.Tokens` has it."""

    __slots__ = ("_all", "_held", "limit", "name", "share", "used")

    def __init__(self, owner: SharedLimits, name: str, limit: RateLimit) -> None:
        self._all, self.name, self.limit = owner, name, limit
        self.share: Share | None = None
        """None while there is nothing to do with it."""
        self.used = 0.0
        self._held: deque[_Held] = deque()

    def take(self, _request: Request, now: float) -> float:
        """See `Tokens`."""
        share = self.share
        if share is None:
            share = self.share = self._all.begin(self, now)
        self.used = now
        taken = share.take(now)
        if share.due <= now:
            self._all.wake()
        return 0.0 if taken else self.limit.seconds / self.limit.requests

    def put(self, _request: Request, _now: float) -> None:
        """See `Tokens`."""
        if self.share is not None:
            self.share.put()

    def hold(self, resume: Resume) -> bool:
        """See `Tokens`."""
        share = self.share
        if share is None or not share.worth_waiting or len(self._held) >= share.most_waiting:
            return False
        held = _Held(resume)
        held.timer = self._all.timers.after(_HOLD_SECONDS, lambda: self._expired(held))
        self._held.append(held)
        return True

    def hand_out(self, now: float) -> None:
        """There may be new tokens."""
        share = self.share
        while self._held and (share is None or share.take(now, again=True)):
            self._held.popleft().go(True)
        if share is not None and not share.worth_waiting:
            while self._held:
                self._held.popleft().go(False)

    def close(self) -> None:
        """The limit is no more: nobody is held by it."""
        self._all.end(self)
        if self._held:  # later: whoever closes it is in the middle of something
            self._all.timers.after(0.0, lambda: self.hand_out(time.monotonic()))

    @property
    def busy(self) -> bool:
        """Whether requests are held."""
        return bool(self._held)

    def _expired(self, held: _Held) -> None:
        if held in self._held:
            self._held.remove(held)
            if self.share is not None:
                self.share.give_up(now := time.monotonic())
                if self.share.due <= now:
                    self._all.wake()
            held.go(False)


class _Held:
    __slots__ = ("_resume", "timer")

    def __init__(self, resume: Resume) -> None:
        self._resume = resume
        self.timer: Timer | None = None

    def go(self, admitted: bool) -> None:
        if self.timer is not None:
            self.timer.cancel()
        try:
            self._resume(admitted)
        except Exception:
            log.exception("bug: a request that was held raised")


class SharedLimits:
    """All of this worker that have something to do. `run` must be running."""

    def __init__(self, node: Node, timers: Timers) -> None:
        self._node, self.timers = node, timers
        self._active: dict[str, SharedTokens] = {}
        self._left: set[str] = set()
        self._woken = trio.Event()

    def begin(self, tokens: SharedTokens, now: float) -> Share:
        """There are requests for this limit (again)."""
        self._active[tokens.name] = tokens
        self._left.discard(tokens.name)
        return Share(tokens.limit, now, self._node.snapshot.count_nodes() * self._node.workers)

    def end(self, tokens: SharedTokens) -> None:
        """There is nothing to do with this limit."""
        tokens.share = None
        if self._active.get(tokens.name) is tokens:
            del self._active[tokens.name]
            self._left.add(tokens.name)
            self.wake()

    def wake(self) -> None:
        """There is something to say."""
        if not self._woken.is_set():
            self._node.engine.wake(self._woken)

    def granted(self, message: LimitGrants) -> None:
        """The control process answers, or has something to deal out."""
        now = time.monotonic()
        for name, grant in message.grants.items():
            tokens = self._active.get(name)
            if tokens is not None and tokens.share is not None:
                tokens.share.granted(grant, now)
                tokens.hand_out(now)
                if tokens.share is not None and tokens.share.due <= now:
                    self.wake()

    async def run(self, send: Callable[[LimitReports], Awaitable[None]]) -> None:
        """Say what is to be said, until cancelled."""
        while True:
            self._woken = trio.Event()
            if (message := self._message(time.monotonic())) is not None:
                await send(message)
            await trio.sleep(_SPACING)
            due = min((tokens.share.due for tokens in self._active.values() if tokens.share), default=None)
            with trio.move_on_after(max(due - time.monotonic(), 0.0) if due is not None else float("inf")):
                await self._woken.wait()

    def _message(self, now: float) -> LimitReports | None:
        reports = {}
        for name, tokens in list(self._active.items()):
            assert tokens.share is not None
            if now - tokens.used >= _IDLE_SECONDS and not tokens.busy:
                reports[name] = tokens.share.farewell()
                self.end(tokens)
            elif now >= tokens.share.due:
                reports[name] = tokens.share.report(now)
        left, self._left = tuple(self._left), set()
        return LimitReports(reports, left) if reports or left else None
