"""Label selectors as kubectl takes them with `-l`: equality and existence, `app=web,tier!=db,canary,!old`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_TERM = re.compile(
    r"(?P<key>[A-Za-z0-9./_-]+)\s*(?P<sign>==|=|!=)\s*(?P<value>[A-Za-z0-9._-]*)|(?P<no>!?)\s*(?P<name>[A-Za-z0-9./_-]+)"
)

Labels = Mapping[str, str]


class SelectorError(ValueError):
    """The text is not a selector."""


def parse_selector(text: str) -> Callable[[Labels], bool]:
    """The test that `text` describes; an empty one is true of everything. Raises `SelectorError`."""
    tests = [_term(term.strip()) for term in text.split(",")] if text.strip() else []
    return lambda labels: all(test(labels) for test in tests)


def _term(term: str) -> Callable[[Labels], bool]:
    match = _TERM.fullmatch(term)
    if match is None:
        raise SelectorError(f"selector: {term!r} is neither key=value, key!=value, key nor !key")
    key, sign, value, no, name = match.group("key", "sign", "value", "no", "name")
    if name:
        return lambda labels: (name in labels) != bool(no)
    if sign == "!=":
        return lambda labels: labels.get(key) != value
    return lambda labels: labels.get(key) == value
