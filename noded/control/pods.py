"""Finding the processes of pods: whose pod a process is, /proc/PID/cgroup says, whatever runtime made it.

The pod's UID is a component of the path, under every driver and in both versions of cgroups:

    cgroupfs   /kubepods/burstable/pod6f1c…-…/<container>
    systemd    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6f1c…_….slice/cri-containerd-<id>.scope

A static pod has kubelet's hash of its file there, 32 digits with nothing between them. The outermost such component
counts. A container with a writable cgroup can make folders below its own with the names of other pods; it can't get out
of its own pod's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEX = "[0-9a-f]"
_UID = re.compile(
    rf"(?:/|-)pod({_HEX}{{8}}([-_]){_HEX}{{4}}\2{_HEX}{{4}}\2{_HEX}{{4}}\2{_HEX}{{12}}|{_HEX}{{32}})(?:\.slice)?(?:/|$)"
)
_MAX_CGROUP = 64 * 1024


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The oldest process of a pod. It stands for the pod's own namespace."""

    pid: int
    started: int
    """In clock ticks since the boot: tells it from a later process of the same number."""

    def netns(self, proc: Path) -> str:
        """Path of its network namespace."""
        return str(proc / str(self.pid) / "ns" / "net")

    def runs(self, proc: Path) -> bool:
        """Whether the process of that number is still this one. Ask after opening what is to be its."""
        try:
            return _started((proc / str(self.pid) / "stat").read_bytes()) == self.started
        except (OSError, ValueError, IndexError):
            return False


def pod_of(cgroup: str) -> str | None:
    """The UID of the pod that a process belongs to, from the text of its /proc/PID/cgroup; None if to none."""
    for line in cgroup.splitlines():
        path = line.split(":", 2)[-1]
        if found := _UID.search(path):
            return found[1].replace("_", "-")
    return None


def sandboxes(proc: Path = Path("/proc")) -> dict[str, Sandbox]:
    """The sandbox of every pod that has a process, by the pod's UID. Costs some 20 µs a process of the host.

    The oldest process is the sandbox's own, which the runtime starts before any container: one that a container
    started could have entered a namespace of its own making.
    """
    found: dict[str, Sandbox] = {}
    for pid in _processes(proc):
        try:
            with open(proc / str(pid) / "cgroup", encoding="utf-8", errors="replace") as file:
                uid = pod_of(file.read(_MAX_CGROUP))
            if uid is None:
                continue
            started = _started((proc / str(pid) / "stat").read_bytes())
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
        if started is not None and (uid not in found or (started, pid) < (found[uid].started, found[uid].pid)):
            found[uid] = Sandbox(pid, started)
    return found


def _processes(proc: Path) -> Iterator[int]:
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _started(stat: bytes) -> int | None:
    """When the process started, or None for one that is dead: it has no namespaces any more. See `man 5 proc`."""
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def visible(netns: str, proc: Path = Path("/proc")) -> str:
    """The path of a namespace, which a container runtime gave, as this process sees it.

    This process may have mounts of its own; the host's are those of process 1. `/var/run` is mostly a link to `/run`,
    which would lead from there to our own.
    """
    return netns if os.path.exists(netns) else str(proc / "1" / "root") + re.sub(r"\A/var/run/", "/run/", netns)
