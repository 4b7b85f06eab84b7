"""One authenticated node's connection: what it asks, what it is told.

Tasks: one reads, one writes, one sends updates, one what to enrol, one pings. An update is sent only when the one
before was answered, so changes gather while a node is busy and never queue. A workload is answered `Enrolled` only when
the register keeps it and the node has acknowledged a revision that holds it: by then the node has the policies that
apply to it, so there is no moment in which it would be open for want of them. Roots to trust go ahead of the update
that tells of them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from controller.enrol import Refusal
from controller.limits import SharedLimits
from controller.publish import Publisher, Scoped
from controller.register import Register
from controller.telemetry import Telemetry
from mesh.model import MeshConfig
from mesh.sync import (
    PING_SECONDS,
    PROTOCOL,
    SILENCE_SECONDS,
    Ack,
    Assign,
    Enrol,
    Enrolled,
    FromController,
    Hello,
    Join,
    LimitGrants,
    LimitReports,
    Nack,
    Ping,
    Pong,
    Reader,
    Refused,
    Report,
    Sign,
    Signed,
    Trust,
    Update,
    Welcome,
    Withdraw,
    frame,
)

_log = logging.getLogger(__name__)
_ACK_SECONDS = 120.0
_WRITE_SECONDS = 30.0
_CHUNK = 64 * 1024
_MAX_WAITING = 20_000
"""Answers on their way to a node, and enrolments waiting for its acknowledgement."""


class Broken(Exception):
    """The node breaks the protocol or does not answer; the connection ends."""


@dataclass(slots=True)
class NodeStatus:
    """What is known of a node beside what it enrolled. Times in Unix seconds."""

    connected: bool = False
    since: float = 0.0
    """When it became connected, or ceased to be."""
    last_seen: float = 0.0
    address: str = ""
    software: str = ""
    revision: int | None = None
    """Last sent."""
    acked: int | None = None
    last_nack: str = ""
    trusts: bytes = b""
    """The roots that it has acknowledged, by what followed them."""
    certificate_expires: float | None = None
    """When its newest certificate ends, of those that it has shown or got here."""
    signers: dict[str, str] = field(default_factory=dict)
    """Which key signed its newest certificates, by workload's uid (`""`: its own). Survives a reconnection."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What every session works on."""

    enroller: Register
    publisher: Publisher
    telemetry: Telemetry
    roots: Callable[[], bytes]
    clock: Callable[[], float]
    software: str
    signer: Callable[[], str]
    """Which key signs now."""
    limits: SharedLimits
    assigned: Callable[[str, Assign | None], Awaitable[Assign]] | None = None
    """Waits until what a node is to enrol is something else than it was; None where the nodes decide."""


class Session:
    """Serves one node until the connection ends. The caller owns the stream and closes it."""

    def __init__(self, parts: Parts, node: str, stream: trio.abc.Stream, reader: Reader, status: NodeStatus) -> None:
        self._parts, self._node, self._stream, self._reader, self._status = parts, node, stream, reader, status
        self._out: deque[bytes] = deque()
        self._wake = trio.Event()
        self._flushed = trio.Event()
        self._heard = trio.current_time()
        self._base: tuple[str, int] | None = None
        self._known: Scoped | None = None
        self._covered = -1
        """`Publisher.covered` of the last revision that the node acknowledged."""
        self._answer: Ack | Nack | None = None
        self._answered = trio.Event()
        self._rejected: tuple[int, str] = (-1, "")
        """The same of one that it has rejected since, and the reason."""
        self._keeping = 0
        """Enrolments that the register has not kept yet."""
        self._enrolling: dict[int, int] = {}
        """Those that it has: request, and `touches` that a revision must cover before it is answered."""

    async def run(self, hello: Hello, early: Sequence[object]) -> None:
        """Serve; `early` arrived with the Hello. Returns when the node closes.

        Raises, in a group, `Broken`, `DecodeError` or trio's stream errors.
        """
        parts = self._parts
        if hello.protocol != PROTOCOL:
            self._send(
                Refused(0, f"protocol {hello.protocol} is not spoken here, only {PROTOCOL}: upgrade the older side")
            )
            await self._flush()
            return
        refused = parts.enroller.replace(self._node, hello.workloads)
        self._send(Welcome(PROTOCOL, parts.software, refused))
        if hello.epoch:
            self._base = (hello.epoch, hello.revision)
        try:
            async with trio.open_nursery() as self._nursery:
                nursery = self._nursery
                for task in (self._write, self._update, self._assign, self._ping):
                    nursery.start_soon(task)
                await self._read(early)
                nursery.cancel_scope.cancel()
        finally:
            parts.limits.part(self._grant)

    async def _read(self, messages: Sequence[object]) -> None:
        while True:
            for message in messages:
                self._take(message)
            if len(self._out) + self._keeping + len(self._enrolling) > _MAX_WAITING:
                raise Broken("too many requests without reading the answers")
            data = await self._stream.receive_some(256 * 1024)
            if not data:
                return
            self._heard = trio.current_time()
            self._status.last_seen = self._parts.clock()
            messages = self._reader.feed(bytes(data))

    def _take(self, message: object) -> None:
        parts, node = self._parts, self._node
        match message:
            case Ack() | Nack():
                self._answer = message
                self._answered.set()
            case Enrol(request, workload):
                try:
                    parts.enroller.enrol(node, workload)
                except Refusal as refusal:
                    self._refuse(request, refusal)
                else:
                    self._keeping += 1
                    self._nursery.start_soon(self._keep, request, workload.uid, parts.publisher.touches)
            case Withdraw(uid):
                parts.enroller.withdraw(node, uid)
                self._status.signers.pop(uid, None)
            case Sign(request, uid, csr):
                try:
                    issued = parts.enroller.sign(node, uid, csr)
                except Refusal as refusal:
                    self._refuse(request, refusal)
                else:
                    self._status.signers[uid] = parts.signer()
                    if not uid:
                        self._status.certificate_expires = issued.not_after
                    self._send(Signed(request, issued.chain, issued.not_before, issued.not_after))
            case Report(edges, requests):
                scope = parts.enroller.scope(node)
                parts.telemetry.add(node, scope, edges)
                parts.telemetry.requests.add(node, scope, requests)
            case LimitReports():
                parts.limits.report(node, message, self._grant)
            case Ping():
                self._send(Pong())
            case Pong():
                pass
            case Join() | Hello():
                raise Broken(f"unexpected {type(message).__name__}")

    async def _keep(self, request: int, uid: str, touches: int) -> None:
        try:
            await self._parts.enroller.kept(self._node, uid)
        except Refusal as refusal:
            self._refuse(request, refusal)
        else:
            self._enrolling[request] = touches
            self._settle()
        finally:
            self._keeping -= 1

    def _refuse(self, request: int, refusal: Refusal) -> None:
        _log.warning("request refused", extra={"node": self._node, "reason": str(refusal)})
        self._send(Refused(request, str(refusal)))

    async def _update(self) -> None:
        publisher, status = self._parts.publisher, self._status
        sent, roots = -1, b""
        config: MeshConfig | None = None
        while True:
            await publisher.newer_than(sent)
            update, scoped = publisher.update(self._node, self._base, self._known), publisher.scoped(self._node)
            covered, sent = publisher.covered, update.revision
            if (now := self._parts.roots()) != roots:  # before the update, so that its answer is for both
                roots = now
                self._send(Trust(roots))
            elif not update.changes and update.config == config:  # as good as acknowledged
                status.revision = status.acked = sent
                self._covered = covered
                self._settle()
                continue
            self._answer, self._answered = None, trio.Event()
            self._send(update)
            status.revision = sent
            answer = await self._answer_to(sent)
            status.trusts = roots
            if isinstance(answer, Ack):
                self._base = (update.epoch, sent)
                self._known = scoped
                config = update.config
                status.acked, status.last_nack = sent, ""
                self._covered, self._rejected = covered, (-1, "")
                self._settle()
                continue
            status.last_nack = answer.reason[:1000]
            _log.error("update rejected", extra={"node": self._node, "revision": sent, "reason": status.last_nack})
            # The node stays where it was, which this side no longer knows for sure: everything, at once if a delta
            # failed, at the next change if everything was what failed.
            self._base = self._known = config = None
            if not update.full:
                sent = -1
                continue
            self._rejected = covered, f"the node rejected revision {sent}: {status.last_nack}"
            self._settle()

    def _settle(self) -> None:
        """Answer the enrolments that the revision covers which the node has acknowledged, or rejected."""
        for request, touches in list(self._enrolling.items()):
            if touches <= self._covered:
                self._send(Enrolled(request))
            elif touches <= self._rejected[0]:
                self._refuse(request, Refusal(self._rejected[1]))
            else:
                continue
            del self._enrolling[request]

    async def _answer_to(self, revision: int) -> Ack | Nack:
        with trio.move_on_after(_ACK_SECONDS):
            while True:
                await self._answered.wait()
                answer, self._answer, self._answered = self._answer, None, trio.Event()
                if answer is not None and answer.revision == revision:
                    return answer
        raise Broken(f"revision {revision} was not acknowledged within {_ACK_SECONDS:.0f} s")

    async def _assign(self) -> None:
        last = None
        while self._parts.assigned is not None:
            last = await self._parts.assigned(self._node, last)
            self._send(last)
            await self._flushed.wait()  # one at a time, however slowly the node reads

    async def _ping(self) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            if trio.current_time() - self._heard > SILENCE_SECONDS:
                raise Broken(f"silent for {SILENCE_SECONDS:.0f} s")
            self._send(Ping())

    def _grant(self, _node: str, grants: LimitGrants) -> None:
        self._send(grants)

    def _send(self, message: object) -> None:
        try:
            made = self._parts.publisher.frame(message) if isinstance(message, Update) else None
            self._out.append(made or frame(message, FromController))
        except ValueError as error:  # larger than a frame: the other nodes need not suffer for it
            raise Broken(f"cannot be told what it is to know: {error}") from error
        if self._flushed.is_set():
            self._flushed = trio.Event()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._flush()

    async def _flush(self) -> None:
        while self._out:
            data = b"".join(self._out)
            self._out.clear()
            for at in range(0, len(data), _CHUNK):
                with trio.move_on_after(_WRITE_SECONDS) as scope:
                    await self._stream.send_all(data[at : at + _CHUNK])
                if scope.cancelled_caught:
                    raise Broken(f"does not read what it is sent for {_WRITE_SECONDS:.0f} s")
        self._flushed.set()
