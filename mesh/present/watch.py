"""A watch: successive answers of a daemon in, what to write out. The caller asks, waits and writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from mesh.present.table import Column, Look, Output, Row, structured, table

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""To write before the first frame: the alternate screen, no cursor, long lines cut and not wrapped."""
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""To write after the last frame, whatever ended the watch."""


class Watch:
    """Holds the rows seen last. Use either `frame` (a terminal) or `changes` (a pipe) throughout."""

    def __init__(
        self,
        columns: Sequence[Column],
        key: Callable[[Row], Hashable],
        *,
        output: Output = Output.TABLE,
        headers: bool = True,
        colour: bool = False,
        rates: Sequence[str] = (),
    ) -> None:
        """`rates` names counters; each row gets `<name>_rate`, its growth a second since the row was last seen."""
        self._columns, self._key, self._output, self._rates = columns, key, output, rates
        self._headers, self._colour = headers, colour
        self._wide = output is Output.WIDE
        self.tabular = output in (Output.TABLE, Output.WIDE)
        """Whether `frame` makes sense."""
        self._seen: dict[Hashable, Row] = {}
        self._seen_at = 0.0
        self._widths = [0] * (1 + sum(1 for column in columns if self._wide or not column.wide))

    @classmethod
    def of(
        cls, look: Look, columns: Sequence[Column], key: Callable[[Row], Hashable], *, rates: Sequence[str] = ()
    ) -> Watch:
        """One that shows rows as `look` says."""
        return cls(columns, key, output=look.output, headers=look.headers, colour=look.colour, rates=rates)

    def frame(self, rows: Sequence[Row], *, title: str, now: float, height: int) -> str:
        """A full redraw for a terminal of `height` lines."""
        rated = [self._with_rates(row, now) for row in rows]
        self._remember(rows, now)
        room = max(1, height - 5)  # title, blank, header, "more", cursor
        body = table(
            rated[:room], self._columns, now=now, wide=self._wide, headers=self._headers, colour=self._colour
        ).splitlines()
        if len(rated) > room:
            body.append(f"… {len(rated) - room} more; a taller terminal or a pipe shows all")
        return "\x1b[H" + "".join(line + "\x1b[K\n" for line in [title, "", *body]) + "\x1b[J"

    def changes(self, rows: Sequence[Row], *, now: float) -> str:
        """One line, object or document for each row that is new, differs from before, or has gone."""
        current = {self._key(row): row for row in rows}
        events: list[dict[str, Any]] = []
        for key, row in current.items():
            before = self._seen.get(key)
            if before != row:
                events.append({"type": "ADDED" if before is None else "MODIFIED", "object": self._with_rates(row, now)})
        events += [{"type": "DELETED", "object": row} for key, row in self._seen.items() if key not in current]
        first = not self._seen_at
        self._remember(rows, now)
        if self._output is Output.JSON:
            return "".join(json.dumps(event) + "\n" for event in events)
        if self._output is Output.YAML:
            return "".join("---\n" + structured(event, Output.YAML) for event in events)
        return self._lines(events, now, headers=self._headers and first)

    def _lines(self, events: list[dict[str, Any]], now: float, *, headers: bool) -> str:
        event_column = Column("EVENT", lambda row: row[""])
        return table(
            [{**event["object"], "": event["type"]} for event in events],
            [event_column, *self._columns],
            now=now,
            wide=self._wide,
            headers=headers,
            colour=self._colour,
            widths=self._widths,
        )

    def _with_rates(self, row: Row, now: float) -> dict[str, Any]:
        before, elapsed = self._seen.get(self._key(row)), now - self._seen_at
        rated = dict(row)
        if before is not None and elapsed > 0:
            for name in self._rates:
                rated[name + "_rate"] = max(0, row.get(name, 0) - before.get(name, 0)) / elapsed
        return rated

    def _remember(self, rows: Sequence[Row], now: float) -> None:
        self._seen = {self._key(row): row for row in rows}
        self._seen_at = now
