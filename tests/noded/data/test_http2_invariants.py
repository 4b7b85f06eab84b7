"""As `test_http1_invariants`, for a client that speaks HTTP/2, to backends of either version: each stream gets its own
answer, and at the end nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import cast

import pytest

from mesh.h2.connection import Budget, Connection, Stream
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields
from mesh.h2.messages import read_request, read_response, write_request, write_response
from mesh.message import Request, Response
from mesh.route import Limits
from mesh.traffic import CircuitBreaker, RetryPolicy
from noded.data.engine import Flushable
from noded.data.http.server2 import Http2Server
from tests.noded.data.http1_world import Backend, Wire, World

_BREAKERS = (None, CircuitBreaker(max_connections=1), CircuitBreaker(2, max_pending=5, max_requests=8))
_LIMITS = (Limits(), Limits(timeout=10, try_timeout=1, retries=RetryPolicy(attempts=2, codes=(503,))))


class Engine:
    """Flushes at the end of a turn, which is when the test says."""

    def __init__(self) -> None:
        self.marked: list[Flushable] = []

    def mark(self, gathered: Flushable) -> None:
        if gathered not in self.marked:
            self.marked.append(gathered)

    def turn(self) -> None:
        while self.marked:
            self.marked.pop(0).flush()


class Ask(Stream):
    """A request of the client's."""

    def __init__(self, method: bytes, path: bytes, body: bytes) -> None:
        super().__init__()
        self.method, self.path, self.body = method, path, body
        self.left = body
        self.status = 0
        self.answer = b""
        self.own = False
        """The answer is the proxy's."""
        self.over = ""
        self.kept = 0
        self.greedy = True

    def on_headers(self, fields: Fields, end: bool) -> None:
        response = read_response(fields, end, self.method == b"HEAD")
        if response.status >= 200:
            assert not self.status, "two answers"
            self.status = response.status
            self.own = response.header(b"content-type") is not None
        if end:
            self.on_end()

    def on_data(self, data: memoryview) -> int:
        assert not self.over
        self.answer += data
        if self.greedy:
            return len(data)
        self.kept += len(data)
        return 0

    def on_end(self) -> None:
        assert not self.over
        assert self.status, "an end without an answer"
        self.over = "answered"

    def on_reset(self, code: int) -> None:
        assert not self.over or self.over == "answered"
        self.over = self.over or "reset"


class Owner:
    def on_ready(self) -> None: ...
    def on_request(self) -> Stream:
        raise AssertionError("a server opens no streams")

    def on_goaway(self, code: int) -> None: ...
    def on_window(self) -> None: ...


class Asked(Stream):
    """A request as a backend of HTTP/2 has it."""

    def __init__(self, backend: Backend2) -> None:
        super().__init__()
        self.backend = backend
        self.request: Request | None = None
        self.body = b""
        self.complete = self.answered = False
        self.left = b""

    def on_headers(self, fields: Fields, end: bool) -> None:
        assert self.request is None
        self.request = read_request(fields, end)
        self.backend.world.arrived.append((self.request.path, self.backend))  # type: ignore[arg-type]
        if end:
            self.on_end()

    def on_data(self, data: memoryview) -> int:
        self.body += data
        return len(data)

    def on_end(self) -> None:
        assert self.request is not None
        self.complete = True
        self.backend.world.complete.append((self.request.path, self.body))

    def reply(self, status: int, size: int) -> None:
        assert self.request is not None
        self.answered = True
        body = self.request.path + b" " + b"b" * size
        if self.request.method == b"HEAD":
            body = b""
        headers = [(b"content-length", b"%d" % len(body))] if body else []
        self.connection.send_headers(self, write_response(Response(status, headers, len(body))), not body)
        self.left = body

    def pump(self) -> None:
        room = min(self.send_window, self.connection.send_window, len(self.left))
        if room > 0 and self.connection.streams.get(self.stream_id) is self:
            data, self.left = self.left[:room], self.left[room:]
            self.connection.send_data(self, data, not self.left)


class Backend2:
    """The other end of a connection to a backend that speaks HTTP/2."""

    def __init__(self, wire: Wire, world: World) -> None:
        self.wire, self.world = wire, world
        self.connection = Connection(self, client=False, budget=Budget())
        self._rest = b""

    @property
    def asked(self) -> list[Asked]:
        """What awaits an answer."""
        streams = [cast(Asked, stream) for stream in self.connection.streams.values()]
        return [stream for stream in streams if not stream.answered] if self.wire.open else []

    def on_ready(self) -> None: ...
    def on_goaway(self, code: int) -> None: ...
    def on_window(self) -> None: ...
    def on_request(self) -> Stream:
        return Asked(self)

    def work(self) -> None:
        self.wire.flush()
        data = self._rest + bytes(self.wire.delivered)
        self.wire.delivered.clear()
        if data and not self.wire.was_reset:
            self._rest = data[self.connection.receive(data, memoryview(data), len(data)) :]
        for stream in list(self.connection.streams.values()):
            cast(Asked, stream).pump()
        out = b"".join(self.connection.out)
        self.connection.out.clear()
        if out and self.wire.open:
            self.wire.feed(out)
        self.wire.pump()


class World2(World):
    """Whose backends speak HTTP/2."""

    def __init__(self, limits: Limits, engine: Engine, breaker: CircuitBreaker | None) -> None:
        super().__init__(limits, engine, breaker)
        self.backends2: list[Backend2] = []

    def connected(self, wire: Wire, address: str) -> None:
        self.backends2.append(Backend2(wire, self))


class Story:
    def __init__(self, seed: int, *, http2: bool) -> None:
        self.random = Random(seed)
        self.pick = self.random.choice
        self.engine = Engine()
        self.backends2: list[Backend2] = []
        limits, breaker = self.pick(_LIMITS), self.pick(_BREAKERS)
        if http2:
            self.world: World = World2(limits, self.engine, breaker)
            self.backends2 = self.world.backends2
        else:
            self.world = World(limits, breaker=breaker)
        self.ended: list[tuple[str, str]] = []
        self.server = Http2Server(
            self.engine,  # type: ignore[arg-type]
            Budget(),
            self.world.begin,
            lambda error: None,
            lambda *end: self.ended.append(end),
        )
        self.wire = self.server.transport = Wire(self.server, connected=True)
        self.client = Connection(Owner(), client=True, budget=Budget())
        self.asks: list[Ask] = []
        self.gone = False
        self._rest = b""

    def go(self, steps: int) -> None:
        often: tuple[Callable[[], None], ...] = (
            self.ask, self.send, self.client_talks, self.backends_work, self.answer, self.client_reads, self.engine.turn
        )  # fmt: skip
        other = (self.cancel, self.stall, self.backend_fails, self.time_passes)
        rare = (self.leave, self.drain, self.server.tick)
        for _ in range(steps):
            self.pick(self.random.choices((often, other, rare), (100, 15, 1))[0])()
        self.rest()

    @property
    def live(self) -> list[Ask]:
        return [ask for ask in self.asks if self.client.streams.get(ask.stream_id) is ask]

    # -- the client ---------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        if self.gone or self.client.room <= 0:
            return
        method = self.pick((b"GET", b"POST", b"PUT", b"HEAD"))
        path = b"/%d" % len(self.asks)
        body = (b"<%d>" % len(self.asks) * 40_000)[: self.pick((0, 0, 5, 100_000))]
        ask = Ask(method, path, body)
        self.asks.append(ask)
        length = len(body) if self.pick((True, False)) else -1
        headers = [(b"content-length", b"%d" % length)] if length >= 0 else []
        self.client.open(ask, write_request(Request(method, b"web", path, headers, length)), not body)

    def send(self) -> None:
        for ask in self.live:
            room = min(ask.send_window, self.client.send_window, self.pick((1, 1000, 100_000)))
            if ask.left and room > 0:
                data, ask.left = ask.left[:room], ask.left[room:]
                self.client.send_data(ask, data, not ask.left)

    def client_talks(self) -> None:
        data = b"".join(self.client.out)
        self.client.out.clear()
        if data and not self.gone:
            step = self.pick((len(data), len(data) // 3 + 1))
            for at in range(0, len(data), step):
                self.wire.feed(data[at : at + step])

    def client_reads(self) -> None:
        self.wire.flush()
        self.wire.pump()
        data = self._rest + bytes(self.wire.delivered)
        self.wire.delivered.clear()
        used = self.client.receive(data, memoryview(data), len(data))
        self._rest = data[used:]

    def cancel(self) -> None:
        if self.live and not self.gone:
            ask = self.pick(self.live)
            ask.over = ask.over or "cancelled"
            self.client.reset(ask, ErrorCode.CANCEL)

    def stall(self) -> None:
        for ask in self.live:
            ask.greedy = self.pick((True, False))
            if ask.greedy and ask.kept:
                kept, ask.kept = ask.kept, 0
                self.client.delivered(ask, kept)
        self.wire.full = self.pick((True, False))

    def leave(self) -> None:
        if not self.gone and self.random.random() < 0.5:
            self.gone = True
            self.pick((self.wire.feed_eof, self.wire.lose))()

    # -- backends -----------------------------------------------------------------------------------------------------

    def _asked(self) -> list[Backend]:
        return [b for b in self.world.backends if b.wire.open and b.answered < len(b.requests)]

    def backends_work(self) -> None:
        for backend in list(self.world.backends):
            if not backend.wire.established and not backend.wire.closed:
                if self.random.random() < 0.05:
                    backend.wire.lose()
                    continue
                backend.wire.established = True
            backend.wire.flush()
            if not backend.wire.was_reset:
                backend.read()
            backend.wire.pump()
        for backend2 in list(self.backends2):
            if not backend2.wire.established and not backend2.wire.closed:
                if self.random.random() < 0.05:
                    backend2.wire.lose()
                    continue
                backend2.wire.established = True
            backend2.work()

    def answer(self) -> None:
        for backend2 in self.backends2:
            for asked in backend2.asked:
                assert asked.request is not None
                if asked.complete or self.random.random() < 0.1:
                    asked.reply(self.pick((200, 200, 200, 503)), self.pick((0, 10, 200_000)))
                elif self.random.random() < 0.02:
                    asked.answered = True
                    backend2.connection.reset(asked, ErrorCode.INTERNAL_ERROR)
                elif self.random.random() < 0.02:
                    asked.answered = True
                    backend2.connection.reset(asked, ErrorCode.REFUSED_STREAM)
                    self.world.arrived.remove((asked.request.path, backend2))  # type: ignore[arg-type]
        for backend in self._asked():
            if backend.complete == len(backend.requests) or self.random.random() < 0.1:
                self._answer(backend, self.pick((200, 200, 200, 503)), self.pick((0, 10, 200_000)))

    def _answer(self, backend: Backend, status: int, size: int) -> None:
        request = backend.requests[-1][0]
        body = request.path + b" " + b"b" * size
        raw = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        backend.next()
        for piece in (raw, *([] if request.method == b"HEAD" else [body[:30_000], body[30_000:]])):
            if piece:
                backend.wire.feed(piece)

    def backend_fails(self) -> None:
        if backends := self._asked():
            wire = self.pick(backends).wire
            self.pick((wire.feed_eof, wire.lose))()
        if backends2 := [backend2 for backend2 in self.backends2 if backend2.asked]:
            backend2 = self.pick(backends2)
            self.pick((backend2.wire.feed_eof, backend2.wire.lose, backend2.connection.goaway))()

    # -- the rest -----------------------------------------------------------------------------------------------------

    def time_passes(self) -> None:
        if self.world.timers.set:
            self.pick(self.world.timers.set).fire()

    def drain(self) -> None:
        self.server.drain()

    def rest(self) -> None:
        world, quiet = self.world, 0
        self.wire.full = True  # so that there is room again with the next flush
        while quiet < 5:
            before = (
                len(world.over),
                len(world.arrived),
                sum(len(a.left) + len(a.answer) + len(a.over) for a in self.asks),
            )
            for ask in self.live:
                ask.greedy = True
                if ask.kept:
                    kept, ask.kept = ask.kept, 0
                    self.client.delivered(ask, kept)
            self.send()
            self.client_talks()
            self.engine.turn()
            for backend in world.backends:
                if not backend.wire.established and not backend.wire.closed:
                    backend.wire.established = True
            for backend2 in self.backends2:
                if not backend2.wire.closed:
                    backend2.wire.established = True
            self.backends_work()
            for backend in self._asked():
                if backend.complete == len(backend.requests):
                    self._answer(backend, 200, 0)
            for backend2 in self.backends2:
                for asked in backend2.asked:
                    if asked.complete:
                        asked.reply(200, 0)
            self.engine.turn()
            self.client_reads()
            for timer in list(world.timers.set):
                timer.fire()
            self.engine.turn()
            after = (
                len(world.over),
                len(world.arrived),
                sum(len(a.left) + len(a.answer) + len(a.over) for a in self.asks),
            )
            quiet = quiet + 1 if before == after else 0
        self.check()

    def check(self) -> None:
        world = self.world
        arrived = [path for path, _ in world.arrived]
        for ask in self.asks:
            if ask.answer and not ask.own:
                expected = ask.path + b" "
                begins = ask.answer[: len(expected)]
                assert begins == (expected if ask.over == "answered" else expected[: len(begins)])
            assert not ask.answer or ask.method != b"HEAD"
            assert arrived.count(ask.path) <= 1 or ask.method != b"POST"
        bodies = {ask.path: ask.body for ask in self.asks}
        for path, body in world.complete:
            assert body == bodies[path]
        world.check_over()
        assert len(self.ended) <= 1
        assert not self.server.connection.streams
        if not self.gone and not self.ended:
            assert all(ask.over for ask in self.asks if ask.stream_id)
            assert not self.wire.held


@pytest.mark.parametrize("http2", [False, True], ids=["to HTTP/1.1", "to HTTP/2"])
@pytest.mark.parametrize("part", range(4))
def test_streams_get_their_own_answers_and_end_once(part: int, http2: bool) -> None:
    for seed in range(part * 50, part * 50 + 50):
        try:
            Story(seed, http2=http2).go(150)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
