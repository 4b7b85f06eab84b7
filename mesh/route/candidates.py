"""The matches that one path leaves to choose from, best first, where tenants or canaries may have made them many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.route.limits import Limits
from mesh.route.matching import Test, View
from mesh.traffic import Compare, Route, RouteMatch, RouteRule

_FEW = 8
"""Are tried one after the other, which is as fast as looking them up."""


@dataclass(frozen=True, slots=True)
class Matched:
    """What takes a request."""

    route: Route
    rule: RouteRule
    match: RouteMatch
    """The one of the rule's matches that was met: prefix edits need it."""
    limits: Limits


Candidate = tuple[int, Test | None, Matched]
"""Its place among all (smaller is better), what it asks besides the path, and what it stands for."""
_Read = Callable[[View], bytes | None]


class Candidates:
    """Those of one path, indexed by an exact header or parameter that each asks for, if it asks for one."""

    __slots__ = ("_groups", "_rest")

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        """Best first."""
        self._rest = list(candidates)
        self._groups: list[tuple[_Read, dict[bytes | None, list[Candidate]]]] = []
        if len(self._rest) <= _FEW:
            return
        groups: dict[tuple[str, str], dict[bytes | None, list[Candidate]]] = {}
        every, self._rest = self._rest, []
        for candidate in every:
            if asked := _asked(candidate[2].match):
                part, name, value = asked
                groups.setdefault((part, name), {}).setdefault(value, []).append(candidate)
            else:
                self._rest.append(candidate)
        self._groups = [(_reader(part, name.encode()), by_value) for (part, name), by_value in groups.items()]

    def first(self, view: View) -> Candidate | None:
        """The best that the request meets."""
        best: Candidate | None = None
        for read, by_value in self._groups:
            for candidate in by_value.get(read(view), ()):
                if best is not None and candidate[0] > best[0]:
                    break
                if (test := candidate[1]) is None or test(view):
                    best = candidate
                    break
        for candidate in self._rest:
            if best is not None and candidate[0] > best[0]:
                return best
            if (test := candidate[1]) is None or test(view):
                return candidate
        return best


def _asked(match: RouteMatch) -> tuple[str, str, bytes] | None:
    for part, clauses in (("header", match.headers), ("parameter", match.query)):
        if clauses and clauses[0].compare is not Compare.REGEX:  # the first: of several for one name it is what counts
            name = clauses[0].name
            return part, name.lower() if part == "header" else name, clauses[0].value.encode()
    return None


def _reader(part: str, name: bytes) -> _Read:
    if part == "header":
        return lambda view: view.headers.get(name)
    return lambda view: view.parameters.get(name)
