"""The snapshot in force, and the copy of it on disk with which a restarted node works while the controller is away."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import trio

from mesh.codec import DecodeError, decode, encode
from mesh.snapshot import Snapshot, SnapshotError
from mesh.sync import Update
from noded.control.failure import CannotRun
from noded.control.files import private_directory, read_if_there, remove_unfinished, write_atomic

_log = logging.getLogger(__name__)
_WRITE_EVERY = 2.0


class State:
    """Holds `snapshot`; `run` writes it down soon after it changes, and a last time when cancelled."""

    def __init__(self, directory: Path) -> None:
        """Load what is there. A damaged file is set aside: the controller sends everything again."""
        try:
            private_directory(directory)
        except OSError as error:
            raise CannotRun(f"stateDir {directory} cannot be made: {error.strerror}", "run noded as root") from error
        remove_unfinished(directory)
        self._path = directory / "snapshot.msgpack"
        self.snapshot = Snapshot.empty()
        self.applied_at = 0.0
        """Unix seconds; when the controller last sent something new, also before a restart."""
        self.replaced = trio.Event()
        """Set, and succeeded by another, when `snapshot` changes."""
        self._dirty = trio.Event()
        data = read_if_there(self._path)
        if data is not None:
            try:
                self.snapshot = self.snapshot.apply(decode(Update, data))
                self.applied_at = self._path.stat().st_mtime
            except (DecodeError, SnapshotError, ValueError) as error:
                _log.warning("saved snapshot is not usable", extra={"path": str(self._path), "error": str(error)})

    def replace(self, snapshot: Snapshot) -> None:
        """`snapshot` is in force from now on."""
        self.snapshot = snapshot
        self.applied_at = time.time()
        self._dirty.set()
        self.replaced.set()
        self.replaced = trio.Event()

    async def run(self) -> None:
        """Write changes, at most one every few seconds, for ever."""
        try:
            while True:
                await self._dirty.wait()
                self._dirty = trio.Event()
                await trio.to_thread.run_sync(self._write)
                await trio.sleep(_WRITE_EVERY)
        finally:
            if self._dirty.is_set():
                self._write()

    def _write(self) -> None:
        try:
            write_atomic(self._path, encode(self.snapshot.to_update()))
        except OSError as error:
            _log.error("snapshot not saved", extra={"path": str(self._path), "error": str(error)})
