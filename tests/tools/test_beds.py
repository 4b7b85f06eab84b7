"""Which bed is meant. A name becomes part of paths that are removed, so that it is looked at first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed import mesh
from testbed.beds import Beds
from testbed.cli import main


class Wrong(Exception):
    pass


def beds(*there: str) -> Beds:
    return Beds("bed", "bedtool", Wrong, lambda: list(there))


def test_the_one_there_is_need_not_be_named() -> None:
    assert beds("a").choose() == beds("a", "b").choose("a") == "a"


@pytest.mark.parametrize(
    ("there", "name", "why"),
    [
        ((), "", "no bed is up"),
        (("a",), "b", "bed 'b' is not up"),
        (("a", "b"), "", "several beds are up .a, b.: choose with -n NAME"),
        (("a",), "../a", "bed '../a' is not up"),
    ],
)
def test_what_is_not_there_or_not_clear_is_said(there: tuple[str, ...], name: str, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        beds(*there).choose(name)


def test_a_bed_is_made_or_removed_by_one_at_a_time() -> None:
    name = f"t{os.getpid()}"
    with beds().claim(name), pytest.raises(Wrong, match="right now"), beds().claim(name):
        pass
    with beds().claim(name):
        pass


@pytest.mark.parametrize("words", [["down"], ["-n"]])
def test_down_of_what_is_no_testbed_removes_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mesh, "FOLDER", tmp_path / "beds")
    mesh.FOLDER.mkdir()
    (tmp_path / "mine").mkdir()
    argv = ["down", "../mine"] if words == ["down"] else ["-n", "../mine", "down"]
    assert main(argv) == 1
    assert "can't be a testbed's name" in capsys.readouterr().err
    assert not mesh.down("../mine")
    assert (tmp_path / "mine").is_dir()
