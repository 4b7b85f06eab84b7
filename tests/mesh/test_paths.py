"""Paths: a table, an independent model, and what holds for all."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.paths import Normalization, normalise

NONE, BASE, MERGE, DECODE = Normalization

pieces = st.sampled_from([
    "/", "/", ".", "..", "%2e", "%2E", "a", "b", "%2f", "%2F", "%5c", "%5C", "\\", "%41", "%7e", "%25", "%20", "%c0%af",
    ";", "|", "{", '"', "<", "^", "`", "'", ":", "@", "%5f", "%30", "?", "=", "~", "%zz", "%", "%00", "%2",
])  # fmt: skip
paths = st.lists(pieces, max_size=8).map(lambda chosen: b"/" + "".join(chosen).encode())


@pytest.mark.parametrize(
    ("path", "base", "merged", "decoded"),
    [
        ("/", "/", "/", "/"),
        ("/a/b?c=/../d//e%2f", *["/a/b?c=/../d//e%2f"] * 3),
        ("/a/../b", *["/b"] * 3),
        ("/a/./b", *["/a/b"] * 3),
        ("/a/b/..", *["/a/"] * 3),
        ("/a/b/.", *["/a/b/"] * 3),
        ("/../../a", *["/a"] * 3),
        ("/..", *["/"] * 3),
        ("/a/...", *["/a/..."] * 3),
        ("/a/..;x/b", *["/b"] * 3),
        ("/a/%2e%2E;x/b", *["/b"] * 3),
        ("/a/b/.;", *["/a/b/"] * 3),
        ("/a/x..;y/b", *["/a/x..;y/b"] * 3),
        ("/a/.b", *["/a/.b"] * 3),
        ("/a/%2e%2E/b", *["/b"] * 3),
        ("/a/.%2e/b", *["/b"] * 3),
        ("/a\\b", *["/a/b"] * 3),
        ("/a\\..\\b", *["/b"] * 3),
        ("/%61%2D%7e%5F", *["/a-~_"] * 3),
        ("/%20%25%c0%af", *["/%20%25%c0%af"] * 3),
        ("/%252f%252e%252e", *["/%252f%252e%252e"] * 3),
        ('/"<>^`{|}', *["/%22%3C%3E%5E%60%7B%7C%7D"] * 3),
        ("/a;b=c/(d)'!$&*+,:@[]", *["/a;b=c/(d)'!$&*+,:@[]"] * 3),
        ("/a//b", "/a//b", "/a/b", "/a/b"),
        ("/a//../b", "/a/b", "/a/b", "/a/b"),
        ("//", "//", "/", "/"),
        ("/a%2fb", "/a%2fb", "/a%2fb", "/a/b"),
        ("/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
        ("/a%2F..%2Fb", "/a%2F..%2Fb", "/a%2F..%2Fb", "/b"),
        ("/a%2f%2fb", "/a%2f%2fb", "/a%2f%2fb", "/a/b"),
        ("*", *["*"] * 3),
    ],
)
def test_a_path_has_one_form(path: str, base: str, merged: str, decoded: str) -> None:
    assert normalise(path.encode(), NONE).decode() == path
    assert normalise(path.encode(), BASE).decode() == base
    assert normalise(path.encode(), MERGE).decode() == merged
    assert normalise(path.encode(), DECODE).decode() == decoded


@pytest.mark.parametrize("path", [b"/%", b"/%2", b"/%zz", b"/%2%46", b"/%%32f", b"/%00", b"/.%00./a"])
def test_a_broken_escape_is_refused_where_escapes_are_read(path: bytes) -> None:
    for mode in (BASE, MERGE, DECODE):
        with pytest.raises(ValueError):
            normalise(path, mode)
    assert normalise(path, NONE) == path
    assert normalise(b"/?" + path[1:], DECODE) == b"/?" + path[1:]


@pytest.mark.parametrize(
    "path", [b"", b"a", b"\\a", b"?a", b"/\xc3\xa4", b"/a b", b"/a#b", b"/?a#b", b"/\n", b"/\x7f", b"**"]
)
@pytest.mark.parametrize("mode", Normalization)
def test_what_is_no_path_is_refused(path: bytes, mode: Normalization) -> None:
    with pytest.raises(ValueError):
        normalise(path, mode)


def _model(text: str, mode: Normalization) -> str | None:
    """Character by character, as the words of the standard have it; None for refused."""
    path, mark, query = text.partition("?")
    characters: list[str] = []
    at = 0
    while at < len(path):
        character = path[at]
        at += 1
        if character == "%":
            digits = path[at : at + 2]
            at += 2
            if len(digits) < 2 or any(digit not in string.hexdigits for digit in digits) or digits == "00":
                return None
            meant = chr(int(digits, 16))
            if meant in string.ascii_letters + string.digits + "-._~":
                characters.append(meant)
            elif meant in "/\\" and mode is DECODE:
                characters.append("/")
            else:
                characters.append("%" + digits)
        elif character == "\\":
            characters.append("/")
        elif character in '"<>^`{|}':
            characters.append(f"%{ord(character):02X}")
        else:
            characters.append(character)
    rest = re.sub(r"/(\.\.?);[^/]*", r"/\1", "".join(characters))
    done = ""
    while rest:  # RFC 3986 section 5.2.4, to the letter
        if rest.startswith("/./"):
            rest = rest[2:]
        elif rest == "/.":
            rest = "/"
        elif rest.startswith("/../"):
            rest, done = rest[3:], done[: max(0, done.rfind("/"))]
        elif rest == "/..":
            rest, done = "/", done[: max(0, done.rfind("/"))]
        else:
            end = rest.find("/", 1)
            end = len(rest) if end < 0 else end
            done, rest = done + rest[:end], rest[end:]
    if mode is not BASE:
        while "//" in done:
            done = done.replace("//", "/")
    return done + mark + query


@settings(deadline=None)
@given(paths, st.sampled_from([BASE, MERGE, DECODE]))
def test_it_is_what_an_independent_model_says(path: bytes, mode: Normalization) -> None:
    expected = _model(path.decode(), mode)
    if expected is None:
        with pytest.raises(ValueError):
            normalise(path, mode)
    else:
        assert normalise(path, mode).decode() == expected


@settings(deadline=None)
@given(paths, st.sampled_from(Normalization))
def test_what_is_normal_stays(path: bytes, mode: Normalization) -> None:
    try:
        once = normalise(path, mode)
    except ValueError:
        return
    assert normalise(once, mode) == once


@settings(deadline=None)
@given(paths)
def test_no_dots_or_slashes_can_hide(path: bytes) -> None:
    try:
        found = normalise(path, DECODE).partition(b"?")[0]
    except ValueError:
        return
    assert not {b".", b".."} & {segment.partition(b";")[0] for segment in found.split(b"/")}
    assert b"//" not in found
    assert b"\\" not in found
    assert not {b"%2f", b"%5c", b"%2e"} & {found[at : at + 3].lower() for at in range(len(found))}
