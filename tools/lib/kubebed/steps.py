"""Work that takes long, with its progress shown and its output kept for when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kubebed.errors import KubebedError


def say(text: str) -> None:
    """A line of progress, on standard error so that standard output stays the command's own."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show that `text` is being done, with a dot every three seconds, and how long it took."""
    began, done = time.monotonic(), threading.Event()
    print(f"- {text} ", end="", file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(3):
            print(".", end="", file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = " FAILED"
    try:
        yield
        outcome = f" {time.monotonic() - began:.0f} s"
    finally:
        done.set()
        ticker.join()
        say(outcome)


def run(
    argv: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program at low priority with its output added to `log`. Raises `KubebedError` with the output's end."""
    with log.open("ab") as output:
        began = output.tell()
        done = subprocess.run(
            ["nice", "-n", "10", *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=os.environ | (environment or {}),
        )
    if done.returncode:
        with log.open("rb") as output:
            output.seek(began)
            said = output.read().decode(errors="replace").splitlines()[-60:]
        shown = " ".join(map(str, argv))
        raise KubebedError("\n".join([f"{shown[:200]}: exit code {done.returncode}", *said, f"(all of it: {log})"]))
