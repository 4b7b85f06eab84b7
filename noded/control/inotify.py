"""Waiting for a folder to change, with the kernel's inotify through ctypes: no polling, no thread.

A host has a bounded number of inotify's instances and watches for all of root's processes (`fs.inotify.max_user_*`),
and log collectors like to take them all: then it is polling after all.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from pathlib import Path
from types import TracebackType

import trio

_libc = ctypes.CDLL(None, use_errno=True)
_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE, _IN_DELETE_SELF = 0x8, 0x40, 0x80, 0x200, 0x400
_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF
_MAX_EVENTS = 64 * 1024
_POLL_SECONDS = 0.5
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC)
_log = logging.getLogger(__name__)


class Watch:
    """Watches one folder for files that come, go or are written. Owns a descriptor; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises `OSError` if the folder isn't there."""
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0 and _libc.inotify_add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(_EVENTS)) >= 0:
            return
        code = ctypes.get_errno()
        self.__exit__(None, None, None)
        if code not in _EXHAUSTED:
            raise OSError(code, os.strerror(code), str(folder))
        self._fd = -1
        _log.warning(
            "no inotify left on this host: looking now and then instead; raise fs.inotify.max_user_instances",
            extra={"folder": str(folder), "error": os.strerror(code)},
        )

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    async def changed(self, seconds: float) -> None:
        """Return when something may have changed since the last call, at the latest after so many seconds."""
        if self._fd < 0:
            await trio.sleep(min(seconds, _POLL_SECONDS))
            return
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(self._fd)
        try:
            os.read(self._fd, _MAX_EVENTS)  # which file is of no interest
        except BlockingIOError:
            pass
