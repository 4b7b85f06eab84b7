"""Requests and answers between two `h2` peers, through our server, an exchange and our client, with no sockets.

Pieces of any size arrive in any order, windows open late, transports fill: what is sent arrives, whole and in order.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.h2.connection import MAX_STREAMS, Budget
from mesh.message import Request
from noded.data.http.client2 import Http2Client
from noded.data.http.exchange import Exchange
from noded.data.http.server import Responder
from noded.data.http.server2 import Http2Server
from tests.noded.data.test_http2_streams import Engine

SESSION = SimpleNamespace(proxy=None)


class Pipe:
    """A transport with room for little."""

    established, closed, received, sent, retiring = True, False, 0, 0, False

    def __init__(self, most: int) -> None:
        self.most = most
        self.reader: Any = None
        self.unsent = bytearray()
        self.arriving = bytearray()
        self.held = False

    @property
    def full(self) -> bool:
        return len(self.unsent) > self.most

    def write(self, data: bytes) -> None:
        self.unsent += data

    def take(self, size: int) -> bytes:
        was = self.full
        data = bytes(self.unsent[:size])
        del self.unsent[:size]
        if was and not self.full:
            self.reader.on_room()
        return data

    def arrive(self, size: int) -> None:
        if not self.held and self.arriving:
            data = bytes(self.arriving[:size])
            del self.arriving[:size]
            self.reader.on_bytes(data)

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def close(self) -> None:
        raise AssertionError("closed")

    reset = end = close


class Peer:
    """A connection of the `h2` library: sends bodies as windows allow, and credits what it got when it likes."""

    def __init__(self, pipe: Pipe, dice: random.Random, *, client: bool, window: int) -> None:
        self.pipe, self.dice = pipe, dice
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client))
        self.connection.local_settings = h2.settings.Settings(
            client=client, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.connection.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        """To be sent."""
        self.got: dict[int, bytearray] = {}
        self.complete: set[int] = set()
        self.owed: list[tuple[int, int]] = []
        self.trailers: dict[int, Any] = {}

    def send(self) -> None:
        for stream, body in list(self.bodies.items()):
            room = min(self.connection.local_flow_control_window(stream), 16_384, self.dice.randrange(1, 20_000))
            if body and room > 0:
                self.connection.send_data(stream, body[:room])
                self.bodies[stream] = body[room:]
            elif not body and self.may_end(stream):
                self.connection.send_headers(stream, [("sum", str(stream))], end_stream=True)
                del self.bodies[stream]

    def read(self, size: int) -> None:
        for event in self.connection.receive_data(self.pipe.take(size)):
            if isinstance(event, h2.events.DataReceived):
                self.got.setdefault(event.stream_id or 0, bytearray()).extend(event.data or b"")
                self.owed.append((event.flow_controlled_length or 0, event.stream_id or 0))
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id or 0] = event.headers
            elif isinstance(event, h2.events.StreamEnded):
                self.complete.add(event.stream_id or 0)
            elif isinstance(event, h2.events.RequestReceived):
                self.on_request(event.stream_id or 0, dict(cast(Any, event.headers)))
            assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event

    def credit(self) -> None:
        self.dice.shuffle(self.owed)
        for _ in range(self.dice.randrange(len(self.owed) + 1)):
            size, stream = self.owed.pop()
            try:
                self.connection.acknowledge_received_data(size, stream)
            except h2.exceptions.StreamClosedError:
                pass

    def move(self) -> None:
        self.pipe.arriving += self.connection.data_to_send()
        self.pipe.arrive(self.dice.randrange(1, 30_000))

    def on_request(self, stream: int, headers: dict[bytes, bytes]) -> None:
        raise AssertionError

    def may_end(self, stream: int) -> bool:
        return True

    def turn(self) -> None:
        """One random step."""
        step = self.dice.randrange(4)
        if step == 0:
            self.send()
        elif step == 1:
            self.read(self.dice.choice((1, 9, 100, 40_000)))
        elif step == 2:
            self.credit()
        else:
            self.move()


class Backend(Peer):
    """Answers a request for `/n` with n bytes, from its head on, and ends after it."""

    def may_end(self, stream: int) -> bool:
        return stream in self.complete

    def on_request(self, stream: int, headers: dict[bytes, bytes]) -> None:
        length = int(headers[b":path"][1:])
        self.connection.send_headers(stream, [(":status", "200"), ("which", headers[b"which"].decode())])
        self.bodies[stream] = body_of(int(headers[b"which"]), length)


def body_of(number: int, length: int) -> bytes:
    return (b"%d," % number * (length // 2 + 1))[:length]


class Relayed(Exchange):
    __slots__ = ("to",)

    def __init__(self, to: Http2Client, responder: Responder, request: Request) -> None:
        super().__init__(cast(Any, SESSION), responder, request)
        self.to = to

    def begin(self) -> None:
        self.send(self.to.call(self))

    def seen(self) -> None:
        assert self.flags == "-", self.reason


class Keeper:
    streams = MAX_STREAMS

    def gone2(self, connection: Http2Client) -> None:
        raise AssertionError(connection.reason)


sizes = st.sampled_from([0, 1, 1000, 70_000, 300_000])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32).map(random.Random),
    st.lists(st.tuples(sizes, sizes), min_size=1, max_size=6),
    st.sampled_from([1, 100, 65_535, 500_000]),
    st.sampled_from([1, 100, 65_535, 500_000]),
    st.sampled_from([100, 130_000]),
)
def test_whatever_is_sent_arrives(
    dice: random.Random, requests: list[tuple[int, int]], window: int, other_window: int, most: int
) -> None:
    if min(window, other_window) == 1:  # each byte is a frame
        requests = [(min(sent, 1000), min(answered, 1000)) for sent, answered in requests]
    engine = Engine()
    near, far = Pipe(most), Pipe(most)
    client = Http2Client(cast(Any, engine), Budget(), Keeper())
    server = Http2Server(
        cast(Any, engine),
        Budget(),
        lambda responder, request: Relayed(client, responder, request),
        lambda error: None,
        lambda flags, reason: None,
    )
    server.transport, client.transport = near, far
    near.reader, far.reader = server, client
    user = Peer(near, dice, client=True, window=window)
    backend = Backend(far, dice, client=False, window=other_window)
    far.arriving += backend.connection.data_to_send()
    far.arrive(1000)  # `h2` enforces its settings before they can be known
    streams = []
    for number, (sent, answered) in enumerate(requests):
        stream = user.connection.get_next_available_stream_id()
        streams.append(stream)
        start = [(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", f"/{answered}")]
        user.connection.send_headers(stream, [*start, ("which", str(number))])
        user.bodies[stream] = body_of(number, sent)
    for _ in range(400_000):
        (user if dice.randrange(2) else backend).turn()
        engine.flush()
        if len(user.complete) == len(requests) == len(backend.complete):
            break
    else:
        raise AssertionError("stuck")
    for number, (stream, (_, answered)) in enumerate(zip(streams, requests, strict=True)):
        assert user.got.get(stream, b"") == body_of(number, answered)
        assert stream in user.trailers
    arrived = sorted(bytes(backend.got.get(stream, b"")) for stream in backend.complete)
    assert arrived == sorted(body_of(number, sent) for number, (sent, _) in enumerate(requests))
    assert len(backend.trailers) == len(requests)
    assert not server.connection.streams
    assert not client.connection.streams
    assert not server.waiting
    assert not client.waiting
