"""What ended ill, kept by kind, so that a flood of one kind leaves room for the others."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

KINDS = 64
"""Those seen last."""
EACH = 8
"""The last of a kind; the others are counted only."""

T = TypeVar("T")


class _Kind(Generic[T]):
    def __init__(self, first: float) -> None:
        self.first, self.count = first, 0
        self.last: deque[T] = deque(maxlen=EACH)


class Alike(Generic[T]):
    """Of requests, or of connections."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind[T]] = OrderedDict()

    def add(self, kind: Hashable, one: T, at: float) -> None:
        """One more of its kind. `at`: Unix seconds."""
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) == KINDS:
                self._kinds.popitem(last=False)
            known = self._kinds[kind] = _Kind(at)
        else:
            self._kinds.move_to_end(kind)
        known.count += 1
        known.last.append(one)

    def rows(self, row: Callable[[T], dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are kept, each with how many were of its kind (`count`) since when (`first`), and which (`alike`).

        The kind seen last comes first, and the last of each.
        """
        return [
            {**row(one), "alike": number, "count": kind.count, "first": kind.first}
            for number, kind in enumerate(reversed(self._kinds.values()))
            for one in reversed(kind.last)
        ]
