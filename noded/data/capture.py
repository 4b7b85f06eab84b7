"""Accepting what the capture rules hand over. The listener that accepted names the workload: that cannot be forged."""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Callable

import trio

from noded.data.engine import EPOLLIN, Engine
from noded.data.node import LocalWorkload
from noded.data.sockets import tune

_BATCH = 64
"""Connections accepted from one listener in a turn, so that a burst does not starve live ones."""
_REST_SECONDS, _LOG_SECONDS = 0.1, 10.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_MORE = (errno.EAGAIN, errno.ECONNABORTED, errno.EPERM, errno.EPROTO)

Accepted = Callable[[LocalWorkload, socket.socket, tuple[str, int]], None]

log = logging.getLogger(__name__)


class Listener:
    """One listening socket of one workload. The workload owns the socket."""

    def __init__(self, engine: Engine, local: LocalWorkload, sock: socket.socket, accepted: Accepted) -> None:
        self._engine, self._local, self._sock, self._accepted = engine, local, sock, accepted
        self._closed = False
        self._logged = -math.inf
        tune(sock)
        sock.setblocking(False)
        engine.add(sock.fileno(), self.on_socket)

    def on_socket(self, _mask: int) -> None:
        """Connections wait."""
        accept, accepted, local = self._sock.accept, self._accepted, self._local
        for _ in range(_BATCH):
            try:
                client, peer = accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._engine.modify(self._sock.fileno(), 0)
                    self._engine.spawn(self._rest, error)
                elif error.errno not in _NO_MORE:
                    raise
                return
            client.setblocking(False)
            accepted(local, client, peer)

    async def _rest(self, error: OSError) -> None:
        """What can't be accepted stays readable: without a rest it would be tried, and logged, thousands of times."""
        if trio.current_time() - self._logged >= _LOG_SECONDS:
            self._logged = trio.current_time()
            log.error("cannot accept for %s: %s; raise the limit on open files", self._local.uid, error.strerror)
        await trio.sleep(_REST_SECONDS)
        if not self._closed:
            self._engine.modify(self._sock.fileno(), EPOLLIN)

    def abort(self, reason: str) -> None:
        """As `Handler` has it: a bug in one connection must not end the listener, so nothing is given up."""

    def close(self) -> None:
        """Stop accepting."""
        self._closed = True
        self._engine.forget(self._sock.fileno())
        self._sock.close()
