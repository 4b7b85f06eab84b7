"""The token buckets of rate limits that hold for one node, over all its workers: shared memory, no messages.

Which worker has a client's connection is chance (SO_REUSEPORT), so a limit divided among workers would refuse a client
that has but one connection most of what it may have. A bucket is one number, as in the generic cell rate algorithm
(ITU-T I.371): until when what it let pass uses up its refill. One that is past is a full bucket, so that slots free
themselves, and a node that has just started has all of them full.

A bucket has one of the four slots of its group, by its key's hash. If others hold all four, it shares one of them: no
key ever gets more than its limit, however many values of a header a client makes up; it may then get less. That is why
limits by a header are kept apart from plain ones, and (by hash) from each other.

A group is locked for the microseconds that taking a token needs; of a worker that dies then, the kernel frees the lock.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from hashlib import blake2b

_REGION_GROUPS = 2_048
_REGIONS = 128
"""The first is for limits that are not by a header."""
_WAYS = 4
_SIZE = _REGIONS * _REGION_GROUPS * _WAYS * 8
"""Of the tags, and again of the times. A file's pages take no memory before they are used."""


def create() -> int:
    """All buckets full; the caller closes the descriptor."""
    fd = os.memfd_create("nodemesh-buckets", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * _SIZE)
    return fd


class Buckets:
    """One worker's access to them. Owns the descriptor: closing any other of this process would drop its locks."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        memory = memoryview(mmap.mmap(fd, 2 * _SIZE))
        self._tags, self._until = memory[:_SIZE].cast("Q"), memory[_SIZE:].cast("d")

    def bucket(self, key: bytes, *, region: bytes = b"") -> tuple[int, int]:
        """Where the bucket of this key may be, for `take` and `put`; `region` for one of a limit by a header."""
        digest = int.from_bytes(blake2b(key, digest_size=16).digest())
        group = (digest >> 64) % _REGION_GROUPS
        if region:
            of = int.from_bytes(blake2b(region, digest_size=8).digest()) % (_REGIONS - 1)
            group += (of + 1) * _REGION_GROUPS
        return digest & 0xFFFFFFFFFFFFFFFF, group * _WAYS

    def take(self, bucket: tuple[int, int], interval: float, burst: int, now: float) -> float:
        """Take a token, of which one comes every `interval` seconds and `burst` are saved up at most.

        Returns 0.0, or if there is none in how many seconds there will be. `now` is of the monotonic clock, which all
        processes of a host share.
        """
        tag, first = bucket
        fcntl.lockf(self._fd, fcntl.LOCK_EX, _WAYS, first)
        try:
            slot = self._slot(tag, first, now)
            until = max(self._until[slot], now)
            if (wait := until + interval - now - (burst + 1e-3) * interval) > 0:  # a thousandth, for rounding
                return wait
            self._tags[slot], self._until[slot] = tag, until + interval
            return 0.0
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _WAYS, first)

    def put(self, bucket: tuple[int, int], interval: float, now: float) -> None:
        """Put back a token that was taken just now and not used."""
        tag, first = bucket
        fcntl.lockf(self._fd, fcntl.LOCK_EX, _WAYS, first)
        try:
            slot = self._slot(tag, first, now)
            if self._tags[slot] == tag:
                self._until[slot] -= interval
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _WAYS, first)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def _slot(self, tag: int, first: int, now: float) -> int:
        """The bucket's own slot, else a free one, else the first: shared with whoever has it."""
        slots = range(first, first + _WAYS)
        tags, until = self._tags, self._until
        free = first
        for slot in reversed(slots):
            if tags[slot] == tag:
                return slot
            if until[slot] <= now:
                free = slot
        return free
