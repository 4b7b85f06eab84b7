"""The tutorial's commands, typed in order, do what it says."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import mesh
from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "tutorial/first-mesh.md"
_STEP = re.compile(
    r"(?P<run>(?:^    [^\n]*\n)+)|^```\n(?P<see>.*?)^```|^```yaml\n(?P<file>.*?)^```", re.MULTILINE | re.DOTALL
)
_FIRM = re.compile(r"200( from \S+)?|\S+ -n \S+ (created|configured)|shop/web +8080 +denied .*|node-b +disconnected .*")
"""Lines of the outputs shown that don't depend on times and ports: their first word must be there."""


def steps(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """What to type (`run`), to write down (`file`) and to see, for a testbed of another name in another folder."""
    text = PAGE.read_text().replace("/tmp/first", str(folder)).replace("name: first", f"name: {name}")
    text = text.replace("testbed down first", f"testbed down {name}")
    text = re.sub(r"tools/testbed (?!up|down)", f"tools/testbed -n {name} ", text)
    for match in _STEP.finditer(text):
        kind = str(match.lastgroup)
        yield kind, re.sub("^    ", "", match[kind], flags=re.MULTILINE) if kind == "run" else match[kind]


def type_in(commands: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a shell with the commands, as in a terminal in the repository's root."""
    with log.open("wb") as output:
        return subprocess.Popen(
            ["bash", "-ec", commands], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


@pytest.mark.root
def test_every_step_of_the_tutorial_works(tmp_path: Path) -> None:
    name, folder = f"t{os.getpid()}", tmp_path / "first"
    terminal, second = tmp_path / "terminal", tmp_path / "second"
    code, said, background = 0, "", None
    done: list[str] = []
    try:
        for kind, text in steps(name, folder):
            done.append(kind)
            if kind == "file":
                (folder / "mesh.yaml").write_text(text)
            elif kind == "run" and "--limit-rate" in text:
                background = type_in(text, second)
            elif kind == "run":
                code = type_in(text, terminal).wait(120)
                said = terminal.read_text()
                refused = "curl: (" in said or " denied " in said
                assert code == 0 or refused, f"{text}\n{said}"
            elif text.startswith("curl: (") and code == 0:  # the download in the second terminal, after the policy
                assert background is not None
                # it hears of the reset when it has read what its kernel had buffered: up to 32 MiB, at 20 MB/s
                assert background.wait(20) != 0
                assert "reset by peer" in second.read_text()
            elif not text.startswith("{"):  # a log, which the text tells how to see
                for line in filter(_FIRM.fullmatch, text.splitlines()):
                    assert line.split()[0] in said, f"{line}\n{said}"
                assert ("curl: (" in text) == ("curl: (" in said), said
        assert (done.count("file"), done.count("run") > 12, done.count("see") > 12) == (1, True, True)
        assert name not in mesh.names()
        assert not folder.exists()
    finally:
        if background is not None:
            background.kill()
            background.wait()
        mesh.down(name)
