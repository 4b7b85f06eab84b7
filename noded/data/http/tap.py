"""Requests as they end, for who watches: a few recent ones at once, and those to come as long as somebody asks.

Nobody watching, a request costs a look at an empty dict and, where there is a JSON log, a place in a ring of its lines.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

RECENT = 256
"""Lines of the log that are kept to begin with."""
KEPT = 1000
"""Requests that wait for a watcher to ask again."""
_PATIENCE = 15.0
_WATCHERS = 16


@dataclass(frozen=True, slots=True)
class Filter:
    """What a watcher wants; what is empty says nothing."""

    workload: str = ""
    method: str = ""
    path: str = ""
    """With `*` and `?`, of the path without its query."""
    code: str = ""
    """`503` or `5xx`."""


class Tap:
    """One watcher's, or of several that want the same."""

    def __init__(self, wanted: Filter, now: float) -> None:
        self._wanted, self.asked, self.born = wanted, now, int(now * 1000)
        self._path = re.compile(translate(wanted.path)) if wanted.path else None
        self._low, self._high = _codes(wanted.code)
        self.taken = 0
        self.kept: deque[tuple[int, str]] = deque(maxlen=KEPT)

    def offer(self, workload: str, method: str, path: str, code: int, line: str) -> None:
        """Keep it if it is wanted."""
        wanted = self._wanted
        if (
            self._low <= code <= self._high
            and wanted.workload in ("", workload)
            and wanted.method in ("", method)
            and (self._path is None or self._path.match(path.partition("?")[0]))
        ):
            self.taken += 1
            self.kept.append((self.taken, line))


class Taps:
    """Of a worker."""

    def __init__(self, *, lines: bool) -> None:
        """`lines`: there is a log in JSON."""
        self.recent: deque[str] | None = deque(maxlen=RECENT) if lines else None
        self.watched: dict[Filter, Tap] = {}

    def rows(self, wanted: Filter, after: str) -> list[dict[str, Any]]:
        """Those since `after`, which the last row that a watcher got had, or `""`. At most `KEPT`."""
        now = time.monotonic()
        tap = self.watched.get(wanted)
        if tap is None:
            tap = Tap(wanted, now)
            for line in self.recent or ():
                row = json.loads(line)
                tap.offer(row["workload"], row.get("method", ""), row.get("path", ""), row["response_code"], line)
            if len(self.watched) < _WATCHERS:
                self.watched[wanted] = tap
        tap.asked = now
        born, _, number = after.partition(".")
        seen = int(number) if born == str(tap.born) and number.isdigit() else 0
        return [{**json.loads(line), "after": f"{tap.born}.{n}"} for n, line in tap.kept if n > seen]

    def tick(self) -> None:
        """Forget whoever did not ask for long. Call every 5 s."""
        if self.watched:
            now = time.monotonic()
            for wanted, tap in list(self.watched.items()):
                if now - tap.asked > _PATIENCE:
                    del self.watched[wanted]


def _codes(text: str) -> tuple[int, int]:
    if not text:
        return 0, 999
    if text[1:] == "xx":
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    return int(text), int(text)
