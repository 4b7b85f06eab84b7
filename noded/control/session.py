"""One connection of this node with the controller, from `Hello` to its end: reading, asking, reporting, pinging."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from mesh import sync
from noded.control.controller_tls import Stream
from noded.control.failure import ControllerAway

if TYPE_CHECKING:
    from noded.control.syncer import Syncer

_SEND_SECONDS = 10.0
_REPORT_EVERY = 2.0
_ANSWER_SECONDS = 15.0
_QUEUE = 64

Asking = sync.Enrol | sync.Sign
Answer = sync.Enrolled | sync.Signed | sync.Refused


class Ended(Exception):
    """The session is over; the message says why."""


class Session:
    """One connection's life, from `Hello` to its end."""

    def __init__(self, stream: Stream, owner: Syncer, hello: sync.Hello) -> None:
        self._stream, self._owner, self._hello = stream, owner, hello
        self._reader = sync.Reader(sync.FromController)
        self._lock = trio.Lock()
        self._requests = 0
        self._answers: dict[int, Answer | None] = {}
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
                nursery.start_soon(self._ask_for_tokens)
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

    async def ask(self, make: Callable[[int], Asking]) -> Answer:
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
                raise Ended(f"the controller was silent for {sync.SILENCE_SECONDS:g} s")
            if not data:
                raise Ended("the controller closed the connection")
            for message in self._reader.feed(bytes(data)):
                if isinstance(message, sync.Ping):
                    await self.send(sync.Pong())
                elif isinstance(message, sync.LimitGrants):
                    self._owner.limits.granted(message)  # in no order with updates, which may take seconds
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
                            raise Ended(f"the controller refused this node: {answer.reason}")
                        continue  # whoever asked has given up
                    self._answers[request] = answer
                    self._answered.set()
                    self._answered = trio.Event()
                case other:
                    raise Ended(f"the controller sent {type(other).__name__}, which is out of place here")

    async def _ping(self) -> None:
        while True:
            await trio.sleep(sync.PING_SECONDS)
            await self.send(sync.Ping())

    async def _ask_for_tokens(self) -> None:
        while True:
            await self.send(await self._owner.limits.next())

    async def _report(self) -> None:
        while True:
            await trio.sleep(_REPORT_EVERY)
            await self.report()

    async def report(self) -> None:
        """Send all that is to be reported; what can't be sent is kept."""
        telemetry = self._owner.telemetry
        while (edges := telemetry.take()) or telemetry.requests.waiting:
            requests = telemetry.requests.take()
            try:
                await self.send(sync.Report(edges, requests))
            except ControllerAway:
                telemetry.give_back(edges)
                telemetry.requests.give_back(requests)
                raise
