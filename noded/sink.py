"""Writing lines to standard output or error without ever waiting for whoever reads them.

All processes of the daemon share these two, so asking first whether there is room is no good: another process may fill
it before the write. Nor may they be made non-blocking, which would change them for everybody who has them. So a pipe or
terminal is opened once more, and a socket is written to with MSG_DONTWAIT. Files don't stall.
"""

from __future__ import annotations

import logging
import os
import socket
import stat

ATOMIC = 4096
"""Bytes that a pipe or a stream socket takes whole or not at all (PIPE_BUF)."""


class Sink:
    """One descriptor, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket: socket.socket | None = None
        self._torn = False
        """Only a part of the last write got out: the next one starts a line of its own."""
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(fd))
            elif not stat.S_ISREG(mode):
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            pass  # closed, or not ours to open: as it is, then

    def write(self, data: bytes) -> bool:
        """Write whole lines, `ATOMIC` bytes at most if they are to stay together; False if they are lost."""
        if self._torn:
            data = b"\n" + data
        try:
            if self._socket is not None:
                sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                sent = os.write(self._fd, data)
        except OSError:
            return False
        self._torn = sent < len(data)
        return not self._torn


class SinkHandler(logging.Handler):
    """Log records to a `Sink`: one that finds no room is lost, for a log must not stop what it tells about."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._sink = Sink(fd)

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler` has it."""
        try:
            self._sink.write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)
