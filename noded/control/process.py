"""One worker process: starting it, waiting for its end, and making sure that it ends with us."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import trio

from noded.link import Link, ToControl, ToWorker

COMMAND: tuple[str, ...] = (sys.executable, "-m", "noded.data.worker")
LINK_FD = 3
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Process:
    """A child that has one end of a socket pair as descriptor 3. The creator must `close` it."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """Start it. Must be called on the main thread: PR_SET_PDEATHSIG is about the *thread* that forked.

        That is also why this isn't `trio.lowlevel.open_process`, which forks on a thread that soon ends.
        """
        ours, theirs = socket.socketpair()
        parent, theirs_fd = os.getpid(), theirs.fileno()

        def in_child() -> None:
            os.dup2(theirs_fd, LINK_FD)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before the prctl
                os._exit(1)

        with theirs:
            self._popen: subprocess.Popen[Any] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(LINK_FD,),
                preexec_fn=in_child,  # (the child only makes system calls)
            )
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.link = Link(ours, receives=ToControl, sends=ToWorker)

    async def wait(self) -> int:
        """Its exit status (negative: the signal that ended it)."""
        while (status := self._popen.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return status

    def kill(self) -> None:
        """SIGKILL; nothing happens if it has ended."""
        self._popen.kill()

    async def close(self) -> None:
        """Kill it if it still runs, reap it, and close what this object holds."""
        self.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await self.wait()
        self.link.close()
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
