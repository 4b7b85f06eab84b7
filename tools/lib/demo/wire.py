"""Packet captures with tcpdump."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Capture:
    """tcpdump on one interface of one namespace, from `with` to its end; then the packets can be asked.

    `enter` makes of a command line the one that runs it in that namespace.
    """

    def __init__(self, enter: Callable[[list[str]], list[str]], interface: str, file: Path) -> None:
        argv = [
            "tcpdump",
            "-i",
            interface,
            "-n",
            "-s",
            "0",
            "-B",
            "8192",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-w",
            str(file),
        ]
        self._argv, self._file = enter(argv), file

    def __enter__(self) -> Capture:
        self._process = subprocess.Popen(self._argv, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:  # "listening on …": packets from now on are in it
            if "listening on" in line:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(0.5)  # for tcpdump to write what it has been given
        self._process.terminate()
        self._process.communicate(timeout=10)

    def holds(self, text: str) -> bool:
        """Whether the bytes of any packet hold this."""
        return text.encode() in self._file.read_bytes()

    def packets(self, expression: str = "") -> list[str]:
        """tcpdump's one line for each packet that matches."""
        argv = ["tcpdump", "-n", "-q", "-r", str(self._file), *expression.split()]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
