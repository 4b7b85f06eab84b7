"""An HTTP/2 connection's two ends without sockets: waiting, stopping, time limits, and the end."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mesh.h2 import frames
from mesh.h2.connection import MAX_STREAMS, NUISANCE_LIMIT, Budget
from mesh.h2.frames import ErrorCode, Setting
from mesh.h2.headers import Decoder, encode_field
from mesh.http1 import BadMessage
from mesh.message import Headers, Request, Response
from noded.data.http.client2 import Http2Client
from noded.data.http.exchange import Exchange
from noded.data.http.server import Responder
from noded.data.http.server2 import Http2Server
from noded.data.http.streams import HIGH, MessageStream
from tests.mesh.h2_ends import data, frame, sent

GET = b"".join(
    encode_field(*field)
    for field in [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web"), (b":path", b"/")]
)
POST = encode_field(b":method", b"POST") + GET[1:]
OK = b"\x88"


class Engine:
    """Flushes when told to."""

    def __init__(self) -> None:
        self.dirty: set[Any] = set()

    def mark(self, gathered: Any) -> None:
        self.dirty.add(gathered)

    def flush(self) -> None:
        while self.dirty:
            self.dirty.pop().flush()


class Wire:
    """A transport that keeps what is written."""

    established = True

    def __init__(self) -> None:
        self.sent = 0
        self.written = bytearray()
        self.full = self.held = self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def close(self) -> None:
        self.closed = True

    reset = close


class Record:
    """An exchange that writes down what happens to it."""

    def __init__(self, responder: Any = None, request: Request | None = None) -> None:
        self.responder, self.request = responder, request
        self.events: list[tuple[Any, ...]] = []

    def begin(self) -> None:
        self.events.append(("begin",))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *args: self.events.append((name, *args))

    def names(self) -> list[str]:
        return [event[0] for event in self.events]


class Side:
    def __init__(self) -> None:
        self.engine, self.wire = Engine(), Wire()
        self.end: Http2Server | Http2Client

    def feed(self, wire: bytes) -> None:
        self.end.on_bytes(wire)
        self.engine.flush()

    def take(self) -> list[tuple[int, int, int, bytes]]:
        """The frames written since the last call."""
        self.engine.flush()
        written, self.wire.written = bytes(self.wire.written), bytearray()
        return sent(written)

    def kinds(self) -> list[int]:
        return [kind for kind, _, _, _ in self.take()]


class Server(Side):
    """Our server, greeted."""

    def __init__(self, settings: dict[Setting, int] | None = None) -> None:
        super().__init__()
        self.exchanges: list[Record] = []
        self.refused: list[BadMessage] = []
        self.ended: list[tuple[str, str]] = []
        self.end = self.server = Http2Server(
            cast(Any, self.engine), Budget(), self.begin, self.refused.append, lambda *args: self.ended.append(args)
        )
        self.server.transport = cast(Any, self.wire)
        self.feed(frames.PREFACE + frames.settings(settings or {}))
        self.take()

    def begin(self, responder: Responder, request: Request) -> Exchange:
        self.exchanges.append(Record(responder, request))
        return cast(Exchange, self.exchanges[-1])

    def request(self, stream: int = 1, block: bytes = GET, *, end: bool = True) -> Record:
        self.feed(frames.headers(stream, block, end))
        return self.exchanges[-1]


class Client(Side):
    """Our client, greeted; the keeper of its connection."""

    streams = MAX_STREAMS

    def __init__(self, *, greeted: bool = True) -> None:
        super().__init__()
        self.gone = 0
        self.end = self.client = Http2Client(cast(Any, self.engine), Budget(), self)
        self.client.transport = cast(Any, self.wire)
        if greeted:
            self.feed(frames.settings({}))
        self.take()

    def gone2(self, connection: Http2Client) -> None:
        self.gone += 1

    def call(self, *, length: int = 0) -> tuple[Record, Any]:
        exchange = Record()
        call = self.client.call(cast(Exchange, exchange))
        call.head(Request(b"POST", b"web", b"/", [], length))
        self.take()
        return exchange, call


def respond(record: Record, body: bytes, trailers: Headers | None = None) -> None:
    record.responder.head(Response(200, [], -1))
    record.responder.data(body)
    record.responder.end(trailers or [])


# -- sending ----------------------------------------------------------------------------------------------------------


def test_the_last_data_of_a_known_length_says_that_it_is_the_last() -> None:
    server = Server()
    responder = server.request().responder
    responder.head(Response(200, [(b"content-length", b"4")], 4))
    responder.data(b"ab")
    responder.data(b"cd")
    responder.end([])
    assert [(kind, flags) for kind, flags, _, _ in server.take()] == [(1, 4), (0, 0), (0, 1)]
    assert not server.server.connection.streams


def test_trailers_end_a_stream() -> None:
    server = Server()
    respond(server.request(), b"ab", [(b"grpc-status", b"0")])
    head, body, trailers = server.take()
    assert (head[1], body[1], trailers[:2]) == (4, 0, (1, 5))
    assert Decoder().decode(trailers[3]) == [(b"grpc-status", b"0")]


@pytest.mark.parametrize("known", [True, False])
def test_what_does_not_fit_a_window_waits_for_it_and_its_producer_is_stopped(known: bool) -> None:
    server = Server({Setting.INITIAL_WINDOW_SIZE: 10})
    record = server.request()
    body = bytes(HIGH) + b"0123456789ab"
    record.responder.head(Response(200, [], len(body) if known else -1))
    record.responder.data(body[:2])
    record.responder.data(body[2:])
    assert record.responder.full
    record.responder.end([])
    got = b"".join(payload for kind, _, _, payload in server.take() if kind == frames.DATA)
    assert len(got) == 10
    while server.server.connection.streams:
        server.feed(frames.window_update(1, 30_000) + frames.window_update(0, 30_000))
        found = server.take()
        assert found
        got += b"".join(payload for kind, _, _, payload in found if kind == frames.DATA)
    assert got == body
    assert found[-1][1] & frames.END_STREAM
    assert not server.server.waiting


def test_many_small_messages_of_one_turn_are_not_taken_for_answers_that_nobody_reads() -> None:
    server = Server()
    record = server.request()
    record.responder.head(Response(200, [], -1))
    for _ in range(12_000):
        record.responder.data(b"x")
    server.feed(frames.ping(b"12345678"))
    assert not server.wire.closed
    assert len(server.take()) == 12_002


@pytest.mark.parametrize("piece", [13, 1 << 20], ids=["update by update", "in one read"])
def test_a_connections_window_given_by_the_byte_has_those_that_wait_looked_at_once_a_read(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({Setting.INITIAL_WINDOW_SIZE: 2 * HIGH})
    records = [server.request(number) for number in range(1, 200, 2)]
    for record in records:
        record.responder.head(Response(200, [], -1))
        record.responder.data(bytes(2 * HIGH))
    server.take()
    assert len(server.server.waiting) == len(records)
    looked: list[MessageStream] = []
    pump = MessageStream.pump

    def noted(stream: MessageStream) -> None:
        looked.append(stream)
        pump(stream)

    monkeypatch.setattr(MessageStream, "pump", noted)
    wire = frames.window_update(0, 1) * 5000
    for at in range(0, len(wire), piece):
        server.feed(wire[at : at + piece])
    given = [(stream, len(payload)) for kind, _, stream, payload in server.take() if kind == frames.DATA]
    assert sum(size for _, size in given) == 5000
    assert len(looked) == (1 if piece > 13 else 5000)
    assert len({stream for stream, _ in given}) == (1 if piece > 13 else len(records)), "each in its turn"


def test_a_producer_is_told_when_there_is_room_again() -> None:
    server = Server({Setting.INITIAL_WINDOW_SIZE: 0})
    record = server.request()
    record.responder.head(Response(200, [], -1))
    record.responder.data(bytes(HIGH + 1))
    assert "on_room" not in record.names()
    server.feed(frames.window_update(1, HIGH))
    assert "on_room" in record.names()
    assert not record.responder.full


def test_a_stream_whose_client_takes_nothing_is_ended_in_time() -> None:
    server = Server({Setting.INITIAL_WINDOW_SIZE: 0})
    record = server.request()
    record.responder.head(Response(200, [], -1))
    record.responder.data(b"x")
    for _ in range(62):
        server.feed(frames.ping(b"12345678"))
        server.server.tick()
    assert ("on_gone", "the client takes no more of the answer", "SI") in record.events
    assert frames.RST_STREAM in server.kinds()


def test_while_the_transport_is_full_nothing_is_read_and_no_data_sent() -> None:
    server = Server()
    record = server.request()
    server.wire.full = True
    record.responder.head(Response(200, [], -1))
    record.responder.data(b"x")
    assert server.kinds() == [frames.HEADERS]
    assert server.wire.held
    server.wire.full = False
    server.server.on_room()
    assert server.kinds() == [frames.DATA]
    assert not server.wire.held


def test_an_answer_before_the_end_of_the_request_ends_the_stream_without_an_error() -> None:
    server = Server()
    respond(server.request(block=POST, end=False), b"no")
    found = server.take()
    assert (found[-1][0], found[-1][3]) == (frames.RST_STREAM, bytes(4))


# -- receiving --------------------------------------------------------------------------------------------------------


def test_what_arrives_while_held_is_not_credited_and_comes_in_order() -> None:
    server = Server()
    record = server.request(block=POST, end=False)
    record.responder.hold()
    trailers = encode_field(b"x", b"y")
    server.feed(b"".join(data(1, bytes([n]) * 10_000) for n in range(5)) + frames.headers(1, trailers, True))
    assert record.names() == ["begin"]
    assert server.take() == []
    record.responder.release()
    assert record.events[1:] == [
        ("on_body", b"".join(bytes([n]) * 10_000 for n in range(5))),
        ("on_end", [(b"x", b"y")]),
    ]


def test_what_is_delivered_late_is_credited_then() -> None:
    server = Server()
    record = server.request(block=POST, end=False)
    record.responder.hold()
    server.feed(data(1, bytes(50_000)))
    assert server.take() == []
    record.responder.release()
    assert [(kind, stream) for kind, _, stream, _ in server.take()] == [(frames.WINDOW_UPDATE, 1)]


def test_an_answer_in_one_frame_is_complete() -> None:
    client = Client()
    exchange, _ = client.call()
    client.feed(frames.headers(1, OK + encode_field(b"grpc-status", b"5"), True))
    assert exchange.names() == ["on_response", "on_response_end"]


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(frames.headers(1, encode_field(b"a", b"b"), False), id="no status"),
        pytest.param(frames.headers(1, encode_field(b":status", b"103"), False) * 33, id="too many informational"),
        pytest.param(data(1, b"x"), id="a body before the status"),
        pytest.param(data(1, b"", end=True), id="the end before the status"),
        pytest.param(frames.headers(1, OK, False) + frames.headers(1, OK, False), id="headers twice"),
        pytest.param(frames.headers(1, OK, False) + frames.headers(1, OK, True), id="a status in the trailers"),
        pytest.param(frames.headers(1, OK + encode_field(b"content-length", b"1"), False) + data(1, b"xy"), id="long"),
        pytest.param(
            frames.headers(1, OK + encode_field(b"content-length", b"3"), False) + data(1, b"xy", end=True), id="short"
        ),
    ],
)
def test_a_response_that_is_none_ends_its_stream_only(wire: bytes) -> None:
    client = Client()
    exchange, call = client.call()
    other, _ = client.call()
    client.feed(wire)
    name, reason, flags, failed = exchange.events[-1]
    assert (name, flags, failed) == ("on_failed", "UPE", call)
    assert reason.startswith("bad response")
    assert list(client.client.connection.streams) == [3]
    client.feed(frames.headers(3, OK, True))
    assert other.names() == ["on_response", "on_response_end"]


def test_what_was_refused_unseen_counts_as_never_sent() -> None:
    client = Client()
    exchange, call = client.call()
    client.feed(frames.rst_stream(1, ErrorCode.REFUSED_STREAM))
    assert exchange.names() == ["on_failed"]
    assert not call.established


def test_a_backends_goaway_takes_no_new_requests_and_closes_after_the_last() -> None:
    client = Client()
    first, _ = client.call()
    second, call = client.call()
    client.feed(frames.goaway(1, ErrorCode.NO_ERROR))
    assert not client.client.room
    assert second.names() == ["on_failed"]
    assert not call.established
    assert not client.wire.closed
    client.feed(frames.headers(1, OK, True))
    assert first.names() == ["on_response", "on_response_end"]
    assert client.wire.closed
    assert client.gone == 1


def test_all_calls_fail_with_their_connection() -> None:
    client = Client()
    calls = [client.call() for _ in range(3)]
    client.client.on_lost("it broke")
    assert [exchange.events for exchange, _ in calls] == [[("on_failed", "it broke", "UC", call)] for _, call in calls]
    assert client.gone == 1


def test_a_thousand_calls_may_be_under_way_on_a_connection() -> None:
    server = Server()
    for stream in range(1, 2002, 2):
        server.feed(frames.headers(stream, GET, True))
    assert len(server.exchanges) == 1000
    assert [(kind, stream, payload) for kind, _, stream, payload in server.take()] == [
        (frames.RST_STREAM, 2001, ErrorCode.REFUSED_STREAM.to_bytes(4, "big"))
    ]


# -- time limits ------------------------------------------------------------------------------------------------------


def test_a_client_without_a_request_may_stay_an_hour() -> None:
    server = Server()
    for _ in range(719):
        server.server.tick()
    assert server.take() == []
    for _ in range(3):
        server.server.tick()
    assert server.kinds() == [frames.GOAWAY]
    assert server.ended == [("-", "")]
    assert server.wire.closed


def test_a_silent_client_is_asked_and_then_given_up() -> None:
    server = Server()
    record = server.request()
    for _ in range(14):
        server.server.tick()
    assert server.kinds() == [frames.PING]
    server.feed(frames.ping(b"nodemesh", frames.ACK))
    for _ in range(26):
        server.server.tick()
    assert record.names()[-1] == "on_gone"
    assert server.wire.closed


def test_a_client_that_does_not_read_is_given_up_in_five_minutes() -> None:
    server = Server()
    record = server.request()
    record.responder.head(Response(200, [], -1))
    server.wire.full = True
    server.take()
    for _ in range(60):
        server.server.tick()
    assert not server.wire.closed
    for _ in range(2):
        server.server.tick()
    assert record.events[-1] == ("on_gone", "the client does not read", "DC")
    assert server.wire.closed


def test_a_frame_must_be_complete_in_time() -> None:
    server = Server()
    server.feed(frame(frames.HEADERS, 4, 1, bytes(100))[:50])
    for _ in range(13):
        server.server.tick()
    assert server.wire.closed


def test_a_backends_connection_that_nobody_uses_is_closed_in_a_minute() -> None:
    client = Client()
    for _ in range(13):
        client.client.tick()
    assert client.kinds() == [frames.GOAWAY]
    assert client.wire.closed
    assert client.gone == 1


def test_a_backends_connection_that_takes_no_requests_is_closed_after_the_one_that_opened_it() -> None:
    """Not kept for a minute each, however many requests come."""
    client = Client(greeted=False)
    exchange, _ = client.call()
    client.feed(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 0}))
    assert not client.client.room
    gone = [client.gone]
    client.feed(frames.headers(1, OK, True))
    assert exchange.names()[-1] == "on_response_end"
    assert [*gone, client.gone] == [0, 1]


def test_a_backends_connection_that_takes_no_more_requests_is_closed_when_it_is_idle() -> None:
    client = Client()
    client.call()
    client.feed(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 0}))
    client.client.tick()
    gone = [client.gone]
    client.feed(frames.headers(1, OK, True))
    client.client.tick()
    client.take()
    assert [*gone, client.gone] == [0, 1]


def test_a_silent_backend_is_asked_less_often_than_grpc_servers_mind() -> None:
    client = Client()
    exchange, _ = client.call()
    for _ in range(300 // 5):
        client.client.tick()
    assert client.take() == []
    for _ in range(4):
        client.client.tick()
    assert client.kinds() == [frames.PING]
    for _ in range(15):
        client.client.tick()
    assert exchange.names() == ["on_failed"]


def test_a_backend_that_does_not_read_is_given_up_in_a_minute() -> None:
    client = Client()
    exchange, _ = client.call()
    client.wire.full = True
    for _ in range(20):
        client.wire.sent += 1
        client.client.tick()
    assert not exchange.events
    for _ in range(13):
        client.client.tick()
    assert exchange.events[0][1] == "the backend does not read"


def test_a_backend_that_never_greets_is_given_up() -> None:
    client = Client()
    client.end = client.client = Http2Client(cast(Any, client.engine), Budget(), client)
    client.client.transport = cast(Any, client.wire)
    exchange, _ = client.call()
    for _ in range(13):
        client.client.tick()
    assert exchange.names() == ["on_failed"]


# -- the end ----------------------------------------------------------------------------------------------------------


def test_draining_serves_what_crosses_the_announcement() -> None:
    server = Server()
    first = server.request()
    server.server.drain()
    (announced,) = server.take()
    assert (announced[0], announced[3][:4]) == (frames.GOAWAY, b"\x7f\xff\xff\xff")
    second = server.request(3)
    server.server.tick()
    (final,) = server.take()
    assert (final[0], final[3][:4]) == (frames.GOAWAY, (3).to_bytes(4, "big"))
    server.feed(frames.headers(5, GET, True))
    assert len(server.exchanges) == 2
    respond(first, b"")
    respond(second, b"")
    server.take()
    assert server.wire.closed
    assert server.ended == [("-", "")]


def test_exchanges_hear_that_their_client_is_gone() -> None:
    server = Server()
    records = [server.request(stream) for stream in (1, 3)]
    server.server.on_eof()
    assert [record.events[-1] for record in records] == [("on_gone", "the client closed the connection", "DC")] * 2
    assert server.ended == [("DC", "the client closed the connection")]
    assert server.wire.closed


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(frames.ping(b"12345678"), id="PING"),
        pytest.param(frames.settings({Setting.INITIAL_WINDOW_SIZE: 1}), id="SETTINGS"),
        pytest.param(data(1, b""), id="empty DATA"),
        pytest.param(frame(frames.PRIORITY, 0, 1, bytes(5)), id="PRIORITY"),
        pytest.param(frame(99, 0, 0), id="unknown frames"),
    ],
)
def test_a_flood_ends_the_connection_and_is_reported(piece: bytes) -> None:
    server = Server()
    record = server.request(block=POST, end=False)
    for _ in range(NUISANCE_LIMIT + 1):
        server.feed(piece)
        server.take()
        if server.wire.closed:
            break
    assert server.wire.closed
    assert record.events[-1][0] == "on_gone"
    ((flags, reason),) = server.ended
    assert flags == "DPE"
    assert reason.startswith("ENHANCE_YOUR_CALM")
    assert len(server.refused) == 1


def test_malformed_requests_are_a_nuisance_too() -> None:
    server = Server()
    for stream in range(1, 4 * NUISANCE_LIMIT, 2):
        server.feed(frames.headers(stream, GET + encode_field(b"connection", b"x"), True))
        server.take()
        if server.wire.closed:
            break
    assert server.wire.closed
    assert not server.exchanges


def test_a_header_list_that_unpacks_into_too_much_ends_the_connection() -> None:
    server = Server()
    bomb = b"\x40\x01a\x7f\x81\x1e" + bytes(4000) + b"\xbe" * 16_000
    server.feed(frames.headers(1, GET + bomb, True))
    assert server.wire.closed
    assert server.ended[0][0] == "DPE"
