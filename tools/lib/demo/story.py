"""Telling what happens: a claim, the commands that show it, and whether it held."""

from __future__ import annotations

import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

from testbed import mesh
from testbed.mesh import Testbed
from testbed.spec import Node, Pod

_SHOWN_LINES = 20


class Telling:
    """What `tools/demo` prints. Counts the claims that did not hold."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._chapter = 0
        bold = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        self._title = f"\n{bold[0]}%d. %s{bold[1]}"

    def chapter(self, title: str, text: str) -> None:
        """A new section, with what it is about."""
        self._chapter += 1
        print(self._title % (self._chapter, title))
        self.tell(text)

    def tell(self, text: str) -> None:
        """A paragraph."""
        print(textwrap.fill(text, 110, initial_indent="   ", subsequent_indent="   "), flush=True)

    def ran(self, typed: str, done: subprocess.CompletedProcess[str], quiet: bool = False) -> None:
        """A command as the reader would type it, and what it said; if `quiet`, only if it failed."""
        print(f"   $ {typed}")
        lines = (done.stdout + done.stderr).rstrip().splitlines()
        if quiet and not done.returncode:
            lines = []
        for line in lines[:_SHOWN_LINES]:
            print(f"     {line[:170]}")
        if len(lines) > _SHOWN_LINES:
            print(f"     … {len(lines) - _SHOWN_LINES} more lines")
        sys.stdout.flush()

    def evidence(self, text: str) -> None:
        """A fact that was found, as it is."""
        print(f"     {text}", flush=True)

    def check(self, held: bool, claim: str) -> None:
        """Whether a claim held."""
        print(f"   {'✓' if held else '✗ NOT SO:'} {claim}", flush=True)
        if not held:
            self.failed.append(claim)

    def verdict(self, seconds: float) -> None:
        """The last word."""
        print(f"\n{seconds:.0f} s. ", end="")
        if self.failed:
            print(f"{len(self.failed)} claims did not hold:")
            for claimed in self.failed:
                print(f"   ✗ {claimed}")
        else:
            print("Every claim held.")


class Story(Telling):
    """The telling of what happens in a testbed."""

    def __init__(self, bed: Testbed) -> None:
        super().__init__()
        self.bed = bed

    @property
    def testbed(self) -> str:
        """The command as the reader has to type it now."""
        return "tools/testbed" if mesh.names() == [self.bed.spec.name] else f"tools/testbed -n {self.bed.spec.name}"

    def show(self, where: Node | Pod | None, *argv: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod, on a node, or (None) `meshctl`; print it as typed, and what it says."""
        bed = self.bed
        if isinstance(where, Pod):
            typed, argv_there, environment = f"exec {where.name} --", bed.enter(where, list(argv)), {}
        elif isinstance(where, Node):
            typed, argv_there = f"node {where.name} --", bed.enter(where, list(argv))
            environment = bed.environment(where)
        else:
            typed, argv_there = "meshctl", bed.enter("controller", ["meshctl", *argv])
            environment = bed.environment(None)
        done = bed.capture(argv_there, environment, timeout=30)
        self.ran(f"{self.testbed} {typed} {shlex.join(argv)}", done, quiet)
        return done


def until(held: Callable[[], bool], seconds: float = 15) -> bool:
    """Wait until it holds; whether it came to."""
    deadline = time.monotonic() + seconds
    while not held():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
