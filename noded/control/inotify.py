"""Waiting for a folder to change, with the kernel's inotify through ctypes: no polling, no thread."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType

import trio

_libc = ctypes.CDLL(None, use_errno=True)
_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE, _IN_DELETE_SELF = 0x8, 0x40, 0x80, 0x200, 0x400
_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF
_MAX_EVENTS = 64 * 1024


class Watch:
    """Watches one folder for files that come, go or are written. Owns a descriptor; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises `OSError` if the folder isn't there."""
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if _libc.inotify_add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(_EVENTS)) < 0:
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, os.strerror(code), str(folder))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    async def changed(self, seconds: float) -> None:
        """Return when something has changed since the last call, or after so many seconds. Look at all of it then."""
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(self._fd)
        try:
            os.read(self._fd, _MAX_EVENTS)  # which file is of no interest
        except BlockingIOError:
            pass
