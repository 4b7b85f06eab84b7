"""Answers as tables, fields, JSON or YAML.

Input are the daemons' JSON answers (see docs/reference/http-api.md) as mappings; a field that is missing shows as `-`,
so that a command works against a daemon one version older or newer. Output is text that ends with a newline, or `""`.
Names in it may come from a hostile peer, so nothing but our own colours reaches the terminal as a control character.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_GAP = "   "
_RESET = "\x1b[0m"


class Output(enum.Enum):
    """The value of `--output`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


class Tone(enum.Enum):
    """A colour by what it says; the value is the SGR parameter."""

    GOOD = "32"
    WARN = "33"
    BAD = "31"


_TONES = {
    word: tone
    for tone, words in {
        Tone.GOOD: "ready valid connected installed in-step open yes tunnel mutual_tls created allowed",
        Tone.WARN: "pending expiring draining plaintext none configured held dry-run",
        Tone.BAD: "failed expired denied drift disconnected no missing rejected",
    }.items()
    for word in words.split()
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a title, where its value is (a dotted path or a function of the row), and how it is shown."""

    title: str
    of: str | Callable[[Row], Any]
    show: Callable[[Any, float], str] | None = None
    """From the value and `now` (Unix seconds) to text; by default what `plain` makes of it."""
    wide: bool = False
    """Only in `-o wide`."""
    right: bool = False
    state: bool = False
    """Coloured by its word (`ready`, `failed`, …)."""

    def text(self, row: Row, now: float) -> str:
        """The cell, free of control characters, `-` where there is nothing."""
        value = dig(row, self.of) if isinstance(self.of, str) else self.of(row)
        if value is None or value in ("", [], {}):
            return "-"
        return clean(self.show(value, now) if self.show else plain(value)) or "-"


def dig(row: Row, path: str) -> Any:
    """The value at a dotted path of nested mappings, or None."""
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def plain(value: Any) -> str:
    """A JSON value as one cell: lists joined by commas, mappings as `k=v`, booleans as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(plain(item) for item in value)
    return "" if value is None else str(value)


def clean(text: str) -> str:
    """`text` with every character that a terminal might obey, or that hides, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def paint(word: str, *, colour: bool) -> str:
    """`word` in the colour of what it means, or as it is."""
    tone = _TONES.get(word.split(" ")[0].rstrip(":").lower()) if colour else None
    return f"\x1b[{tone.value}m{word}{_RESET}" if tone else word


def table(
    rows: Iterable[Row],
    columns: Sequence[Column],
    *,
    now: float,
    wide: bool = False,
    headers: bool = True,
    colour: bool = False,
    widths: list[int] | None = None,
) -> str:
    """Rows under aligned titles. `widths`, if given, holds least widths and is updated, so later calls line up."""
    columns = [column for column in columns if wide or not column.wide]
    cells = [[column.text(row, now) for column in columns] for row in rows]
    lines = [[column.title for column in columns], *cells] if headers else cells
    least = widths or [0] * len(columns)
    size = [max([least[i], *(len(line[i]) for line in lines)]) for i in range(len(columns))]
    if widths is not None:
        widths[:] = size
    out = []
    for number, line in enumerate(lines):
        title = headers and number == 0
        padded = [
            _pad(cell, size[i], right=columns[i].right, colour=colour and columns[i].state and not title)
            for i, cell in enumerate(line)
        ]
        out.append(_GAP.join(padded).rstrip() + "\n")
    return "".join(out)


def _pad(cell: str, width: int, *, right: bool, colour: bool) -> str:
    space = " " * (width - len(cell))
    painted = paint(cell, colour=colour)
    return space + painted if right else painted + space


def fields(pairs: Iterable[tuple[str, str]], *, colour: bool = False) -> str:
    """`Name:  value` lines with the values aligned; an empty value shows as `-`."""
    shown = [(name + ":", clean(value) or "-") for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    return "".join(f"{name:<{width}}  {paint(value, colour=colour)}\n" for name, value in shown)


@dataclass(frozen=True, slots=True)
class Look:
    """How an answer is to be shown: `--output`, `--no-headers`, and whether colours are wanted."""

    output: Output = Output.TABLE
    headers: bool = True
    colour: bool = False

    @property
    def tabular(self) -> bool:
        """For people: table or wide."""
        return self.output in (Output.TABLE, Output.WIDE)

    def table(self, rows: Sequence[Row], columns: Sequence[Column], now: float) -> str:
        """A table, with no rows nothing at all."""
        wide = self.output is Output.WIDE
        return table(rows, columns, now=now, wide=wide, headers=self.headers, colour=self.colour) if rows else ""

    def render(self, answer: Any, columns: Sequence[Column], now: float) -> str:
        """An answer of the API: `{"items": [...]}` or one object, as it came in JSON and YAML, else as a table."""
        if not self.tabular:
            return structured(answer, self.output)
        return self.table(answer.get("items", [answer]), columns, now)


def structured(value: Any, output: Output) -> str:
    """`value` as JSON, or YAML if asked: ASCII with escapes, so safe on a terminal too."""
    if output is Output.YAML:
        import yaml  # only those who ask for YAML pay for it

        return str(yaml.safe_dump(value, sort_keys=False, default_flow_style=False))
    return json.dumps(value, indent=2) + "\n"
