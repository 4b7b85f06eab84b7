"""Private keys in a folder that only root can open and that no disk holds."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path

from noded.control.failure import CannotRun
from noded.control.files import private_directory, read_if_there, remove_unfinished, write_atomic

_log = logging.getLogger(__name__)
_IN_MEMORY = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}  # linux/magic.h
_libc = ctypes.CDLL(None, use_errno=True)


def filesystem_magic(path: Path) -> int:
    """`statfs(2)`'s `f_type`, which Python does not offer. Raises `OSError`."""
    buffer = ctypes.create_string_buffer(512)  # struct statfs is 120 bytes on 64-bit Linux and begins with f_type
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


class KeyStore:
    """One file a credential: private key, then certificate chain, PEM. Files are 0600, the folder 0700."""

    def __init__(self, directory: Path) -> None:
        """Make the folder if needed. Raises `CannotRun` if it is on anything but memory."""
        self.directory = directory
        try:
            private_directory(directory)
            kind = _IN_MEMORY.get(filesystem_magic(directory))
        except OSError as error:
            raise CannotRun(
                f"keyDir {directory} cannot be made or examined: {error.strerror}",
                "run noded as root and mount a tmpfs there",
            ) from error
        if kind is None:
            raise CannotRun(
                f"keyDir {directory} is not on tmpfs or ramfs; private keys must never reach a disk",
                f"mount -t tmpfs -o mode=0700,size=64m tmpfs {directory} (or choose a folder below /run where that "
                "is a tmpfs), then start noded again",
            )
        swaps = Path("/proc/swaps")
        if kind == "tmpfs" and swaps.exists() and len(swaps.read_text().splitlines()) > 1:
            _log.warning("keyDir is on tmpfs and swap is on: mount it with noswap (Linux 6.4) or use ramfs")
        remove_unfinished(directory)

    def path(self, uid: str) -> Path:
        """Where the credential of workload `uid` is; `""` is the node itself. `~` occurs in no name."""
        return self.directory / f"{uid.replace('/', '~')}.pem" if uid else self.directory / "node.pem"

    def read(self, uid: str) -> bytes | None:
        """The stored PEM, or None."""
        return read_if_there(self.path(uid))

    def write(self, uid: str, pem: bytes) -> None:
        """Replace the stored PEM."""
        write_atomic(self.path(uid), pem)

    def forget(self, uid: str) -> None:
        """Delete it; nothing happens if it isn't there."""
        self.path(uid).unlink(missing_ok=True)

    def uids(self) -> list[str]:
        """Workloads that have a credential here."""
        return [path.stem.replace("~", "/") for path in self.directory.glob("*~*.pem")]

    @property
    def roots(self) -> bytes | None:
        """The certificates to trust (PEM), or None before the node has joined."""
        return read_if_there(self.directory / "roots.crt")

    @roots.setter
    def roots(self, pem: bytes) -> None:
        write_atomic(self.directory / "roots.crt", pem)

    @property
    def joined_with(self) -> str:
        """Id of the join token that the node's credential was got with."""
        return (read_if_there(self.directory / "joined-with") or b"").decode(errors="replace")

    @joined_with.setter
    def joined_with(self, token_id: str) -> None:
        write_atomic(self.directory / "joined-with", token_id.encode())
