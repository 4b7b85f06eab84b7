"""Our HTTP/2 beside `h2`, a peer nobody here wrote: tunnels opened from either side, cut at any byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import hbone
from mesh.h2.connection import Budget, Connection, Stream
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields

AUTHORITY = b"10.77.2.2:8080"
CONNECT = hbone.connect("10.77.2.2", 8080, "10.77.1.2:40000", "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", b"")

payloads = st.lists(st.integers(0, 40_000) | st.just(200_000), max_size=5)
cuts = st.lists(st.integers(1, 70_000), min_size=1, max_size=8)


class Tunnel(Stream):
    """Our end of one CONNECT; keeps what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: Fields = []
        self.received = bytearray()
        self.finished = False
        self.reset_code: int | None = None

    def on_headers(self, fields: Fields, end: bool) -> None:
        self.fields = fields
        self.finished = end

    def on_data(self, data: memoryview) -> int:
        self.received += data
        return len(data)

    def on_end(self) -> None:
        self.finished = True

    def on_reset(self, code: int) -> None:
        self.reset_code = code


class Ours:
    """Our connection and the buffer that its caller would keep."""

    def __init__(self, *, client: bool) -> None:
        self.accepted: list[Tunnel] = []
        self.goaway_code: int | None = None
        self.ready = False
        self.connection = Connection(self, client=client, budget=Budget())
        self._pending = b""

    def on_ready(self) -> None:
        self.ready = True

    def on_request(self) -> Stream:
        self.accepted.append(Tunnel())
        return self.accepted[-1]

    def on_goaway(self, code: int) -> None:
        self.goaway_code = code

    def on_window(self) -> None:
        pass

    def feed(self, data: bytes) -> None:
        buffer = bytearray(self._pending + data)
        used = self.connection.receive(buffer, memoryview(buffer), len(buffer))
        self._pending = bytes(buffer[used:])

    def take(self) -> bytes:
        data = b"".join(self.connection.out)
        self.connection.out.clear()
        return data

    def send(self, tunnel: Tunnel, data: bytes) -> bytes:
        """Send what the windows allow; return the rest."""
        size = max(0, min(len(data), tunnel.send_window, self.connection.send_window))
        if size:
            self.connection.send_data(tunnel, data[:size])
        return data[size:]


class Library:
    """`h2`'s end; credits all data at once and keeps it by stream."""

    def __init__(self, *, client: bool) -> None:
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding=None)
        )
        self.connection.initiate_connection()
        self.received: dict[int, bytearray] = {}
        self.events: list[h2.events.Event] = []

    def feed(self, data: bytes) -> None:
        for event in self.connection.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                if event.flow_controlled_length:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def send(self, stream: int, data: bytes) -> bytes:
        """One frame of what the windows allow; return the rest."""
        window = self.connection.local_flow_control_window(stream)
        size = min(len(data), window, self.connection.max_outbound_frame_size)
        if size:
            self.connection.send_data(stream, data[:size])
        return data[size:]

    def seen(self, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        return [event for event in self.events if isinstance(event, kind)]


def pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """`data` cut at these sizes, over and over."""
    around = list(sizes)
    at = turn = 0
    while at < len(data):
        yield data[at : at + around[turn % len(around)]]
        at += around[turn % len(around)]
        turn += 1


def exchange(ours: Ours, library: Library, sizes: list[int]) -> None:
    """Carry bytes both ways until neither has more to say."""
    while True:
        to_library, to_us = ours.take(), library.connection.data_to_send()
        if not to_library and not to_us:
            return
        for part in pieces(to_library, sizes):
            library.feed(part)
        for part in pieces(to_us, sizes):
            ours.feed(part)


def content(sizes: list[int]) -> bytes:
    return b"".join(bytes([index & 255]) * size for index, size in enumerate(sizes, 1))


@settings(deadline=None, max_examples=60)
@given(up=payloads, down=payloads, sizes=cuts)
def test_a_tunnel_to_an_h2_server_carries_every_byte_both_ways(
    up: list[int], down: list[int], sizes: list[int]
) -> None:
    ours, library = Ours(client=True), Library(client=False)
    exchange(ours, library, sizes)
    assert ours.ready

    tunnel = Tunnel()
    ours.connection.open(tunnel, CONNECT)
    exchange(ours, library, sizes)
    (request,) = library.seen(h2.events.RequestReceived)
    assert isinstance(request, h2.events.RequestReceived)
    assert dict(request.headers)[b":authority"] == AUTHORITY
    library.connection.send_headers(tunnel.stream_id, [(b":status", b"200")])

    _drive(ours, tunnel, library, tunnel.stream_id, content(up), content(down), sizes)

    assert hbone.parse_status(tunnel.fields) == 200
    assert ours.connection.streams == {}


@settings(deadline=None, max_examples=60)
@given(up=payloads, down=payloads, sizes=cuts)
def test_a_tunnel_from_an_h2_client_carries_every_byte_both_ways(
    up: list[int], down: list[int], sizes: list[int]
) -> None:
    ours, library = Ours(client=False), Library(client=True)
    library.connection.send_headers(1, [(b":method", b"CONNECT"), (b":authority", AUTHORITY), (b"baggage", b"k=v")])
    exchange(ours, library, sizes)
    (tunnel,) = ours.accepted
    request = hbone.parse_connect(tunnel.fields)
    assert isinstance(request, hbone.Request)
    assert (request.address, request.port, request.baggage) == ("10.77.2.2", 8080, "k=v")
    ours.connection.send_headers(tunnel, hbone.OK)

    _drive(ours, tunnel, library, 1, content(down), content(up), sizes)

    assert library.seen(h2.events.ResponseReceived)
    assert ours.connection.streams == {}


def _drive(
    ours: Ours, tunnel: Tunnel, library: Library, stream: int, from_us: bytes, from_library: bytes, sizes: list[int]
) -> None:
    """Send both payloads through the windows as they open, end both sides, and compare."""
    us_left, library_left = from_us, from_library
    while us_left or library_left:
        before = len(us_left) + len(library_left)
        us_left = ours.send(tunnel, us_left)
        library_left = library.send(stream, library_left)
        exchange(ours, library, sizes)
        assert len(us_left) + len(library_left) < before, "both windows are shut for good"
    ours.connection.end(tunnel)
    library.connection.end_stream(stream)
    exchange(ours, library, sizes)
    assert tunnel.received == from_library
    assert library.received.get(stream, b"") == from_us
    assert tunnel.finished
    assert library.seen(h2.events.StreamEnded)


def test_many_streams_of_one_tunnel_keep_their_bytes_apart() -> None:
    ours, library = Ours(client=True), Library(client=False)
    exchange(ours, library, [4096])
    tunnels = [Tunnel() for _ in range(100)]
    for tunnel in tunnels:
        ours.connection.open(tunnel, CONNECT)
    assert ours.connection.room == 0
    for turn in range(3):
        for tunnel in tunnels:
            ours.connection.send_data(tunnel, b"%d.%d;" % (tunnel.stream_id, turn))
    exchange(ours, library, [777])
    for tunnel in tunnels:
        want = b"".join(b"%d.%d;" % (tunnel.stream_id, turn) for turn in range(3))
        assert library.received[tunnel.stream_id] == want


def test_a_window_the_library_narrows_is_kept_and_one_it_widens_is_used() -> None:
    ours, library = Ours(client=True), Library(client=False)
    library.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    exchange(ours, library, [5])
    tunnel = Tunnel()
    ours.connection.open(tunnel, CONNECT)
    assert tunnel.send_window == 10
    assert ours.send(tunnel, b"x" * 25) == b"x" * 15
    assert tunnel.send_window == 0
    library.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100})
    exchange(ours, library, [5])
    assert tunnel.send_window == 100  # widened by 90, and credited the 10 that arrived


def test_a_reset_by_the_library_reaches_the_stream_and_only_that_one() -> None:
    ours, library = Ours(client=True), Library(client=False)
    exchange(ours, library, [9])
    one, other = Tunnel(), Tunnel()
    ours.connection.open(one, CONNECT)
    ours.connection.open(other, CONNECT)
    exchange(ours, library, [9])
    library.connection.reset_stream(one.stream_id, ErrorCode.CONNECT_ERROR)
    exchange(ours, library, [9])
    assert one.reset_code == ErrorCode.CONNECT_ERROR
    assert other.reset_code is None
    assert list(ours.connection.streams.values()) == [other]


def test_our_reset_reaches_the_library_as_that_streams_end() -> None:
    ours, library = Ours(client=False), Library(client=True)
    library.connection.send_headers(1, [(b":method", b"CONNECT"), (b":authority", AUTHORITY)])
    exchange(ours, library, [50])
    ours.connection.reset(ours.accepted[0], ErrorCode.CANCEL)
    exchange(ours, library, [50])
    (event,) = library.seen(h2.events.StreamReset)
    assert isinstance(event, h2.events.StreamReset)
    assert (event.stream_id, event.error_code) == (1, ErrorCode.CANCEL)


def test_a_ping_is_answered_on_both_sides() -> None:
    ours, library = Ours(client=True), Library(client=False)
    exchange(ours, library, [3])
    ours.connection.ping()
    library.connection.ping(b"12345678")
    exchange(ours, library, [3])
    assert not ours.connection.ping_outstanding
    assert library.seen(h2.events.PingAckReceived)


@pytest.mark.parametrize("ours_is_client", [True, False])
def test_our_goaway_is_understood(ours_is_client: bool) -> None:
    ours, library = Ours(client=ours_is_client), Library(client=not ours_is_client)
    exchange(ours, library, [1000])
    ours.connection.goaway()
    exchange(ours, library, [1000])
    (event,) = library.seen(h2.events.ConnectionTerminated)
    assert isinstance(event, h2.events.ConnectionTerminated)
    assert event.error_code == ErrorCode.NO_ERROR
