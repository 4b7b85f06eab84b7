"""Between replicas: what nodes ask of rate limits goes to the replica that keeps the buckets, and its answers back.

A replica connects to the leader at the port that nodes connect to, and shows a certificate of the controller's own
identity. It forwards what each node asks, with the node's name, and keeps nothing: what cannot be forwarded at once is
lost, and a node that hears nothing goes by its part of a limit. The leader closes when it does not lead any more.

    replica                leader
       | Asked(node)  ->  |
       |  <-  Answered(node)
       | Ping  ->  |               every 10 s; silence for 30 s ends the connection
"""

from __future__ import annotations

import logging
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

from controller.config import Address
from controller.limits import SharedLimits
from mesh.codec import DecodeError
from mesh.sync import PING_SECONDS, SILENCE_SECONDS, LimitGrants, LimitReports, Ping, Reader, frame

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_MAX_WAITING = 10_000
"""Messages to a replica; if it does not read, older ones are lost."""

Stream = trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a node of this replica asks."""

    node: str
    reports: LimitReports


@dataclass(frozen=True, slots=True)
class Answered:
    """What the node is to be told."""

    node: str
    grants: LimitGrants


FromReplica = Asked | Ping
FromLeader = Answered | Ping


class _Outbox:
    """Writes what is put into it, and a ping where that is nothing for long."""

    def __init__(self, stream: Stream, union: object) -> None:
        self._stream, self._union = stream, union
        self._waiting: deque[object] = deque(maxlen=_MAX_WAITING)
        self._woken = trio.Event()

    def put(self, message: object) -> None:
        self._waiting.append(message)
        self._woken.set()

    async def run(self) -> NoReturn:
        while True:
            with trio.move_on_after(PING_SECONDS):
                await self._woken.wait()
            self._woken = trio.Event()
            messages = list(self._waiting) or [Ping()]
            self._waiting.clear()
            with trio.fail_after(SILENCE_SECONDS):
                await self._stream.send_all(b"".join(frame(message, self._union) for message in messages))


async def _messages(stream: Stream, reader: Reader) -> list[object]:
    """What comes next; none once the peer has closed. Raises `trio.TooSlowError`."""
    with trio.fail_after(SILENCE_SECONDS):
        while data := await stream.receive_some(256 * 1024):
            if messages := reader.feed(bytes(data)):
                return messages
    return []


class Forwarder:
    """The replica's end. `run` must be running."""

    def __init__(self, leader: Callable[[], Address | None]) -> None:
        """`leader` says where it is, unless there is none or it is this replica."""
        self._leader = leader
        self._outbox: _Outbox | None = None
        """While there is a connection."""

    def forward(self, node: str, reports: LimitReports) -> None:
        """See `SharedLimits`."""
        if self._outbox is not None:
            self._outbox.put(Asked(node, reports))

    async def run(
        self,
        tls: Callable[[], ssl.SSLContext],
        is_controller: Callable[[bytes], bool],
        answered: Callable[[str, LimitGrants], None],
    ) -> NoReturn:
        """Be connected to the leader, whoever that is. `is_controller` is asked about its certificate (DER)."""
        said = ""
        while True:
            if (leader := self._leader()) is not None:
                try:
                    await self._serve(leader, tls(), is_controller, answered)
                    said = ""
                except* (OSError, trio.BrokenResourceError, trio.TooSlowError, DecodeError, _Impostor) as group:
                    error: BaseException = group
                    while isinstance(error, BaseExceptionGroup):
                        error = error.exceptions[0]
                    reason = str(error.__cause__ or error) or type(error).__name__
                    if reason != said:
                        _log.warning("rate limits: the leader is away", extra={"at": str(leader), "reason": reason})
                    said = reason
            await trio.sleep(_AGAIN_SECONDS)

    async def _serve(
        self,
        leader: Address,
        tls: ssl.SSLContext,
        is_controller: Callable[[bytes], bool],
        answered: Callable[[str, LimitGrants], None],
    ) -> None:
        """Until it closes, or another leads."""
        with trio.fail_after(_CONNECT_SECONDS):
            stream = trio.SSLStream(await trio.open_tcp_stream(leader.host, leader.port), tls, https_compatible=True)
        try:
            with trio.fail_after(_CONNECT_SECONDS):
                await stream.do_handshake()
            certificate = stream.getpeercert(binary_form=True)
            if certificate is None or not is_controller(certificate):
                raise _Impostor("what answers there is not this mesh's controller")
            _log.info("rate limits: the leader keeps their buckets", extra={"at": str(leader)})
            self._outbox = _Outbox(stream, FromReplica)
            self._outbox.put(Ping())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.run)
                nursery.start_soon(self._watch, leader, nursery.cancel_scope)
                reader = Reader(FromLeader)
                while messages := await _messages(stream, reader):
                    for message in messages:
                        if isinstance(message, Answered):
                            answered(message.node, message.grants)
                nursery.cancel_scope.cancel()
        finally:
            self._outbox = None
            await trio.aclose_forcefully(stream)

    async def _watch(self, leader: Address, scope: trio.CancelScope) -> None:
        while self._leader() == leader:  # noqa: ASYNC110 - elections are rare, and this replica polls in them, too
            await trio.sleep(_AGAIN_SECONDS)
        scope.cancel()


class _Impostor(Exception):
    pass


class ReplicaSession:
    """The leader's end. The caller owns the stream and closes it."""

    def __init__(self, limits: SharedLimits, stream: Stream, reader: Reader) -> None:
        """`reader` is one of `FromReplica`."""
        self._limits, self._stream, self._reader = limits, stream, reader
        self._outbox = _Outbox(stream, FromLeader)

    async def run(self, messages: Sequence[object]) -> None:
        """Serve, after the first messages. Returns when the replica closes, or when this one does not lead.

        Raises, in a group, `DecodeError`, `trio.TooSlowError` or trio's stream errors.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.run)
                while messages and self._limits.kept:
                    for message in messages:
                        if isinstance(message, Asked):
                            self._limits.report(message.node, message.reports, self._tell)
                    messages = await _messages(self._stream, self._reader)
                nursery.cancel_scope.cancel()
        finally:
            self._limits.part(self._tell)

    def _tell(self, node: str, grants: LimitGrants) -> None:
        self._outbox.put(Answered(node, grants))
