"""The node's end of the protocol with the controller: join, resume, apply updates, ask, report, and come back."""

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
from mesh.identity import node_uri
from mesh.join_token import JoinToken
from mesh.model import Enrolment
from mesh.snapshot import SnapshotError
from noded.config import Config
from noded.control import controller_tls, token
from noded.control.certs import Certificates
from noded.control.controller_tls import Stream
from noded.control.credential import CredentialError, certify, new_request
from noded.control.failure import ControllerAway, Failure, RequestRefused
from noded.control.keystore import KeyStore
from noded.control.state import State
from noded.control.supervise import Workers
from noded.control.telemetry import Telemetry

_log = logging.getLogger(__name__)
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0
_SEND_SECONDS = 10.0
_REPORT_EVERY = 2.0
_ANSWER_SECONDS = 15.0
_APPLY_SECONDS = 10.0
_QUEUE = 64

_Asking = sync.Enrol | sync.Sign
_Answer = sync.Enrolled | sync.Signed | sync.Refused
_T = TypeVar("_T", sync.Enrolled, sync.Signed)


class _Ended(Exception):
    """The session is over; the message says why."""


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
        self._state, self._workers, self._telemetry = state, workers, telemetry
        self.status = Status()
        self._session: _Session | None = None
        self._join_key: tuple[bytes, bytes] | None = None
        self._refused_token = ""

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

    async def flush(self) -> None:
        """Send what is left to report, if the controller is there."""
        if self._session is not None:
            try:
                await self._session.report()
            except ControllerAway:
                pass

    async def _ask(self, make: Callable[[int], _Asking], kind: type[_T]) -> _T:
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
                DecodeError, CredentialError, Failure, _Ended,
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
            await self._join()
        elif self._has_new_token():
            await self._join_anew()
        address = self._config.controller_address
        try:
            tls = controller_tls.context(self.certs.roots.decode("ascii"), self._store.path(""))
            stream, _ = await controller_tls.connect(address, tls, self.trust_domain)
            try:
                await self._serve(stream)
            finally:
                await trio.aclose_forcefully(stream)
        except* (OSError, ssl.SSLError, trio.BrokenResourceError, Failure, _Ended) as group:
            # A controller set up anew, or one that has forgotten this node, can't be told from here; a token that was
            # put in place since the node joined says that the operator wants it to join again.
            # A service account's token is always at hand.
            away = group.split((trio.BrokenResourceError, ssl.SSLError, Failure, _Ended))[0] is None
            if not self.status.connected and (self._has_new_token() or (self._by_service_account and not away)):
                await self._join()
            raise _Ended(_reason(group)) from group

    async def _serve(self, stream: Stream) -> None:
        host = stream.transport_stream.socket.getsockname()[0]
        snapshot = self._state.snapshot
        resume = (snapshot.epoch, snapshot.revision)
        hello = sync.Hello(sync.PROTOCOL, self._software, *resume, self._workloads(), (host,))
        try:
            await _Session(stream, self, hello).run()
        finally:
            self._session = None

    # What a session tells.

    async def welcomed(self, session: _Session, hello: sync.Hello, welcome: sync.Welcome) -> None:
        """The controller knows this node, and holds what `hello` said to be all of its workloads."""
        for uid in {workload.uid for workload in hello.workloads} - {workload.uid for workload in self._workloads()}:
            await session.send(sync.Withdraw(uid))
        self._session = session
        self.status.connected, self.status.since, self.status.last_error = True, time.time(), ""
        _log.info("controller connected", extra={"software": welcome.software})
        self._on_welcome(welcome.refused)
        self.certs.retry_now()

    async def apply(self, session: _Session, update: sync.Update) -> None:
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

    async def acknowledge(self, session: _Session) -> None:
        """Acknowledge each revision once all workers have it. A late worker delays this and nothing else."""
        told = -1
        while True:
            if self._workers.applied and self._state.snapshot.revision != told and session.updated:
                told = self._state.snapshot.revision
                await session.send(sync.Ack(told))
            await self._workers.until_change()

    # Joining.

    @property
    def _by_service_account(self) -> bool:
        return self._config.controller_root_file is not None

    def _has_new_token(self) -> bool:
        if self._by_service_account:
            return False
        try:
            return self._token().id != self._store.joined_with
        except Failure:
            return False

    def _token(self) -> JoinToken:
        if self._config.controller_token_file is None:
            raise Failure(
                "this node has no valid credential and controller.tokenFile is not set",
                "make a token with `meshctl token create` and name its file in the configuration",
            )
        return token.read(self._config.controller_token_file)

    async def _join_anew(self) -> None:
        """A token was put in place since this node joined, perhaps for a wider scope. Refused, it joins as it was."""
        joining = self._token().id
        if joining == self._refused_token:
            return
        try:
            await self._join()
        except Failure as error:
            self._refused_token = joining
            _log.warning("new join token not accepted", extra={"token": joining, "reason": str(error)})

    async def _proof(self) -> tuple[JoinToken, str]:
        """What to join with, and the roots (PEM) under which the controller must be. Read anew: both change."""
        roots, secret = self._config.controller_root_file, self._config.controller_token_file
        if roots is None:
            joining = self._token()
            return joining, await controller_tls.find_root(self._config.controller_address, joining.root_sha256)
        if secret is None:
            raise Failure("controller.rootFile is set and controller.tokenFile is not", "name the token's file too")
        try:
            pem = await trio.Path(roots).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise Failure(
                f"controller.rootFile {roots} cannot be read: {error}",
                "the controller publishes it when it first starts: see its log",
            ) from error
        return JoinToken("service-account", "", token.read_service_account(secret)), pem

    async def _join(self) -> None:
        """Get the node's own certificate for the join token."""
        joining, root = await self._proof()
        tls = controller_tls.context(root, None)
        stream, trust_domain = await controller_tls.connect(self._config.controller_address, tls, None)
        # The same key for each attempt: an answer that got lost must not cost another use of the token.
        self._join_key = self._join_key or new_request()
        key, csr = self._join_key
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                request = sync.Join(joining.secret, self._config.node, csr)
                await stream.send_all(sync.frame(request, sync.FromNode))
                reader = sync.Reader(sync.FromController, sync.MAX_FRAME_BEFORE_HELLO)
                messages: list[object] = []
                while not messages:
                    data = await stream.receive_some()
                    if not data:
                        raise Failure("the controller closed the connection without an answer", "see its log")
                    messages = reader.feed(bytes(data))
        finally:
            await trio.aclose_forcefully(stream)
        match messages[0]:
            case sync.Joined(chain, roots, domain) if domain == trust_domain:
                held = certify(key, chain, node_uri(trust_domain, self._config.node))
                self.certs.install("", held)
                self.certs.trust(roots)
                self._store.joined_with = joining.id
                self._join_key = None
                _log.info("joined", extra={"identity": held.identity, "token": joining.id})
            case sync.Refused(_, reason):
                raise Failure(f"the controller did not let this node join: {reason}", "make a new join token")
            case other:
                raise Failure(f"the controller answered a join with {type(other).__name__}", "check its version")


class _Session:
    """One connection's life, from `Hello` to its end."""

    def __init__(self, stream: Stream, owner: Syncer, hello: sync.Hello) -> None:
        self._stream, self._owner, self._hello = stream, owner, hello
        self._reader = sync.Reader(sync.FromController)
        self._lock = trio.Lock()
        self._requests = 0
        self._answers: dict[int, _Answer | None] = {}
        self._answered = trio.Event()
        self._over = False
        self.updated = False
        """Whether an update came."""

    async def run(self) -> None:
        """Raises when the connection ends, whatever the reason."""
        into, out = trio.open_memory_channel[object](_QUEUE)
        try:
            await self.send(self._hello)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, into)
                nursery.start_soon(self._handle_all, out)
                nursery.start_soon(self._ping)
                nursery.start_soon(self._report)
                nursery.start_soon(self._owner.acknowledge, self)
        finally:
            self._over = True
            self._answered.set()

    async def send(self, message: object) -> None:
        """Send one message, whole or, if the connection ends or is stuck, not at all: `ControllerAway` then."""
        data = sync.frame(message, sync.FromNode)
        async with self._lock:
            try:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _SEND_SECONDS) as scope:
                    await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, ssl.SSLError) as error:
                raise ControllerAway("the connection to the controller broke", "try again") from error
            if scope.cancelled_caught:  # half a message is out: this connection is of no use any more
                await trio.aclose_forcefully(self._stream)
                raise ControllerAway("the controller does not read", "check whether it is overloaded, then try again")

    async def ask(self, make: Callable[[int], _Asking]) -> _Answer:
        """Send a request and wait for its answer. Raises `ControllerAway`."""
        self._requests += 1
        request = self._requests
        self._answers[request] = None
        try:
            await self.send(make(request))
            with trio.move_on_after(_ANSWER_SECONDS):
                while (answer := self._answers[request]) is None and not self._over:
                    await self._answered.wait()
                if answer is not None:
                    return answer
                raise ControllerAway("the connection to the controller broke", "try again")
            raise ControllerAway(f"the controller did not answer in {_ANSWER_SECONDS:g} s", "see its log, try again")
        finally:
            del self._answers[request]

    async def _read(self, into: trio.MemorySendChannel[object]) -> None:
        while True:
            with trio.move_on_after(sync.SILENCE_SECONDS) as scope:
                data = await self._stream.receive_some(65536)
            if scope.cancelled_caught:
                raise _Ended(f"the controller was silent for {sync.SILENCE_SECONDS:g} s")
            if not data:
                raise _Ended("the controller closed the connection")
            for message in self._reader.feed(bytes(data)):
                if isinstance(message, sync.Ping):
                    await self.send(sync.Pong())
                elif not isinstance(message, sync.Pong):
                    await into.send(message)

    async def _handle_all(self, out: trio.MemoryReceiveChannel[object]) -> None:
        """In order of arrival, so that an answer counts only after the updates before it are in force."""
        async for message in out:
            match message:
                case sync.Welcome() as welcome:
                    await self._owner.welcomed(self, self._hello, welcome)
                case sync.Trust(roots):
                    self._owner.certs.trust(roots)
                case sync.Update() as update:
                    await self._owner.apply(self, update)
                case sync.Assign() as assign if self._owner.on_assign is not None:
                    self._owner.on_assign(assign)
                case sync.Enrolled(request) | sync.Signed(request) | sync.Refused(request) as answer:
                    if request not in self._answers:
                        if isinstance(answer, sync.Refused) and request == 0:
                            raise _Ended(f"the controller refused this node: {answer.reason}")
                        continue  # whoever asked has given up
                    self._answers[request] = answer
                    self._answered.set()
                    self._answered = trio.Event()
                case other:
                    raise _Ended(f"the controller sent {type(other).__name__}, which is out of place here")

    async def _ping(self) -> None:
        while True:
            await trio.sleep(sync.PING_SECONDS)
            await self.send(sync.Ping())

    async def _report(self) -> None:
        while True:
            await trio.sleep(_REPORT_EVERY)
            await self.report()

    async def report(self) -> None:
        """Send all that is to be reported; what can't be sent is kept."""
        while edges := self._owner._telemetry.take():
            try:
                await self.send(sync.Report(edges))
            except ControllerAway:
                self._owner._telemetry.give_back(edges)
                raise


def _reason(group: BaseExceptionGroup[BaseException]) -> str:
    """One line for the operator out of what may be several tasks' errors."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        ended = first.subgroup(_Ended) or first
        first = ended.exceptions[0]
    if isinstance(first, trio.TooSlowError):
        return "no answer in time"
    if isinstance(first.__cause__, ssl.SSLError | OSError) and not isinstance(first, Failure | _Ended):
        return str(first.__cause__)
    return str(first) or type(first).__name__
