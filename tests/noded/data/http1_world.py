"""Http1Server, OutboundExchange, Upstream and Http1Client as they are, over transports that a test moves by hand."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

from mesh.balance import Host
from mesh.circuit import Circuit
from mesh.h2.connection import Budget as Windows
from mesh.http1 import BadMessage, RequestParser
from mesh.message import Headers, Request
from mesh.paths import Normalization
from mesh.resolve import NO_ENDPOINT
from mesh.retry import Budget
from mesh.route import Limits
from mesh.traffic import CircuitBreaker, RetryBudget
from noded.data.http.client import Http1Client
from noded.data.http.connections import Connections
from noded.data.http.outbound import OutboundExchange
from noded.data.http.server import Http1Server, Responder
from noded.data.http.transport import Reader
from noded.data.http.upstreams import Upstream


class Wire:
    """A transport whose other end is the test. What is written stays in `out` until `flush`."""

    retiring = False

    def __init__(self, reader: Reader, *, connected: bool) -> None:
        self.reader = reader
        self.received = self.sent = 0
        self.closed = self.closing = self.ended = self.held = self.was_reset = self.eof = False
        self.established = connected
        self.full = False
        self.arrived: list[bytes] = []
        self.out = bytearray()
        self.delivered = bytearray()
        """What the other end has."""

    # -- as `Transport` -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self.closed and not self.closing:
            assert not self.ended, "written after the end"
            self.out += data

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def end(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closing = True

    def reset(self) -> None:
        self.closed = self.was_reset = True
        self.out.clear()

    # -- as the other end ---------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        return not self.closed and not self.closing

    def flush(self) -> None:
        if self.established and not self.closed:
            self.delivered += self.out
            self.sent += len(self.out)
            self.out.clear()
            if self.full:  # and there is room again
                self.full = False
                if self.open:
                    self.reader.on_room()
            if self.closing:
                self.closed = True

    def feed(self, data: bytes) -> None:
        self.arrived.append(data)
        self.pump()

    def feed_eof(self) -> None:
        self.eof = True
        self.pump()

    def pump(self) -> None:
        """Hand on what arrived and is not held."""
        while self.arrived and not self.held and self.open:
            data = self.arrived.pop(0)
            self.received += len(data)
            self.reader.on_bytes(data)
        if self.eof and not self.arrived and not self.held and self.open:
            self.eof = False
            self.reader.on_eof()

    def lose(self) -> None:
        if not self.closed:
            self.closed = True
            if not self.closing:
                self.reader.on_lost("lost")


class Backend:
    """The other end of a connection to a backend: reads requests out of it."""

    def __init__(self, wire: Wire, world: World, address: str) -> None:
        self.wire, self.world, self.address = wire, world, address
        self.requests: list[tuple[Request, bytearray]] = []
        self.complete = 0
        """Of the requests, those that are here with their whole body."""
        self.answered = 0
        """Those that have had the whole of an answer."""
        self.broken: BadMessage | None = None
        self._parser = RequestParser(self)

    def read(self) -> None:
        """Read what was delivered; the proxy must send nothing but well-formed requests."""
        data = bytes(self.wire.delivered)
        self.wire.delivered.clear()
        self._parser.feed(data)

    def next(self) -> None:
        """It gives the answer to what it was asked last."""
        self.answered += 1
        self._parser.proceed()

    def on_request(self, request: Request, keep_alive: bool) -> None:
        assert keep_alive
        assert self.complete == len(self.requests), "a request within a request"
        assert self.answered == len(self.requests), "a request before the answer to the one before it"
        self.requests.append((request, bytearray()))
        self.world.arrived.append((request.path, self))

    def on_body(self, data: bytes) -> None:
        self.requests[-1][1].extend(data)

    def on_end(self, trailers: Headers) -> None:
        self.complete += 1
        request, body = self.requests[-1]
        self.world.complete.append((request.path, bytes(body)))

    def on_rest(self, data: bytes) -> None:
        raise AssertionError("no upgrade was asked for")


class Timers:
    """Fired by the test."""

    def __init__(self) -> None:
        self.set: list[Timer] = []

    def after(self, seconds: float, call: Callable[[], Any]) -> Timer:
        timer = Timer(self, call)
        self.set.append(timer)
        return timer


class Timer:
    def __init__(self, timers: Timers, call: Callable[[], Any]) -> None:
        self._timers, self._call = timers, call

    def cancel(self) -> None:
        if self in self._timers.set:
            self._timers.set.remove(self)

    def fire(self) -> None:
        self.cancel()
        self._call()


class _Gauge:
    """Stands for a `Traffic`."""

    def __init__(self, circuit: Circuit, timers: Any) -> None:
        self.under_way = 0
        self.circuit = circuit
        self.connections = Connections(circuit, timers) if circuit.connections.most else None

    def admits(self, exchange: OutboundExchange) -> bool:
        return True

    def hash_key(self, exchange: OutboundExchange) -> bytes | None:
        return None

    def enter(self) -> bool:
        if not self.circuit.requests.enter():
            return False
        self.under_way += 1
        return True

    def leave(self, host: Host, ok: bool, now: float) -> None:
        self.give_way()
        if self.connections is not None:
            self.connections.free()

    def give_way(self) -> None:
        self.circuit.requests.leave()
        self.under_way -= 1
        assert self.under_way >= 0


class _Upstream(Upstream):
    __slots__ = ("world",)
    world: World

    def _connect(self, connection: Any, exchange: Any) -> str:
        connection.transport = wire = Wire(connection, connected=False)
        self.world.connected(wire, self.address)
        return ""


class Visit:
    """One client's connection."""

    def __init__(self, world: World) -> None:
        self.refused: list[BadMessage] = []
        self.ended: list[tuple[str, str]] = []
        self.server = Http1Server(world.begin, self.refused.append, lambda *end: self.ended.append(end))
        self.server.authority = b"web"
        self.wire = self.server.transport = Wire(self.server, connected=True)


class World:
    """Two clients' connections to a service with two endpoints. The proxy and destination of their exchanges."""

    no_endpoint = NO_ENDPOINT

    def __init__(self, limits: Limits, engine: Any = None, breaker: CircuitBreaker | None = None) -> None:
        """With an `engine`, backends are spoken to in HTTP/2, and `connected` is the test's to override."""
        self._engine = engine
        self.arrived: list[tuple[bytes, Backend]] = []
        self.complete: list[tuple[bytes, bytes]] = []
        self.backends: list[Backend] = []
        self.over: list[OutboundExchange] = []
        self.exchanges: list[OutboundExchange] = []
        self.hosts = [Host(f"10.0.0.{i}", 80, f"w{i}", local=False, added=0.0) for i in (1, 2)]
        self.timers = Timers()
        self.gauge = _Gauge(Circuit(breaker), self.timers)
        self._local: Any = SimpleNamespace(gone=False, uid="shop/client")
        self._upstreams: dict[str, Upstream] = {}
        self._limits = limits
        self.visits = [Visit(self), Visit(self)]

    def begin(self, responder: Responder, request: Request) -> OutboundExchange:
        session: Any = SimpleNamespace(
            proxy=self, local=self._local, service="shop/web", port=80, namespace="shop", seen=self._seen,
            http2_to=lambda destination: self._engine is not None,
        )  # fmt: skip
        exchange = OutboundExchange(session, responder, request)
        self.exchanges.append(exchange)
        return exchange

    def _seen(self, exchange: OutboundExchange) -> None:
        assert exchange not in self.over, "an exchange ended twice"
        self.over.append(exchange)

    def connected(self, wire: Wire, address: str) -> None:
        """A connection to a backend is asked for."""
        self.backends.append(Backend(wire, self, address))

    # -- as the proxy -------------------------------------------------------------------------------------------------

    normalization = Normalization.BASE
    seen = SimpleNamespace(tracing=None)

    @property
    def node(self) -> Any:
        return SimpleNamespace(snapshot=None, tracker=SimpleNamespace(count=lambda name: None))

    @property
    def destinations(self) -> Any:
        return SimpleNamespace(at=lambda service, port: self)

    @property
    def upstreams(self) -> Any:
        return SimpleNamespace(to=self._to)

    def _to(self, local: Any, service: Any, address: str, port: int, uid: str) -> Upstream:
        found = self._upstreams.get(address)
        if found is None:
            proxy: Any = SimpleNamespace(node=SimpleNamespace(engine=self._engine, budget=Windows()))
            made = _Upstream(proxy, local, service, address, port, uid)
            made.world = self
            found = self._upstreams[address] = made
        return found

    def check_over(self) -> None:
        """Nothing is under way any more: then nothing may be left over."""
        assert len(self.over) == len(self.exchanges), "an exchange never ended"
        assert sum(host.active for host in self.hosts) == self.gauge.under_way == 0
        assert self.timers.set == []
        for connection in self.connections:
            assert connection._exchange is None
            assert not connection.transport.held
        circuit = self.gauge.circuit
        assert circuit.requests.count == 0
        assert circuit.pending.count == 0
        if circuit.connections.most:
            shared = sum(len(upstream.shared) for upstream in self._upstreams.values())
            assert circuit.connections.count == len(self.connections) + shared

    @property
    def connections(self) -> list[Http1Client]:
        return [connection for upstream in self._upstreams.values() for connection in upstream.all]

    # -- as the destination -------------------------------------------------------------------------------------------

    service = None
    protocol = "http"

    @property
    def traffic(self) -> Any:
        return self.gauge

    @property
    def limits(self) -> Limits:
        return self._limits

    budget = Budget(RetryBudget(10_000, 100_000))

    def router(self, snapshot: Any, namespace: str) -> None:
        return None

    def pick(self, now: float, hash_key: bytes | None, tried: Collection[Host]) -> Host | None:
        left = [host for host in self.hosts if host not in tried] or self.hosts
        return min(left, key=lambda host: host.active, default=None)
