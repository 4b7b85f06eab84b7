from __future__ import annotations

import pytest

from testbed.cli import arguments


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["meshctl", "--version"], ["--version"]),
        (["meshctl", "--help"], ["--help"]),
        (
            ["-n", "bed", "meshctl", "--socket", "/run/x", "nodes", "-o", "json"],
            ["--socket", "/run/x", "nodes", "-o", "json"],
        ),
        (["meshctl", "get", "services", "-n", "shop", "-h"], ["get", "services", "-n", "shop", "-h"]),
        (["meshctl"], []),
    ],
)
def test_meshctl_gets_its_options_wherever_they_are(argv: list[str], words: list[str]) -> None:
    options = arguments(argv)
    assert options.argv == words
    assert getattr(options, "name", "bed") == "bed"


def test_other_commands_refuse_options_that_they_do_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["status", "--bogus"])
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err
