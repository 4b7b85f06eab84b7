"""The source ports of captured plaintext connections, over all workers of a node: shared memory, no messages.

A worker that connects to a local workload in a client's name must not choose a source port which that client is using
on a live captured connection: to the kernel the two would be one, and the older would die. Which worker has that
connection is chance (SO_REUSEPORT), so all share one table. Each writes only its own part of it, hence no locks; a port
counts as used whichever client and workload it belongs to, which refuses a few too many and none too few.
"""

from __future__ import annotations

import mmap
import os

_PORTS = 65_536
_PART = 2 * _PORTS
_MOST = 65_535


def create(workers: int) -> int:
    """The table for so many workers, all ports free; the caller closes the descriptor."""
    fd = os.memfd_create("nodemesh-source-ports", os.MFD_CLOEXEC)
    os.ftruncate(fd, _PART * workers)
    return fd


def clear(fd: int, index: int) -> None:
    """Free what a worker that has ended was using."""
    os.pwrite(fd, bytes(_PART), _PART * index)


class SourcePorts:
    """One worker's access to the table; `fd` may be closed afterwards."""

    def __init__(self, fd: int, index: int) -> None:
        table = memoryview(mmap.mmap(fd, 0)).cast("H")
        self._parts = [table[at : at + _PORTS] for at in range(0, len(table), _PORTS)]
        self._own = self._parts[index]

    def take(self, port: int) -> None:
        """A captured plaintext connection with this source port has begun here."""
        if self._own[port] < _MOST:
            self._own[port] += 1

    def release(self, port: int) -> None:
        """It has ended. A count that was ever full stays: the port is not chosen again."""
        if 0 < self._own[port] < _MOST:
            self._own[port] -= 1

    def used(self, port: int) -> bool:
        """Whether any worker has one."""
        return any(part[port] for part in self._parts)
