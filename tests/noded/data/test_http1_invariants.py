"""Whatever happens, in whatever order: nobody gets another's answer, nothing is sent twice that must not be, and at the
end nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from mesh.http1 import ResponseParser
from mesh.message import Headers, Response
from mesh.route import Limits
from mesh.traffic import CircuitBreaker, RetryPolicy
from tests.noded.data.http1_world import Backend, Visit, World

_LIMITS = (
    Limits(),
    Limits(retries=RetryPolicy(attempts=2, codes=(503,))),
    Limits(timeout=10, try_timeout=1, retries=RetryPolicy(attempts=3, codes=(500, 503))),
)
_BREAKERS = (None, CircuitBreaker(max_connections=1), CircuitBreaker(2, max_pending=1, max_requests=2))
_EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@dataclass
class Answer:
    response: Response
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False


class Client:
    """The client's end: what it asked, and the answers that it understands."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes, bytes]] = []
        """Method, path, body."""
        self.answers: list[Answer] = []
        self.last = False
        """An answer said that no other follows."""
        self._parser = ResponseParser(self)

    def asks(self, method: bytes, path: bytes, body: bytes) -> None:
        self.asked.append((method, path, body))
        self._parser.expect(method)

    def read(self, data: bytes) -> None:
        self._parser.feed(data)

    def on_informational(self, response: Response) -> None:
        pass

    def on_response(self, response: Response, keep_alive: bool) -> None:
        assert not self.last, "an answer behind one that said it was the last"
        self.last = not keep_alive
        self.answers.append(Answer(response))

    def on_body(self, data: bytes) -> None:
        self.answers[-1].body += data

    def on_end(self, trailers: Headers) -> None:
        self.answers[-1].complete = True

    def on_rest(self, data: bytes) -> None:
        raise AssertionError("no upgrade was asked for")


class Guest:
    """A client, its connection, and what it has yet to send."""

    def __init__(self, visit: Visit, name: bytes) -> None:
        self.visit, self.name = visit, name
        self.client = Client()
        self.to_send = bytearray()
        self.gone = self.silent = False


class Story:
    """What one seed has happen."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.pick = self.random.choice
        self.world = World(self.pick(_LIMITS), breaker=self.pick(_BREAKERS))
        self.guests = [Guest(visit, b"/%d-" % number) for number, visit in enumerate(self.world.visits)]
        self.partial: dict[Backend, bytes] = {}

    def go(self, steps: int) -> None:
        rare = (self.send_nonsense, self.leave, self.drain, self.tick)
        often = (self.ask, self.send, self.connect, self.backends_read, self.answer, self.client_reads)
        other = (
            self.client_stalls, self.backend_stalls, self.begin_an_answer, self.end_an_answer, self.inform,
            self.misbehave, self.time_passes,
        )  # fmt: skip
        guests = {self.ask, self.send, self.client_reads, self.client_stalls, *rare}
        for _ in range(steps):
            do: Callable[..., None] = self.pick(self.random.choices((often, other, rare), (100, 20, 1))[0])
            do(self.pick(self.guests)) if do in guests else do()
        self.rest()

    def backend(self, *, asked: bool) -> Backend | None:
        """One whose request (`asked`) awaits an answer, or one that has none to answer."""
        found = [
            b for b in self.world.backends
            if b.wire.open and b.wire.established and (b.answered < len(b.requests)) == asked and b not in self.partial
        ]  # fmt: skip
        return self.pick(found) if found else None

    # -- the client ---------------------------------------------------------------------------------------------------

    def ask(self, guest: Guest) -> None:
        if guest.gone or guest.silent or len(guest.to_send) > 200_000:
            return
        number = len(guest.client.asked)
        method = self.pick((b"GET", b"POST", b"PUT", b"HEAD"))
        size = self.pick((0, 0, 1, 100, 70_000))
        extra = self.random.choices(
            (b"", b"Connection: upgrade\r\nUpgrade: x\r\n", b"Connection: close\r\n"), (20, 3, 1)
        )
        path = b"%b%d" % (guest.name, number)
        body = (b"<%d>" % number * size)[:size]
        guest.client.asks(method, path, body)
        head = b"%b %b HTTP/1.1\r\nHost: web\r\n%b" % (method, path, extra[0])
        if self.random.random() < 0.5:
            framed = b"%x\r\n%b\r\n" % (size, body) if size else b""
            if self.random.random() < 0.02:
                framed, guest.silent = framed + b"nonsense", True
            guest.to_send += head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
        else:
            guest.to_send += head + (b"Content-Length: %d\r\n" % size if size else b"") + b"\r\n" + body

    def send(self, guest: Guest) -> None:
        if guest.to_send and not guest.gone:
            size = self.pick((1, 20, 40, 1000, 100_000, 1_000_000))
            data = bytes(guest.to_send[:size])
            del guest.to_send[:size]
            guest.visit.wire.feed(data)

    def send_nonsense(self, guest: Guest) -> None:
        if not guest.gone and not guest.silent and not guest.to_send:
            guest.silent = True
            guest.client.asks(b"GET", b"/nonsense", b"")
            guest.visit.wire.feed(b"\0")

    def leave(self, guest: Guest) -> None:
        if not guest.gone:
            guest.gone = True
            if self.pick((True, False)):
                guest.visit.wire.feed_eof()
            else:
                guest.visit.wire.lose()

    def client_reads(self, guest: Guest) -> None:
        wire = guest.visit.wire
        wire.flush()
        guest.client.read(bytes(wire.delivered))
        wire.delivered.clear()
        wire.pump()

    def client_stalls(self, guest: Guest) -> None:
        guest.visit.wire.full = True

    # -- backends -----------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        waiting = [b for b in self.world.backends if not b.wire.established and not b.wire.closed]
        if waiting:
            backend = self.pick(waiting)
            if self.random.random() < 0.9:
                backend.wire.established = True
            else:
                backend.wire.lose()

    def backends_read(self) -> None:
        for backend in list(self.world.backends):
            backend.wire.flush()
            if not backend.wire.was_reset:
                backend.read()
            backend.wire.pump()

    def backend_stalls(self) -> None:
        if (backend := self.backend(asked=True)) is not None:
            backend.wire.full = True

    def answer(self) -> None:
        backend = self.backend(asked=True)
        if backend is None or (backend.complete < len(backend.requests) and self.random.random() < 0.9):
            return
        request = backend.requests[-1][0]
        status = self.pick((200, 200, 200, 200, 404, 500, 503))
        body = request.path + b" " + b"b" * self.pick((0, 10, 5000))
        framing = self.pick(("length", "length", "length", "chunked", "eof"))
        if framing == "length":
            raw = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        elif framing == "chunked":
            raw = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            raw = b"HTTP/1.1 %d X\r\n\r\n" % status
        if request.method != b"HEAD":
            raw += body
        backend.next()
        raw += self.random.choices((b"", _EVIL, b"x"), (8, 1, 1))[0]
        step = len(raw) // self.pick((1, 2, 7)) + 1
        for at in range(0, len(raw), step):
            backend.wire.feed(raw[at : at + step])
        if framing == "eof":
            backend.wire.feed_eof()

    def begin_an_answer(self) -> None:
        backend = self.backend(asked=True)
        if backend is not None and backend.requests[-1][0].method != b"HEAD":
            path = backend.requests[-1][0].path
            self.partial[backend] = b"rest"
            backend.wire.feed(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b " % (len(path) + 5, path))

    def end_an_answer(self) -> None:
        if not self.partial:
            return
        backend = self.pick(list(self.partial))
        rest = self.partial.pop(backend)
        how = self.pick(("complete", "complete", "eof", "lost"))
        if how == "complete":
            backend.next()
            backend.wire.feed(rest)
        elif how == "eof":
            backend.wire.feed_eof()
        else:
            backend.wire.lose()

    def inform(self) -> None:
        if (backend := self.backend(asked=True)) is not None:
            backend.wire.feed(b"HTTP/1.1 103 Early Hints\r\n\r\n")

    def misbehave(self) -> None:
        asked = self.pick((True, False))
        backend = self.backend(asked=asked)
        if backend is None:
            return
        how = self.random.random()
        if how < 0.3:
            backend.wire.lose()
        elif how < 0.6:
            backend.wire.feed_eof()
        elif not asked:  # else nobody could tell it from an answer
            backend.wire.feed(self.pick((_EVIL, b"220 hello\r\n")))

    # -- the rest -----------------------------------------------------------------------------------------------------

    def time_passes(self) -> None:
        if self.world.timers.set:
            self.pick(self.world.timers.set).fire()

    def tick(self, guest: Guest) -> None:
        for _ in range(self.pick((1, 4, 13, 61))):
            guest.visit.server.tick()

    def drain(self, guest: Guest) -> None:
        guest.visit.server.drain()

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        arrived = [path for path, _ in self.world.arrived]
        bodies = {}
        for guest in self.guests:
            for (method, path, _), answer in zip(guest.client.asked, guest.client.answers, strict=False):
                if answer.body and answer.response.header(b"content-type") is None:  # else it is of the proxy's own
                    begins = bytes(answer.body[: len(path) + 1])
                    expected = path + b" " if answer.complete else (path + b" ")[: len(begins)]
                    assert begins == expected, f"{path!r} got {begins!r}"
                assert method != b"HEAD" or not answer.body
            for method, path, body in guest.client.asked:
                bodies[path] = body
                assert arrived.count(path) <= 1 or method != b"POST", "what is not idempotent was sent twice"
        for path, body in self.world.complete:
            assert body == bodies[path]

    def _count(self) -> tuple[int, ...]:
        world = self.world
        return len(world.over), len(world.arrived), len(world.backends), *(len(guest.to_send) for guest in self.guests)

    def settle(self) -> None:
        """Let it come to rest: connections are made, backends answer, the clients read."""
        world, quiet = self.world, 0
        while quiet < 4:
            before = self._count()
            for guest in self.guests:
                self.send(guest)
            for backend in world.backends:
                if not backend.wire.established and not backend.wire.closed:
                    backend.wire.established = True
            self.backends_read()
            for backend in world.backends:
                if backend.wire.open and backend in self.partial:
                    self.partial.pop(backend)
                    backend.next()
                    backend.wire.feed(b"rest")
                elif backend.wire.open and backend.answered < len(backend.requests) == backend.complete:
                    request = backend.requests[-1][0]
                    backend.next()
                    length = len(request.path) + 1
                    body = request.path + b" " if request.method != b"HEAD" else b""
                    backend.wire.feed(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % length + body)
            for guest in self.guests:
                self.client_reads(guest)
            for timer in list(world.timers.set):
                timer.fire()
            quiet = quiet + 1 if before == self._count() else 0

    def rest(self) -> None:
        world = self.world
        self.settle()
        self.check()
        world.check_over()
        for guest in self.guests:
            client, visit = guest.client, guest.visit
            assert len(visit.ended) <= 1
            if not guest.gone and not visit.ended and not visit.server._lingering:
                assert len(client.answers) == len(client.asked)
                assert all(answer.complete for answer in client.answers)
                assert not visit.wire.held


def test_a_client_that_was_stopped_for_one_try_goes_on_with_the_next() -> None:
    world = World(_LIMITS[1])
    wire = world.visits[0].wire
    wire.feed(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 6\r\n\r\nabc")
    world.backends[0].wire.full = True
    wire.feed(b"d")
    assert wire.held
    world.backends[0].wire.lose()
    world.timers.set[0].fire()
    wire.feed(b"ef")
    world.backends[1].wire.established = True
    world.backends[1].wire.flush()
    world.backends[1].read()
    assert world.complete == [(b"/", b"abcdef")]


def test_requests_that_wait_for_a_connection_are_answered_when_there_is_no_endpoint_any_more() -> None:
    world = World(_LIMITS[0], breaker=_BREAKERS[1])
    world.visits += (Visit(world), Visit(world))
    for visit in world.visits:
        visit.wire.feed(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
    assert len(world.backends) == 1
    world.hosts.clear()
    world.backends[0].wire.lose()
    while world.timers.set:
        world.timers.set[0].fire()
    for visit in world.visits:
        visit.wire.flush()
        assert visit.wire.delivered.startswith(b"HTTP/1.1 503 ")
    assert len(world.over) == 4


@pytest.mark.parametrize("part", range(4))
def test_exchanges_end_once_and_answers_are_their_own(part: int) -> None:
    for seed in range(part * 250, part * 250 + 250):
        try:
            Story(seed).go(200)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
