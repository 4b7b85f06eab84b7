"""Looking at a connection's first bytes without taking them."""

from __future__ import annotations

import socket
from collections.abc import Callable

from mesh.detect import FIRST_BYTES, OPAQUE, speaks
from noded.data.engine import Engine
from noded.data.sockets import orderly
from noded.data.timers import Timers
from noded.data.tracker import Flow

LOOK_SECONDS = 1.0
"""How long a client may keep silent on a port that declares nothing, before it is taken for one that waits for the
server to speak first."""


class Detection:
    """Carries a connection until it is known what it speaks. Owns the socket until `done`."""

    def __init__(
        self,
        engine: Engine,
        timers: Timers,
        flow: Flow,
        sock: socket.socket,
        done: Callable[[str], None],
        *,
        bounded: bool,
    ) -> None:
        self._engine, self._flow, self._sock, self._done = engine, flow, sock, done
        self._over = False
        self._looked = 0
        flow.carrier = self
        self._timer = timers.after(LOOK_SECONDS, lambda: self._found(OPAQUE)) if bounded else None
        engine.add(sock.fileno(), self.on_socket)

    def on_socket(self, _mask: int) -> None:
        """There are bytes to look at."""
        if self._over:
            return
        try:
            first = self._sock.recv(FIRST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"the client: {error.strerror}", "DC")
            return
        if not first:
            self._found(OPAQUE)
        elif found := speaks(first):
            self._found(found)
        elif len(first) == self._looked:  # and that is all there will be
            self._found(OPAQUE)
        else:  # wake us when there is more than this
            self._looked = len(first)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(first) + 1)

    def _found(self, what: str) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._engine.remove(self._sock.fileno())
        self._flow.carrier = None
        self._done(what)

    def drain(self) -> None:
        """Close it if nothing has come."""
        self.on_socket(0)
        if not self._over and not self._looked:
            orderly(self._sock)
            self.abort("draining", "DR")

    def counts(self) -> tuple[int, int]:
        """As `Carrier` has it."""
        return 0, 0

    def abort(self, reason: str, flags: str = "-") -> None:
        """As `Carrier` has it."""
        if not self._over:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            self._engine.forget(self._sock.fileno())
            self._sock.close()
            self._flow.finish(flags, reason)
