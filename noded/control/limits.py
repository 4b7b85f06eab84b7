"""Rate limits that hold for the whole mesh, on this node: between its workers and the controller.

For each limit that a worker has to do with, tokens come from the controller and are dealt out among the workers. While
the controller is away, the node goes by its part of the limit (see `mesh.ratelimit`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NoReturn

import trio

from mesh.ratelimit import Branch, Grant
from mesh.snapshot import Snapshot
from mesh.sync import LimitGrants, LimitReports
from mesh.traffic import RateLimit

_SPACING = 0.05
"""Seconds between messages to the controller, at least."""
_TURN = 0.01
"""The same between rounds: a bucket that is small and quick has several in that time."""


class SharedLimits:
    """Nothing here waits but `run` and `next`; a session with the controller calls `next` and `granted`."""

    def __init__(self, snapshot: Callable[[], Snapshot], tell: Callable[[int, LimitGrants], None]) -> None:
        self._snapshot, self._tell = snapshot, tell
        self._branches: dict[str, tuple[RateLimit, Branch]] = {}
        self._woken = trio.Event()
        self._unsent: LimitReports | None = None
        self._to_send = trio.Event()
        self._earliest = 0.0

    def heard(self, worker: int, message: LimitReports) -> None:
        """A worker asks for tokens."""
        now = trio.current_time()
        grants: dict[str, Grant] = {}
        for name, report in message.reports.items():
            if (branch := self._of(name, now)) is not None:
                grants[name] = branch.report(str(worker), report, now)
        for name in message.left:
            if name in self._branches:
                self._branches[name][1].leave(str(worker))
        if grants:
            self._tell(worker, LimitGrants(grants))
        self._woken.set()

    def worker_ended(self, worker: int) -> None:
        """It asks for nothing any more."""
        for _, branch in self._branches.values():
            branch.leave(str(worker))
        self._woken.set()

    def granted(self, message: LimitGrants) -> None:
        """The controller's answer, or part of its round."""
        now = trio.current_time()
        self._pass_on({
            name: self._branches[name][1].granted(grant, now)
            for name, grant in message.grants.items()
            if name in self._branches
        })  # fmt: skip
        self._woken.set()

    async def next(self) -> LimitReports:
        """Wait for the next message to the controller."""
        while self._unsent is None:
            await self._to_send.wait()
        message, self._unsent, self._to_send = self._unsent, None, trio.Event()
        return message

    async def run(self) -> NoReturn:
        """Hold rounds and make reports, until cancelled."""
        while True:
            self._woken = trio.Event()
            now = trio.current_time()
            self._pass_on({
                name: branch.round(now) for name, (_, branch) in self._branches.items() if now >= branch.deadline
            })  # fmt: skip
            if now >= self._earliest:
                self._report(now)
            await trio.sleep(_TURN)
            with trio.move_on_at(self._deadline()):
                await self._woken.wait()

    def _of(self, name: str, now: float) -> Branch | None:
        """The branch of a limit that is in force."""
        snapshot = self._snapshot()
        limit = snapshot.shared_limit(name)
        if limit is None:
            return None
        known = self._branches.get(name)
        if known is None or known[0] != limit:
            known = self._branches[name] = limit, Branch(limit, now, snapshot.count_nodes())
        return known[1]

    def _deadline(self) -> float:
        branches = [branch for _, branch in self._branches.values()]
        if not branches:
            return float("inf")
        return min(min(b.deadline for b in branches), max(min(b.due for b in branches), self._earliest))

    def _report(self, now: float) -> None:
        reports, left = {}, []
        for name, (_, branch) in list(self._branches.items()):
            if branch.idle:
                reports[name] = branch.farewell()
                left.append(name)
                del self._branches[name]
            elif now >= branch.due:
                reports[name] = branch.report_up(now)
        if not reports:
            return
        self._earliest = now + _SPACING
        if (before := self._unsent) is not None:  # not sent: there is no controller, or it is slow
            left += [name for name in before.left if name not in reports]
            reports = {**{name: before.reports[name] for name in left if name in before.reports}, **reports}
        self._unsent = LimitReports(reports, tuple(left))
        self._to_send.set()

    def _pass_on(self, grants: dict[str, dict[str, Grant]]) -> None:
        """From limit, worker to worker, limit."""
        messages: defaultdict[int, dict[str, Grant]] = defaultdict(dict)
        for name, dealt in grants.items():
            for worker, grant in dealt.items():
                messages[int(worker)][name] = grant
        for index, message in messages.items():
            self._tell(index, LimitGrants(message))
