"""Files that a crash at any moment leaves either as they were or as they were to become."""

from __future__ import annotations

import os
from pathlib import Path

_SUFFIX = ".new"


def private_directory(path: Path) -> None:
    """Make `path` (and parents) if needed, and it alone readable by nobody else."""
    path.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.chmod(0o700)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` with `data`, mode 0600, on disk before this returns. One writer a path."""
    temporary = path.with_name(path.name + _SUFFIX)
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_if_there(path: Path) -> bytes | None:
    """The content, or None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def remove_unfinished(directory: Path) -> None:
    """Delete what a crash left of `write_atomic`."""
    for path in directory.glob("*" + _SUFFIX):
        path.unlink(missing_ok=True)
