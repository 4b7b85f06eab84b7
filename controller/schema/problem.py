"""One thing wrong with what a user wrote: where, what, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Lines and columns count from 1."""

    file: str
    line: int
    column: int
    path: str
    """Of the field, e.g. `spec.rules[0].from[1].source.principals[0]`; `""` for the document."""
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " + (f"{self.path}: " if self.path else "")
        return where + self.message + (f" ({self.remedy})" if self.remedy else "")
