"""What processes cost: CPU time and resident memory, read from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")


def cpu_us(pids: Iterable[int]) -> float:
    """User plus system time of these processes with all their threads, µs since each began (10 ms steps)."""
    total = 0.0
    for pid in pids:
        user, system = _stat(pid)[11:13]
        total += (int(user) + int(system)) * _TICK_US
    return total


def rss_mb(pid: int) -> float:
    """Resident memory of one process, MB (10**6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"process {pid} has ended")


def family(pid: int) -> list[int]:
    """This process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the listing and the reading
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def in_pod(uid: str, program: str) -> int:
    """The process of a Kubernetes pod on this machine whose command line holds `program`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"pod{uid}" in (entry / "cgroup").read_text() and program in (entry / "cmdline").read_text():
                    return int(entry.name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the listing and the reading
    raise ProcessLookupError(f"no {program} runs in the pod {uid}")


def busy_share(seconds: float) -> float:
    """The share of all cores' time that is not idle during the next `seconds`, 0 to 1. Sleeps."""
    idle_before, total_before = _idle_and_total()
    time.sleep(seconds)
    idle, total = _idle_and_total()
    return 1 - (idle - idle_before) / max(1, total - total_before)


def busy_us() -> float:
    """What all processes of the machine have had of its cores since it was started, µs."""
    idle, total = _idle_and_total()
    return (total - idle) * _TICK_US


def _idle_and_total() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)  # idle and waiting for disks


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the command's name, which may hold anything: state, ppid, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
