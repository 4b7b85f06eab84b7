"""The images that every node has: what each pod needs, and what tests run."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from kubebed import image
from kubebed.image import archive, layer

PAUSE, BUSYBOX, PYTHON = "localhost/pause:3", "localhost/busybox:1", "localhost/python:3"
RECIPE = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, image.__file__))).hexdigest()
"""What besides the arguments of `make` decides what it makes."""


def architecture() -> str:
    """As Debian, and OCI, call it."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def make(node: Path, python: Path, target: Path) -> None:
    """Write their archives into the new folder `target`: from a node's file system, and the layer with Python."""
    scratch = target / "scratch"
    for name in ("pause", "busybox"):
        (scratch / name / "bin").mkdir(parents=True)
    shutil.copy(node / "usr/bin/catatonit", scratch / "pause/bin/pause")
    shutil.copy(node / "bin/busybox", scratch / "busybox/bin/busybox")
    applets = subprocess.run([node / "bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        if applet != "busybox":
            (scratch / "busybox/bin" / applet).symlink_to("busybox")
    for name in ("etc", "tmp"):
        (scratch / "busybox" / name).mkdir()
    (scratch / "busybox/tmp").chmod(0o1777)
    (scratch / "busybox/etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    commands = {"pause": (PAUSE, ["/bin/pause", "-P"]), "busybox": (BUSYBOX, ["/bin/sh"])}
    for name, (reference, command) in commands.items():
        layer(scratch / name, scratch / f"{name}.tar")
        archive(target / f"{name}.tar", reference, [scratch / f"{name}.tar"], command, architecture())
    archive(target / "python.tar", PYTHON, [python], ["python3"], architecture())
    shutil.rmtree(scratch)
