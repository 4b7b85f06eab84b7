"""The tutorial's commands, typed in order, print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from testbed import mesh
from tests.docs.pages import DOCS, ROOT

PAGE = DOCS / "tutorial/first-mesh.md"
_BLOCK = re.compile(
    r"(?P<run>(?:^    [^\n]*\n)+)|^```\n(?P<see>.*?)^```|^```yaml\n(?P<file>.*?)^```", re.MULTILINE | re.DOTALL
)
_STATUS = re.compile(r"\d{3}( from \S+)?")
_VARIES = re.compile(r"\[.*?\]|(?<![\w.])\d[\w.:%+-]*")
"""Times, sizes, counts, ports and addresses."""
_FAILS = re.compile(r"^curl: \(| denied ", re.MULTILINE)
_LOOKS = re.compile(r"(?:nodectl|meshctl) (?:connections|describe|edges|nodes|routes|status|tunnels)\b")
"""A command that may be typed again until it shows what is to come."""
_LOGGED = re.compile(r'"(?:reason|path)":"[^"]+"|"response_code":\d+')


@dataclass
class Step:
    """Something to type or (`run` is empty) to write down, and what is to be seen then."""

    run: str
    file: str = ""
    shown: list[str] = field(default_factory=list)
    second: bool = False
    """Typed in the second terminal, where it goes on."""
    ends_second: str = ""
    """What is to be seen there afterwards, where that has ended."""


def steps(name: str, folder: Path) -> list[Step]:
    """The tutorial, for a testbed of another name in another folder."""
    text = PAGE.read_text().replace("/tmp/first", str(folder)).replace("name: first", f"name: {name}")
    text = text.replace("testbed down first", f"testbed down {name}").replace("testbed 'first'", f"testbed '{name}'")
    text = text.replace("nm-first-", f"nm-{name}-")
    text = re.sub(r"tools/testbed (?!up|down)", f"tools/testbed -n {name} ", text)
    found: list[Step] = []
    told = 0
    for match in _BLOCK.finditer(text):
        prose, told = text[told : match.start()], match.end()
        if match["run"] is not None:
            found.append(Step(re.sub("^    ", "", match["run"], flags=re.MULTILINE), second="second terminal" in prose))
        elif match["file"] is not None:
            found.append(Step("", match["file"]))
        elif "second terminal" in prose:
            found[-1].ends_second = match["see"]
        else:
            found[-1].shown.append(match["see"])
    return found


def lines(text: str) -> Counter[str]:
    """What has to be the same from run to run, line by line. An error of curl's is one, whatever its number."""
    kept: Counter[str] = Counter()
    for line in map(str.strip, text.splitlines()):
        if line.startswith("curl: ("):
            kept["curl: ("] += 1
        elif line not in ("", "…"):
            kept[line if _STATUS.fullmatch(line) else " ".join(_VARIES.sub("#", line).split())] += 1
    return kept


def type_in(commands: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a shell with the commands, as in a terminal in the repository's root."""
    with log.open("wb") as output:
        return subprocess.Popen(
            ["bash", "-ec", commands], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def logged(name: str, what: str) -> bool:
    """Whether a node comes to log it."""
    deadline = time.monotonic() + 15
    while True:
        for node in ("node-a", "node-b"):
            done = subprocess.run(
                ["tools/testbed", "-n", name, "logs", node], cwd=ROOT, capture_output=True, text=True, check=True
            )
            if what in done.stdout:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


@pytest.mark.root
def test_every_step_of_the_tutorial_works(tmp_path: Path) -> None:
    name, folder = f"t{os.getpid()}", tmp_path / "first"
    terminal, second = tmp_path / "terminal", tmp_path / "second"
    background: subprocess.Popen[bytes] | None = None
    going_on = False
    todo = steps(name, folder)
    assert sum(bool(step.file) for step in todo) == 1
    assert sum(step.second for step in todo) == sum(bool(step.ends_second) for step in todo) == 1
    assert sum(bool(step.shown) for step in todo) > 15
    try:
        for step in todo:
            if step.file:
                (folder / "mesh.yaml").write_text(step.file)
                continue
            if step.second:
                assert background is None
                background, going_on = type_in(step.run, second), True
                continue
            if going_on:
                assert background is not None
                assert background.poll() is None, f"before {step.run}\n{second.read_text()}"
            shown = [text for text in step.shown if not text.startswith("{")]
            looks = all(map(_LOOKS.search, step.run.splitlines()))
            deadline = time.monotonic() + (20 if looks else 0)
            while True:
                code = type_in(step.run, terminal).wait(120)
                said = terminal.read_text()
                missing = sum((lines(text) for text in shown), Counter[str]()) - lines(said)
                if not missing or time.monotonic() > deadline:
                    break
                time.sleep(0.5)
            assert not missing, f"{step.run}\nprinted\n{said}\nand not {missing}"
            assert (code != 0) == any(map(_FAILS.search, shown)), f"{step.run}\n{said}"
            for text in step.shown:
                for what in _LOGGED.findall(text) if text.startswith("{") else ():
                    assert logged(name, what), what
            if step.ends_second:
                assert background is not None
                # it hears of the reset when it has read what its kernel had buffered: up to 32 MiB, at 20 MB/s
                assert background.wait(20) != 0
                assert not lines(step.ends_second) - lines(second.read_text()), second.read_text()
                going_on = False
        assert name not in mesh.names()
        assert not folder.exists()
    finally:
        if background is not None:
            background.kill()
            background.wait()
        mesh.down(name)
