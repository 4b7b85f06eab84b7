"""Operators' patterns, and what hostile requests can do with them."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.message import Request
from mesh.route import check_pattern, compile_match
from mesh.route.pattern import BadPattern, compile_pattern
from mesh.traffic import Compare, RouteMatch, ValueMatch


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b", "a*a*a*a*a*a*b", "(a+)+$b", "(.*)*(.*)*x{10}"])
def test_no_text_makes_a_pattern_slow(pattern: str) -> None:
    """Python's `re` would not be through with any of these before the machine is scrapped."""
    matches = compile_pattern(pattern).matches

    assert not matches(b"a" * 65_536)


def test_however_many_patterns_a_long_text_meets_their_work_is_bounded() -> None:
    """`.*a.{400}c` has no automaton of bearable size: upon 60 KiB of `a` and `b` by chance it takes 100 ms."""
    text = bytes(random.Random(1).choices(b"ab", k=60_000))
    clauses = [ValueMatch("x", f".*a.{{{400 + number}}}c", Compare.REGEX) for number in range(100)]
    tests = [compile_match(RouteMatch(headers=(clause,))) for clause in clauses]
    request = Request(b"GET", b"web", b"/", [(b"x", text + b"a" + b"b" * 400 + b"c")])
    assert not tests[0](request), "too long for so large a pattern"
    request.headers = [(b"x", text[-4000:] + b"a" + b"b" * 400 + b"c")]
    assert tests[0](request)
    many = RouteMatch(headers=tuple(replace(clause, name=f"x{n}") for n, clause in enumerate(clauses[:16])))
    request.headers = [(b"x%d" % n, text[-4000:] + b"a" + b"b" * (400 + n) + b"c") for n in range(16)]
    assert not compile_match(many)(request), "together they are too much"


def test_a_pattern_is_for_the_whole_text() -> None:
    matches = compile_pattern("/a|/b").matches

    assert [matches(text) for text in (b"/a", b"/b", b"/ab", b"x/a", b"/a\n")] == [True, True, False, False, False]


def test_a_pattern_is_for_bytes_whatever_they_mean() -> None:
    assert compile_pattern("/.")[0](b"/\xff")
    assert compile_pattern("caf\N{LATIN SMALL LETTER E WITH ACUTE}")[0](
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()
    )


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "(?=a)", r"(a)\1", "a{2000}", "((((((((a{100}){100}){100}", ".*a.{1000}c"]
)
def test_what_re2_does_not_take_is_said(pattern: str) -> None:
    assert check_pattern(pattern)
    with pytest.raises(BadPattern):
        compile_pattern(pattern)


def test_a_good_pattern_has_nothing_said_of_it() -> None:
    assert check_pattern(r"/api/v[0-9]+/.*") == ""


PIECES = [
    "/api/",
    "/",
    "a",
    "b",
    "v[0-9]",
    "a?",
    "b*",
    "a+",
    "a{2}",
    "(a|b)",
    "|",
    ".*",
    "\\.",
    "(?i)",
    "^",
    "$",
    "x",
    "-",
    "(/a)?",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=6), st.text("/apivbxAPI0.-", max_size=8))
def test_every_text_that_matches_has_the_start(pieces: list[str], text: str) -> None:
    try:
        matches, start, _ = compile_pattern("".join(pieces))
    except BadPattern:
        return

    assert not matches(text.encode()) or text.encode().startswith(start)


@pytest.mark.parametrize(
    ("pattern", "start"),
    [
        ("/api/v[0-9]+/x", b"/api/v"),
        ("/api/.*", b"/api/"),
        ("^/api/users$", b"/api/users"),
        ("/api/(a|b)/x", b"/api/"),
        ("/a|/b", b"/"),
        ("/ab*", b"/a"),
        ("(?i)/api", b"/"),
        (".*", b""),
    ],
)
def test_the_start_is_what_the_router_looks_patterns_up_by(pattern: str, start: bytes) -> None:
    assert compile_pattern(pattern)[1] == start


def test_the_library_is_loaded_with_the_first_pattern() -> None:
    """It takes 4 MB, of each worker."""
    code = "import sys, mesh.route as r; print('re2' in sys.modules, r.check_pattern('a'), 're2' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
