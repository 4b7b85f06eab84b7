"""The node's end of the protocol with the controller: connect, resume, apply updates, ask, and come back."""

from __future__ import annotations

import logging
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from mesh import sync
from mesh.codec import DecodeError
from mesh.model import Enrolment
from mesh.snapshot import SnapshotError
from noded.config import Config
from noded.control import controller_tls
from noded.control.certs import Certificates
from noded.control.controller_tls import Stream
from noded.control.credential import CredentialError
from noded.control.failure import ControllerAway, Failure, RequestRefused
from noded.control.joining import Joining
from noded.control.keystore import KeyStore
from noded.control.session import Asking, Ended, Session
from noded.control.state import State
from noded.control.supervise import Workers
from noded.control.telemetry import Telemetry

_log = logging.getLogger(__name__)
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0
_APPLY_SECONDS = 10.0
_LEAVE_SECONDS, _SPREAD_SECONDS = 5.0, 2.0

_T = TypeVar("_T", sync.Enrolled, sync.Signed)


@dataclass(slots=True)
class Status:
    """For `GET /status`. Times: Unix seconds."""

    connected: bool = False
    since: float = field(default_factory=time.time)
    """Of being connected, or of being away."""
    last_error: str = ""


class Syncer:
    """Keeps one session with the controller. Call `tie` before anything else."""

    def __init__(
        self,
        config: Config,
        software: str,
        store: KeyStore,
        state: State,
        workers: Workers,
        telemetry: Telemetry,
    ) -> None:
        self._config, self._software, self._store = config, software, store
        self._joining = Joining(config, store)
        self._state, self._workers, self.telemetry = state, workers, telemetry
        self.limits = workers.limits
        self.status = Status()
        self._session: Session | None = None

    def tie(
        self,
        certs: Certificates,
        workloads: Callable[[], tuple[Enrolment, ...]],
        on_welcome: Callable[[dict[str, str]], None],
        on_assign: Callable[[sync.Assign], None] | None = None,
    ) -> None:
        """`certs` ask through this object, and it connects with them. `workloads` is what the node has, for `Hello`;
        `on_welcome` is told which of it the controller will not have, with reasons; `on_assign` which pods it wants.
        """
        self.certs, self._workloads, self._on_welcome = certs, workloads, on_welcome
        self.on_assign = on_assign

    @property
    def trust_domain(self) -> str:
        """From the node's own certificate; empty before it has joined."""
        held = self.certs.get("")
        return held.identity.removeprefix("spiffe://").partition("/")[0] if held else ""

    async def sign(self, uid: str, csr: bytes) -> sync.Signed:
        """See `certs.Sign`."""
        return await self._ask(lambda request: sync.Sign(request, uid, csr), sync.Signed)

    async def enrol(self, workload: Enrolment) -> None:
        """Register a workload. Raises `Failure`.

        The controller answers when this node has acknowledged a revision that holds the workload: the workers know of
        it and of the policies that apply to it when this returns.
        """
        await self._ask(lambda request: sync.Enrol(request, workload), sync.Enrolled)

    async def withdraw(self, uid: str) -> None:
        """Say that a workload is gone. If the controller is away, the next `Hello` says so by leaving it out."""
        if self._session is not None:
            try:
                await self._session.send(sync.Withdraw(uid))
            except ControllerAway:
                pass

    async def leave(self, uid: str) -> None:
        """Say that a workload is about to go, and give the others time to hear of it; without the controller, none.

        This node hears of it like any other: when it does, the others are given a moment more, for controllers and
        networks that are slower.
        """
        await self.withdraw(uid)
        with trio.move_on_after(_LEAVE_SECONDS):
            while self._session is not None and self._meshed(uid):
                await self._state.replaced.wait()
        if self._session is not None:
            await trio.sleep(_SPREAD_SECONDS)

    def _meshed(self, uid: str) -> bool:
        workload = self._state.snapshot.workloads.get(uid)
        return workload is not None and workload.meshed

    async def flush(self) -> None:
        """Send what is left to report, if the controller is there."""
        if self._session is not None:
            try:
                await self._session.report()
            except ControllerAway:
                pass

    async def _ask(self, make: Callable[[int], Asking], kind: type[_T]) -> _T:
        session = self._session
        if session is None:
            host, port = self._config.controller_address
            why = f" ({self.status.last_error})" if self.status.last_error else ""
            raise ControllerAway(
                f"no connection to the controller at {host}:{port}{why}",
                "start it or check the network; try again",
            )
        answer = await session.ask(make)
        if isinstance(answer, sync.Refused):
            raise RequestRefused(f"the controller refused: {answer.reason}", "correct what it names, then try again")
        if not isinstance(answer, kind):
            raise ControllerAway("the controller's answer is of the wrong kind", "check that versions match")
        return answer

    async def run(self) -> None:
        """Connect, serve the session until it breaks, wait a growing and random time, again; for ever."""
        retry = _FIRST_RETRY
        while True:
            try:
                await self._connect_once()
            except* (
                OSError, ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError,
                DecodeError, CredentialError, Failure, Ended,
            ) as group:  # fmt: skip
                reason = _reason(group)
            if self.status.connected:
                retry = _FIRST_RETRY
            if self.status.connected or reason != self.status.last_error:
                _log.warning("controller is away", extra={"reason": reason})
            if self.status.connected:
                self.status.connected, self.status.since = False, time.time()
            self.status.last_error = reason
            await trio.sleep(retry * random.uniform(0.5, 1.0))
            retry = min(_LAST_RETRY, retry * 2)

    async def _connect_once(self) -> None:
        if self.certs.get("") is None or not self.certs.roots:
            await self._joining.join(self.certs)
        elif self._joining.has_new_token():
            await self._joining.join_anew(self.certs)
        address = self._config.controller_address
        try:
            tls = controller_tls.context(self.certs.roots.decode("ascii"), self._store.path(""))
            stream, _ = await controller_tls.connect(address, tls, self.trust_domain)
            try:
                await self._serve(stream)
            finally:
                await trio.aclose_forcefully(stream)
        except* (OSError, ssl.SSLError, trio.BrokenResourceError, Failure, Ended) as group:
            # A controller set up anew, or one that has forgotten this node, can't be told from here; a token that was
            # put in place since the node joined says that the operator wants it to join again. A service account's
            # token is always at hand, so there the controller must at least have answered.
            answered = group.split((trio.BrokenResourceError, ssl.SSLError, Failure, Ended))[0] is not None
            joining = self._joining
            if not self.status.connected and (joining.has_new_token() or (joining.by_service_account and answered)):
                await joining.join(self.certs)
            raise Ended(_reason(group)) from group

    async def _serve(self, stream: Stream) -> None:
        host = stream.transport_stream.socket.getsockname()[0]
        snapshot = self._state.snapshot
        resume = (snapshot.epoch, snapshot.revision)
        hello = sync.Hello(sync.PROTOCOL, self._software, *resume, self._workloads(), (host,))
        try:
            await Session(stream, self, hello).run()
        finally:
            self._session = None

    # What a session tells.

    async def welcomed(self, session: Session, hello: sync.Hello, welcome: sync.Welcome) -> None:
        """The controller knows this node, and holds what `hello` said to be all of its workloads."""
        for uid in {workload.uid for workload in hello.workloads} - {workload.uid for workload in self._workloads()}:
            await session.send(sync.Withdraw(uid))
        self._session = session
        self.status.connected, self.status.since, self.status.last_error = True, time.time(), ""
        _log.info("controller connected", extra={"software": welcome.software})
        self._on_welcome(welcome.refused)
        self.certs.retry_now()

    async def apply(self, session: Session, update: sync.Update) -> None:
        """Take an update through to the workers; returns when they have it, or after a bounded time without them."""
        try:
            snapshot = self._state.snapshot.apply(update)
        except (SnapshotError, ValueError) as error:
            await session.send(sync.Nack(update.revision, str(error)[:500]))
            _log.error("update does not apply", extra={"revision": update.revision, "error": str(error)})
            return
        session.updated = True
        self._state.replace(snapshot)
        self._workers.update(update, snapshot)
        if not await self._workers.until_applied(_APPLY_SECONDS):
            _log.warning("workers are slow to apply an update", extra={"revision": update.revision})

    async def acknowledge(self, session: Session) -> None:
        """Acknowledge each revision once all workers have it. A late worker delays this and nothing else."""
        told = -1
        while True:
            if self._workers.applied and self._state.snapshot.revision != told and session.updated:
                told = self._state.snapshot.revision
                await session.send(sync.Ack(told))
            await self._workers.until_change()


def _reason(group: BaseExceptionGroup[BaseException]) -> str:
    """One line for the operator out of what may be several tasks' errors."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        ended = first.subgroup(Ended) or first
        first = ended.exceptions[0]
    if isinstance(first, trio.TooSlowError):
        return "no answer in time"
    if isinstance(first.__cause__, ssl.SSLError | OSError) and not isinstance(first, Failure | Ended):
        return str(first.__cause__)
    return str(first) or type(first).__name__
