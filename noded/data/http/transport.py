"""The bytes of one HTTP connection: a socket, or a stream of a tunnel, behind one interface.

What is written gathers until the end of the engine's turn and leaves in one piece. A transport that holds more unsent
than `HIGH` is `full`; its reader is told with `on_room` when less than `LOW` is left. All methods run in the engine's
task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from noded.data.engine import Engine

DENIED = "denied by the destination's policy"
"""Why a tunnel's peer let no connection through."""
HIGH, LOW = 131_072, 32_768


class Reader(Protocol):
    """Who reads a transport."""

    transport: Transport
    """Writes go there; one that could not be opened may put another in its place."""

    def on_bytes(self, data: bytes) -> None:
        """Bytes arrived. May come once more after `hold`."""

    def on_eof(self) -> None:
        """The peer has sent all it will."""

    def on_lost(self, reason: str) -> None:
        """The connection broke, or never came to be; it is closed. Not called after `close` or `reset`."""

    def on_room(self) -> None:
        """It was full and is not any more."""


class Transport(Protocol):
    """What a connection is to those who read and write it."""

    reader: Reader
    received: int
    sent: int
    closed: bool
    established: bool
    """Whether there was a connection."""

    @property
    def retiring(self) -> bool:
        """Whether what carries it is to end when its connections have: it should not be used again."""

    @property
    def full(self) -> bool:
        """Whether one should stop writing for now."""

    @property
    def held(self) -> int:
        """Bytes that wait in it."""

    def write(self, data: bytes) -> None:
        """Send this. Ignored once closed."""

    def hold(self) -> None:
        """Stop reading."""

    def release(self) -> None:
        """Read on."""

    def end(self) -> None:
        """Nothing more will be written: half-close after what was."""

    def close(self) -> None:
        """Close in order, after what was written. Nothing more is read."""

    def reset(self) -> None:
        """Drop it now, so that the peer sees a reset."""


_NO_SLOTS: tuple[str, ...] = ()
"""Of two base classes only one may have slots; by a name, since mypy takes those it sees for all there are."""


def flags_of(transport: Transport, reason: str) -> str:
    """The response flags of a request whose connection was lost for this reason."""
    if reason is DENIED:
        return "RBAC"
    return "UC" if transport.established else "UF"


class Gathering:
    """What both kinds of transport do with what is written."""

    __slots__ = _NO_SLOTS

    if TYPE_CHECKING:
        _engine: Engine
        _out: list[bytes]
        _unsent: int
        _full: bool
        _held: bool
        _shut: bool
        _closing: bool
        closed: bool

    @property
    def full(self) -> bool:
        """As `Transport` has it."""
        return self._full

    @property
    def held(self) -> int:
        """As `Transport` has it."""
        return self._unsent

    def write(self, data: bytes) -> None:
        """As `Transport` has it."""
        if self.closed or self._closing:
            return
        out = self._out
        if not out:
            self._engine.mark(self)
        out.append(data)
        self._unsent += len(data)
        if self._unsent > HIGH:
            self._full = True

    def end(self) -> None:
        """As `Transport` has it."""
        if not self._shut and not self.closed:
            self._shut = True
            self._engine.mark(self)

    def take_after(self, other: Gathering) -> None:
        """Stand in for one that has sent nothing."""
        self._out, self._unsent, self._full = other._out, other._unsent, other._full
        self._held, self._shut = other._held, other._shut
        if self._out:
            self._engine.mark(self)

    def flush(self) -> None:
        """Send what has gathered."""
        raise NotImplementedError
