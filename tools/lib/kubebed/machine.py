"""What a machine must be to have a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kubebed.errors import UnfitMachine

_CONTROLLERS = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}
_COMMANDS = {
    "/usr/bin/go": "golang-go",
    "/usr/share/gocode/src/github.com/modern-go/reflect2": "golang-github-modern-go-reflect2-dev",
    "/usr/bin/mmdebstrap": "mmdebstrap",
    "/usr/bin/dpkg-source": "dpkg-dev",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}


def hierarchies() -> dict[str, Path]:
    """The cgroup v1 hierarchies: mount options that name one (`cpu,cpuacct`, `name=systemd`) -> where it is mounted."""
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()}
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup":
            words = [word for word in options.split(",") if word in known or word.startswith("name=")]
            found.setdefault(",".join(sorted(words)), Path(left.split()[4]))
    return found


def check() -> None:
    """Raises `UnfitMachine` with everything that is in the way."""
    problems = [*_system(), *_kernel()] if os.geteuid() == 0 else ["root is needed: sudo tools/kubebed …"]
    if problems:
        raise UnfitMachine("this machine can't have a cluster:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _system() -> list[str]:
    release = {}
    with Path("/etc/os-release").open() as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            release[key] = value.strip('"')
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        is_now = release.get("PRETTY_NAME", "unknown")
        return [f"Debian 12 is needed, whose packages everything is made from; this is {is_now}"]
    missing = [package for path, package in _COMMANDS.items() if not Path(path).exists()]
    if missing:
        return [f"packages are missing: tools/setup kube, or apt-get install {' '.join(missing)}"]
    return []


def _kernel() -> list[str]:
    problems = []
    there = {word for options in hierarchies() for word in options.split(",")}
    if missing := sorted(_CONTROLLERS - there):
        problems.append(
            f"cgroup v1 hierarchies are needed, and {', '.join(missing)} is not mounted: boot with"
            " systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
        )
    if not _has_filesystem("overlay"):
        problems.append("the kernel has no overlay file system: modprobe overlay")
    if (
        not Path("/proc/sys/net/bridge").exists()
        and subprocess.run(_modprobe("br_netfilter"), capture_output=True).returncode
    ):
        problems.append("the kernel has no br_netfilter, which Services need: modprobe br_netfilter")
    return problems


def _has_filesystem(name: str) -> bool:
    for _ in range(2):
        if f"\t{name}\n" in Path("/proc/filesystems").read_text():
            return True
        subprocess.run(_modprobe(name), capture_output=True)
    return False


def _modprobe(module: str) -> list[str]:
    return ["modprobe", module] if shutil.which("modprobe") else ["false"]
