"""Regular expressions that operators write and hostile requests meet: RE2's, matched in time linear in the text.

Python's `re` backtracks, so that `(a*)*b` holds a node for minutes upon 40 bytes; refusing nested quantifiers would not
be enough (`a*a*a*a*b`, `(a|a)*b`) and would refuse what is harmless. RE2's syntax is what Istio and Envoy take, too.
The library takes 4 MB, so it is loaded with the first pattern; each takes some 6 KB and a match 1 µs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

_PLAIN = re.compile(rb"(?:[-A-Za-z0-9/_~%](?![?*{]))*")
"""Characters that stand for themselves, once. RE2 is no help with `/api/.*`: to `/api0`, which starts otherwise."""
_LONGEST = 256

_MEMORY = 1 << 20
"""Bytes that one pattern's automaton may take; RE2 goes on slower, without, where it is not enough."""
_LARGEST = 1000
"""Steps of its program. Without the automaton each byte of a text may take 3 ns a step: `.*a.{1000}c` upon 60 KiB took
0.3 s."""


class BadPattern(ValueError):
    """Not in RE2's syntax, or too large: the message is RE2's."""


class Pattern(NamedTuple):
    """A pattern, compiled."""

    matches: Callable[[bytes], bool]
    """Whether it matches a whole text."""
    start: bytes
    """What every text that matches starts with (as far as it is plain)."""
    size: int
    """Steps of its program, and so what a byte of a text may cost."""


def compile_pattern(pattern: str) -> Pattern:
    """Compile it.

    :raises BadPattern:
    """
    import re2  # see above

    options = re2.Options()
    options.max_mem = _MEMORY
    options.encoding = re2.Options.Encoding.LATIN1  # bytes: what a client sends need not be UTF-8
    options.log_errors = False
    options.never_capture = True
    try:
        compiled = re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0] if error.args else "cannot be compiled"
        raise BadPattern(reason.decode() if isinstance(reason, bytes) else str(reason)) from None
    fullmatch, size = compiled.fullmatch, compiled._regexp.ProgramSize()
    if size > _LARGEST:
        raise BadPattern(f"too large: a program of {size} steps, {_LARGEST} at most")
    return Pattern(lambda text: fullmatch(text) is not None, _literal(pattern.encode(), compiled._regexp), size)


def check_pattern(pattern: str) -> str:
    """What is wrong with a pattern, for whoever wrote it; empty if nothing."""
    try:
        compile_pattern(pattern)
    except BadPattern as error:
        return str(error)
    return ""


def _literal(pattern: bytes, compiled: Any) -> bytes:
    """What every match starts with, or less; `Any`: RE2's own object."""
    possible, least, most = compiled.PossibleMatchRange(_LONGEST)
    ranged = b""
    if possible:  # whatever is between two texts starts with what both start with
        ranged = least[: next((at for at, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))]
        ranged = ranged[: len(most)]
    if b"|" in pattern or b"(?" in pattern:  # alternatives; flags
        return ranged
    plain = _PLAIN.match(pattern.removeprefix(b"^"))
    return max(ranged, plain[0] if plain else b"", key=len)
