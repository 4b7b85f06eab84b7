"""Programs that outlive the command that started them, each in a network namespace and a session of its own.

A record on disk holds the process id and its start time, so that an id which the kernel has given to somebody else in
the meantime is never taken for ours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """A process that was started."""

    pid: int
    started: int
    """Clock ticks since boot, from `/proc/<pid>/stat`."""
    argv: list[str]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return _started(self.pid) == self.started

    def terminate(self) -> None:
        """Send SIGTERM if it still runs."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def _started(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Processes:
    """The programs of one testbed: `<folder>/pids/NAME` and `<folder>/log/NAME`. Names may hold a `/`."""

    def __init__(self, folder: Path) -> None:
        self._pids, self._logs = folder / "pids", folder / "log"

    def log(self, name: str) -> Path:
        """Where the program's standard output and error go, over all its lives."""
        return self._logs / name.replace("/", ".")

    def start(
        self, name: str, argv: list[str], netns: str, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> Record:
        """Start `argv` in a namespace ("" is ours), detached; `environment` is added to ours."""
        self._pids.mkdir(exist_ok=True)
        self._logs.mkdir(exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", netns, *argv] if netns else argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        record = Record(process.pid, _started(process.pid) or 0, argv)
        (self._pids / name.replace("/", ".")).write_text(json.dumps(asdict(record)))
        return record

    def record(self, name: str) -> Record | None:
        """The last start of this program, if any."""
        try:
            return Record(**json.loads((self._pids / name.replace("/", ".")).read_text()))
        except FileNotFoundError:
            return None

    def alive(self, name: str) -> bool:
        """Whether this program runs."""
        record = self.record(name)
        return record is not None and record.alive

    def kill(self, name: str) -> bool:
        """SIGKILL the program itself; what it had started is left to fend for itself. False if it didn't run."""
        record = self.record(name)
        if record is None or not record.alive:
            return False
        os.kill(record.pid, signal.SIGKILL)
        self._await_end(record, 10)
        return True

    def stop(self, name: str, seconds: float) -> None:
        """SIGTERM, SIGKILL after `seconds`; then the same at once for what is left of its session."""
        record = self.record(name)
        if record is None:
            return
        record.terminate()
        if not self._await_end(record, seconds):
            os.kill(record.pid, signal.SIGKILL)
            self._await_end(record, 10)
        for pid in _session(record):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _await_end(self, record: Record, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while record.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def names(self) -> list[str]:
        """File names of all records."""
        return sorted(path.name for path in self._pids.glob("*"))

    def tail(self, name: str, lines: int = 20) -> str:
        """The end of a program's log."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def _session(record: Record) -> list[int]:
    """Members of the session that this process led. The kernel keeps the id reserved while there are any."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == record.pid and int(fields[19]) >= record.started and fields[0] not in "ZX":
                    members.append(int(entry.name))
    return members
