"""The README's command for Kubernetes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kubebed import cluster


@pytest.mark.root
def test_every_claim_of_the_demo_on_kubernetes_holds_and_nothing_is_left_of_it(fit_machine: None) -> None:
    name = f"d{os.getpid()}"
    argv = [sys.executable, "-P", "-m", "demo", "--kube", "--once", "-n", name]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Every claim held" in done.stdout
        assert name not in cluster.names()
    finally:
        cluster.down(name)
