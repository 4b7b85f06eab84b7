"""The README's first command."""

from __future__ import annotations

import os
import subprocess
import sys

from testbed import network


def test_every_claim_of_the_demo_holds_and_nothing_is_left_of_it() -> None:
    name = f"d{os.getpid()}"
    argv = [sys.executable, "-P", "-m", "demo", "--once", "-n", name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every claim held" in done.stdout
    assert network.remaining(name) == []
