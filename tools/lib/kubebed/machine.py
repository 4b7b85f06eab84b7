"""What a machine must be to have a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from kubebed.errors import UnfitMachine
from kubebed.spec import DISKS

_CONTROLLERS = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}
_NEEDED = {
    "/usr/bin/go": "golang-go",
    "/usr/share/gocode/src/github.com/modern-go/reflect2": "golang-github-modern-go-reflect2-dev",
    "/usr/bin/mmdebstrap": "mmdebstrap",
    "/usr/bin/dpkg-source": "dpkg-dev",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "/usr/include/python3.11/Python.h": "python3-dev",
    "/usr/bin/gcc": "gcc",
}


def hierarchies(mounts: str = "") -> dict[str, Path]:
    """The cgroup v1 hierarchies: mount options that name one (`cpu,cpuacct`, `name=systemd`) -> where it is mounted.

    From the text of a mountinfo (proc(5)); "" is this process's.
    """
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()} | _CONTROLLERS
    found: dict[str, Path] = {}
    for line in (mounts or Path("/proc/self/mountinfo").read_text()).splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup":
            words = [word for word in options.split(",") if word in known or word.startswith("name=")]
            found.setdefault(",".join(sorted(words)), Path(left.split()[4]))
    return found


def check(release: Path = Path("/etc/os-release")) -> None:
    """Raises `UnfitMachine` with everything that is in the way."""
    if os.geteuid() != 0:
        problems = ["root is needed: sudo tools/kubebed …"]
    else:
        problems = [*_system(release), *_kernel(hierarchies()), *_disks()]
    if problems:
        raise UnfitMachine("this machine can't have a cluster:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _system(file: Path) -> list[str]:
    words = (line.partition("=") for line in file.read_text().splitlines())
    release = {key: value.strip('"') for key, _, value in words}
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        is_now = release.get("PRETTY_NAME", "unknown")
        return [f"Debian 12 is needed, whose packages everything is made from; this is {is_now}"]
    missing = [package for path, package in _NEEDED.items() if not Path(path).exists()]
    if missing:
        return [f"packages are missing: tools/setup kube, or apt-get install {' '.join(missing)}"]
    return []


def _kernel(groups: dict[str, Path]) -> list[str]:
    problems = []
    if missing := sorted(_CONTROLLERS - {word for options in groups for word in options.split(",")}):
        problems.append(
            f"cgroup v1 hierarchies are needed, and {', '.join(missing)} is not mounted: boot with"
            " systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
        )
    if not _loaded("overlay", lambda: "\toverlay\n" in Path("/proc/filesystems").read_text()):
        problems.append("the kernel has no overlay file system: modprobe overlay")
    if not _loaded("br_netfilter", Path("/proc/sys/net/bridge").exists):
        problems.append("the kernel has no br_netfilter, which Services need: modprobe br_netfilter")
    return problems


def _loaded(module: str, there: Callable[[], bool]) -> bool:
    """Whether the kernel has something, now or after its module is loaded."""
    if not there() and shutil.which("modprobe"):
        subprocess.run(["modprobe", module], capture_output=True)
    return there()


def _disks() -> list[str]:
    """A node's file system is an overlay, and the layer that it writes to can't be in another."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", DISKS.parent], capture_output=True, text=True).stdout.strip()
    if kind == "overlayfs":
        return [f"{DISKS.parent} is in an overlay file system, as in a container: mount a disk there"]
    return []
