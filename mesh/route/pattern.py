"""Regular expressions that operators write and hostile requests meet: RE2's, matched in time linear in the text.

Python's `re` backtracks, so that `(a*)*b` holds a node for minutes upon 40 bytes; refusing nested quantifiers would not
be enough (`a*a*a*a*b`, `(a|a)*b`) and would refuse what is harmless. RE2's syntax is what Istio and Envoy take, too.
The library takes 4 MB, so it is loaded with the first pattern; each takes some 6 KB and a match 1 µs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MEMORY = 1 << 20
"""Bytes that one pattern's automaton may take; RE2 goes on slower, without, where it is not enough."""


class BadPattern(ValueError):
    """Not in RE2's syntax, or too large: the message is RE2's."""


def compile_pattern(pattern: str) -> tuple[Callable[[bytes], bool], bytes]:
    """A test of whether a whole text matches, and what every text that matches starts with (as far as it is plain).

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
    fullmatch = compiled.fullmatch
    return lambda text: fullmatch(text) is not None, _literal(compiled)


def check_pattern(pattern: str) -> str:
    """What is wrong with a pattern, for whoever wrote it; empty if nothing."""
    try:
        compile_pattern(pattern)
    except BadPattern as error:
        return str(error)
    return ""


def _literal(compiled: Any) -> bytes:
    return b""
