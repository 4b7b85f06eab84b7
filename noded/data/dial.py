"""Connecting to a workload, or out of one, without a task for each connection.

A local connect is usually complete when the call returns; the rest wait in the engine, with one sweep for the deadline.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable

import trio

from mesh.authz import Permit
from noded.data.engine import EPOLLOUT, Engine
from noded.data.node import LocalWorkload
from noded.source_ports import SourcePorts

_PORTS = range(10_240, 32_768)
"""Source ports for connections in a client's name: outside Linux's default ephemeral range, which that client uses."""
_TRIES = 64
_SWEEP_SECONDS = 0.5

Done = Callable[[socket.socket | None, str], None]
"""Called once with the connected socket, which is the callee's from then on, or with None and the reason."""


class Dialler:
    """Connects non-blocking sockets. `sweep` must run beside the engine."""

    def __init__(self, engine: Engine, source_ports: SourcePorts, seconds: float) -> None:
        self._engine, self._source_ports, self._seconds = engine, source_ports, seconds
        self._pending: deque[_Attempt] = deque()

    def to_workload(
        self, permit: Permit, local: LocalWorkload, address: str, port: int, client: str, done: Done
    ) -> None:
        """Connect to a local workload in the client's name: the source address it sees is `client`.

        `permit` proves that its policies were asked. A source port which that client is using on a live captured
        connection is not chosen: the two would be one to the kernel, and the older would die.
        """
        assert isinstance(permit, Permit)
        try:
            for _ in range(_TRIES):
                source_port = random.choice(_PORTS)
                if self._source_ports.used(source_port):
                    continue
                sock = local.sockets.make(address, transparent=True)
                try:
                    sock.bind((client, source_port))
                    self._connect(sock, address, port, done)
                    return
                except OSError as error:
                    sock.close()
                    if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                        raise
        except OSError as error:
            done(None, f"connect to {address}:{port}: {error.strerror or error}")
            return
        done(None, f"no free source port to connect to {address}:{port} as {client}")

    def from_workload(self, local: LocalWorkload, address: str, port: int, done: Done) -> None:
        """Connect from a local workload's namespace, past its capture."""
        try:
            self._connect(local.sockets.make(address), address, port, done)
        except OSError as error:
            done(None, f"connect to {address}:{port}: {error.strerror or error}")

    def _connect(self, sock: socket.socket, address: str, port: int, done: Done) -> None:
        error = sock.connect_ex((address, port))
        if error == errno.EINPROGRESS:
            # over lo the handshake is done by now, and the second call says so
            error = sock.connect_ex((address, port))
        if not error:
            done(sock, "")
        elif error == errno.EALREADY:
            attempt = _Attempt(self._engine, sock, f"{address}:{port}", time.monotonic() + self._seconds, done)
            self._pending.append(attempt)
        else:
            sock.close()
            raise OSError(error, os.strerror(error))

    async def sweep(self) -> None:
        """End attempts that take too long. All have the same time, so the oldest is first."""
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            while self._pending and (self._pending[0].finished or self._pending[0].deadline <= now):
                self._pending.popleft().expire()


class _Attempt:
    """A connect under way."""

    def __init__(self, engine: Engine, sock: socket.socket, what: str, deadline: float, done: Done) -> None:
        self._engine, self._sock, self._what, self._done = engine, sock, what, done
        self.deadline = deadline
        self.finished = False
        engine.add(sock.fileno(), self.on_socket, EPOLLOUT)

    def on_socket(self, _mask: int) -> None:
        """Connected, or failed."""
        if self.finished:
            return
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.abort(os.strerror(error))
            return
        try:
            self._sock.getpeername()
        except OSError:
            return  # the event was that of an earlier socket with this number (see `Engine._turn`)
        self.finished = True
        self._engine.remove(self._sock.fileno())
        self._done(self._sock, "")

    def expire(self) -> None:
        """The time is up."""
        self.abort("timed out")

    def abort(self, reason: str) -> None:
        """Give up."""
        if not self.finished:
            self.finished = True
            self._engine.forget(self._sock.fileno())
            self._sock.close()
            self._done(None, f"connect to {self._what}: {reason}")
