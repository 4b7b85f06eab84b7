"""The life of streams on one HTTP/2 connection, seen from both ends."""

from __future__ import annotations

import pytest

from mesh.h2 import frames
from mesh.h2.connection import MAX_STREAMS, ConnectionFailed
from mesh.h2.frames import ErrorCode, Setting

from .h2_ends import (
    CONNECT,
    CONNECT_FIELDS,
    OK,
    End,
    client_end,
    data,
    ends,
    exchange,
    failure,
    frame,
    padded,
    sent,
    server_end,
)


def test_a_request_and_its_answer_cross_and_both_sides_end() -> None:
    client, server = ends(answers=True)
    stream = client.open()
    exchange(client, server)
    client.send(stream, b"question")
    client.connection.end(stream)
    exchange(client, server)
    (accepted,) = server.accepted
    server.send(accepted, b"answer")
    server.connection.end(accepted)
    exchange(client, server)

    assert server.events[1:] == [("headers", 1, CONNECT_FIELDS, False), ("data", 1, b"question"), ("end", 1)]
    assert client.events[1:] == [("headers", 1, [(b":status", b"200")], False), ("data", 1, b"answer"), ("end", 1)]
    assert client.connection.streams == server.connection.streams == {}


def test_a_response_that_ends_with_its_head_ends_the_stream_once_we_have_ended_too() -> None:
    client, server = ends()
    stream = client.open()
    exchange(client, server)
    server.connection.send_headers(server.accepted[0], OK, end=True)
    exchange(client, server)
    assert client.saw("headers") == [("headers", 1, [(b":status", b"200")], True)]
    assert client.saw("end") == []
    assert client.connection.streams
    client.connection.end(stream)
    exchange(client, server)
    assert client.connection.streams == server.connection.streams == {}


def test_trailers_end_a_stream_that_we_have_ended() -> None:
    client, server = ends(answers=True)
    stream = client.open()
    client.connection.end(stream)
    exchange(client, server)
    server.connection.send_headers(server.accepted[0], OK, end=True)
    exchange(client, server)
    assert [event[-1] for event in client.saw("headers")] == [False, True]
    assert client.connection.streams == server.connection.streams == {}


def test_a_reset_is_told_to_the_peer_only() -> None:
    client, server = ends()
    stream, other = client.open(), client.open()
    exchange(client, server)
    client.connection.reset(stream, ErrorCode.CANCEL)
    client.connection.reset(stream, ErrorCode.CANCEL)
    assert len(sent(b"".join(client.connection.out))) == 1, "a second reset says nothing"
    exchange(client, server)
    assert server.saw("reset") == [("reset", 1, ErrorCode.CANCEL)]
    assert client.saw("reset") == []
    assert list(client.connection.streams.values()) == [other]


def test_frames_that_were_on_their_way_when_a_stream_was_reset_are_dropped() -> None:
    client, server = ends(answers=True)
    stream = client.open()
    exchange(client, server)
    client.send(stream, b"late")
    client.connection.end(stream)
    late = client.take()
    server.connection.reset(server.accepted[0], ErrorCode.CANCEL)
    server.feed(late)
    server.feed(padded(1, b"later", 3) + frames.window_update(1, 5) + frames.rst_stream(1, 0))
    server.feed(frames.headers(1, OK, True))
    assert server.saw("data") == server.saw("end") == server.saw("reset") == []


def test_a_stream_that_its_owner_resets_while_data_arrives_hears_no_more_however_the_frame_was_cut() -> None:
    wire = data(1, b"abcdef", end=True)
    for cut in range(len(wire) + 1):
        server = server_end(streams=1)
        (stream,) = server.accepted
        calls: list[bytes] = []

        def resets(payload: memoryview, server: End = server, calls: list[bytes] = calls) -> int:
            calls.append(bytes(payload))
            server.connection.reset(server.accepted[0], ErrorCode.CANCEL)
            return len(payload)

        stream.on_data = resets  # type: ignore[method-assign,assignment]
        server.feed(wire[:cut])
        server.feed(wire[cut:])
        assert len(calls) == 1
        assert server.saw("end") == [], f"cut at {cut}"


def test_settings_make_an_end_ready_once() -> None:
    client, server = ends()
    server.connection.out.append(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 7}))
    exchange(client, server)
    assert client.saw("ready") == [("ready",)]
    assert client.connection.room == 7


def test_no_stream_may_be_opened_before_the_peers_settings_or_over_its_limit_or_ours() -> None:
    client = End(client=True)
    assert client.connection.room == 0
    client.feed(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 1_000_000}))
    assert client.connection.room == MAX_STREAMS
    stream = client.open()
    assert client.connection.room == MAX_STREAMS - 1
    client.connection.reset(stream, ErrorCode.CANCEL)
    client.connection._next_stream = frames.MAX_WINDOW
    assert client.connection.room == 0, "stream numbers are used up"


def test_streams_over_the_limit_are_refused_and_the_rest_go_on() -> None:
    server = server_end(streams=MAX_STREAMS)
    last = 1 + 2 * MAX_STREAMS
    server.feed(frames.headers(last, CONNECT, False) + frames.rst_stream(last, 8) + data(1, b"x"))
    assert sent(server.take()) == [(frames.RST_STREAM, 0, last, ErrorCode.REFUSED_STREAM.to_bytes(4, "big"))]
    assert server.saw("data") == [("data", 1, b"x")]


def test_unknown_frames_and_settings_are_ignored() -> None:
    server = server_end(streams=1)
    server.feed(frame(0xBE, 0xFF, 12345, bytes(100_000)) + frame(frames.SETTINGS, 0, 0, b"\xab\xcd\x00\x00\x00\x01"))
    server.feed(data(1, b"x"))
    assert server.saw("data") == [("data", 1, b"x")]


def test_priority_is_ignored_wherever_it_stands() -> None:
    server = server_end()
    head = frames.head((5 + len(CONNECT)) << 8 | frames.HEADERS, frames.END_HEADERS | frames.WITH_PRIORITY, 1)
    server.feed(head + bytes(5) + CONNECT + frame(frames.PRIORITY, 0, 99, bytes(5)))
    assert server.saw("headers") == [("headers", 1, CONNECT_FIELDS, False)]


def test_a_padded_request_with_continuations_is_read_as_if_it_were_whole() -> None:
    server = server_end()
    block = CONNECT[:4]
    server.feed(frame(frames.HEADERS, frames.PADDED, 1, b"\x03" + block + bytes(3)))
    server.feed(frame(frames.CONTINUATION, 0, 1, CONNECT[4:9]) + frame(frames.CONTINUATION, 0, 1))
    assert server.saw("headers") == []
    server.feed(frame(frames.CONTINUATION, frames.END_HEADERS, 1, CONNECT[9:]))
    assert server.saw("headers") == [("headers", 1, CONNECT_FIELDS, False)]


def test_a_block_over_the_peers_frame_size_goes_out_with_continuations() -> None:
    client, server = ends()
    stream = client.open()
    block = CONNECT + b"".join(b"\x00\x01a\x7f\x19" + b"v" * 152 for _ in range(250))
    exchange(client, server)
    server.connection.peer_frame_size = 16_384
    server.connection.send_headers(server.accepted[0], block)
    kinds = [kind for kind, *_ in sent(b"".join(server.connection.out))]
    assert kinds == [frames.HEADERS, frames.CONTINUATION, frames.CONTINUATION]
    exchange(client, server)
    (_, number, fields, end) = client.saw("headers")[0]
    assert (number, len(fields), end) == (stream.stream_id, 252, False)


def test_a_ping_is_answered_and_clears_what_was_outstanding() -> None:
    client, server = ends()
    client.connection.ping()
    assert client.connection.ping_outstanding
    exchange(client, server)
    assert not client.connection.ping_outstanding


def test_data_over_the_peers_frame_size_is_cut_and_arrives_whole() -> None:
    client, server = ends()
    stream = client.open()
    exchange(client, server)
    client.connection.peer_frame_size = 16_384
    payload = bytes(range(256)) * 200
    assert client.send(stream, payload) == b""
    assert [len(part) for kind, _, _, part in sent(b"".join(client.connection.out)) if not kind] == [16384] * 3 + [2048]
    exchange(client, server)
    assert server.accepted[0].got == payload


def test_padding_is_no_payload_and_is_credited() -> None:
    server = server_end(streams=1)
    for _ in range(1000):
        server.feed(padded(1, b"ab", 250))
    server.feed(padded(1, b"", 10, end=True))
    assert server.accepted[0].got == b"ab" * 1000
    assert server.saw("end") == [("end", 1)]


# -- GOAWAY -----------------------------------------------------------------------------------------------------------


def test_after_our_goaway_live_streams_go_on_and_new_ones_are_refused() -> None:
    client, server = ends()
    stream = client.open()
    exchange(client, server)
    server.connection.goaway()
    server.connection.goaway()
    late = client.open()
    exchange(client, server)
    assert client.saw("goaway") == [("goaway", ErrorCode.NO_ERROR)]
    assert client.saw("reset") == [("reset", late.stream_id, ErrorCode.REFUSED_STREAM)]
    assert client.connection.room == 0
    client.send(stream, b"still")
    exchange(client, server)
    assert server.saw("data") == [("data", 1, b"still")]


@pytest.mark.parametrize(
    "afterwards",
    [frames.rst_stream(3, 8), data(3, b"early"), frames.window_update(3, 1), frames.headers(3, OK, True), data(3, b"")],
    ids=["reset", "data", "window", "trailers", "empty"],
)
def test_what_a_client_sends_on_a_stream_that_crossed_our_goaway_does_not_harm_the_others(afterwards: bytes) -> None:
    server = server_end(streams=1)
    server.connection.goaway()
    server.take()
    server.feed(frames.headers(3, CONNECT, False) + afterwards + data(1, b"still"))
    assert server.saw("data") == [("data", 1, b"still")]
    assert (frames.RST_STREAM, 0, 3, ErrorCode.REFUSED_STREAM.to_bytes(4, "big")) in sent(server.take())
    assert len(server.accepted) == 1


def test_a_second_goaway_never_names_a_later_stream_than_the_first() -> None:
    server = server_end(streams=1)
    server.connection.goaway()
    server.feed(frames.headers(3, CONNECT, False))
    assert failure(server, frames.window_update(0, 0)) == ErrorCode.PROTOCOL_ERROR
    goaways = [payload[:4] for kind, _, _, payload in sent(server.take()) if kind == frames.GOAWAY]
    assert goaways == [(1).to_bytes(4, "big")] * 2


def test_the_peers_goaway_resets_only_the_streams_it_will_not_serve() -> None:
    client, (one, two) = client_end(streams=2)
    client.feed(frames.goaway(1, ErrorCode.NO_ERROR, b"why") + frames.headers(1, OK, False))
    assert client.events[1:] == [
        ("reset", 3, ErrorCode.REFUSED_STREAM),
        ("goaway", ErrorCode.NO_ERROR),
        ("headers", 1, [(b":status", b"200")], False),
    ]
    assert list(client.connection.streams.values()) == [one]
    assert two.ended


def test_a_stream_may_reset_its_sibling_when_both_are_refused() -> None:
    client, (one, two) = client_end(streams=2)
    one.on_reset = lambda code: client.connection.reset(two, ErrorCode.CANCEL)  # type: ignore[method-assign]
    client.feed(frames.goaway(0, ErrorCode.NO_ERROR))
    assert client.saw("reset") == []
    assert client.connection.streams == {}


def test_a_clients_goaway_lets_its_streams_go_on() -> None:
    server = server_end(streams=1)
    server.feed(frames.goaway(0, ErrorCode.NO_ERROR) + data(1, b"x") + frames.headers(3, CONNECT, False))
    assert server.saw("goaway")
    assert server.saw("data") == [("data", 1, b"x")]
    assert server.connection.closing
    assert len(server.accepted) == 1


def test_the_transports_end_resets_every_stream_once_and_returns_what_they_were_granted() -> None:
    client, server = ends()
    left = client.budget.left
    streams = [client.open() for _ in range(5)]
    exchange(client, server)
    streams[0].granted = 100
    client.budget.left -= 100
    streams[1].on_reset = lambda code: client.connection.reset(streams[2], ErrorCode.CANCEL)  # type: ignore[method-assign]
    client.connection.fail(ErrorCode.CONNECT_ERROR)
    client.connection.fail(ErrorCode.CONNECT_ERROR)
    assert [event[1] for event in client.saw("reset")] == [1, 7, 9]
    assert client.budget.left == left
    assert client.connection.room == 0


# -- what ends the connection -----------------------------------------------------------------------------------------

_BLOCK_OPEN = frames.head(4 << 8 | frames.HEADERS, 0, 3) + CONNECT[:4]

WRONG: dict[str, tuple[bytes, ErrorCode]] = {
    "data on an idle stream": (data(3, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on stream 0": (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data after the end": (data(1, b"", end=True) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "empty data after the end": (data(1, b"x", end=True) + data(1, b""), ErrorCode.STREAM_CLOSED),
    "headers after the end": (data(1, b"", end=True) + frames.headers(1, OK, True), ErrorCode.STREAM_CLOSED),
    "a stream of even number": (frames.headers(2, CONNECT, False), ErrorCode.PROTOCOL_ERROR),
    "continuation of nothing": (frame(frames.CONTINUATION, 4, 1), ErrorCode.PROTOCOL_ERROR),
    "continuation of another": (_BLOCK_OPEN + frame(frames.CONTINUATION, 4, 1), ErrorCode.PROTOCOL_ERROR),
    "data in a block": (_BLOCK_OPEN + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "unknown frame in a block": (_BLOCK_OPEN + frame(99, 0, 0), ErrorCode.PROTOCOL_ERROR),
    "priority longer than headers": (frame(frames.HEADERS, 0x24, 3, b"abc"), ErrorCode.PROTOCOL_ERROR),
    "padded headers without payload": (frame(frames.HEADERS, 0xC, 3), ErrorCode.PROTOCOL_ERROR),
    "padded data without payload": (frame(frames.DATA, 0x8, 1) + bytes(9), ErrorCode.PROTOCOL_ERROR),
    "all padding and more": (frame(frames.DATA, 0x8, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "a block that does not decode": (frame(frames.HEADERS, 4, 3, b"\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "a control frame of 70,000 bytes": (frames.head(70_000 << 8 | frames.HEADERS, 4, 3), ErrorCode.FRAME_SIZE_ERROR),
    "an acknowledgement with settings": (frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "a priority of another size": (frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "a push": (frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "a window over 2^31": (frames.window_update(0, frames.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "a stream's window over 2^31": (frames.window_update(1, frames.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "a window of an idle stream": (frames.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
    "a reset of an idle stream": (frames.rst_stream(9, 8), ErrorCode.PROTOCOL_ERROR),
    "an initial window over 2^31": (
        frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "an initial window that lifts a stream's over 2^31": (
        frames.window_update(1, 2**31 - 1 - 65_535) + frames.settings({Setting.INITIAL_WINDOW_SIZE: 65_536}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "a frame size too small": (frames.settings({Setting.MAX_FRAME_SIZE: 16_383}), ErrorCode.PROTOCOL_ERROR),
    "a frame size too large": (frames.settings({Setting.MAX_FRAME_SIZE: 2**24}), ErrorCode.PROTOCOL_ERROR),
    "push set to 2": (frames.settings({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
}


def feed(end: End, wire: bytes, size: int) -> None:
    for at in range(0, len(wire), size):
        end.feed(wire[at : at + size])


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("what", WRONG)
def test_a_broken_rule_ends_the_connection_with_its_code(what: str, bytewise: bool) -> None:
    wire, code = WRONG[what]
    server = server_end(streams=1)
    with pytest.raises(ConnectionFailed) as failed:
        feed(server, wire, 1 if bytewise else len(wire))
    assert failed.value.code == code
    assert sent(server.take())[-1][0] == frames.GOAWAY
    assert server.connection.closing


@pytest.mark.parametrize(
    "first",
    [
        frame(frames.PING, 0, 0, bytes(8)),
        data(1, b"x"),
        data(1, b""),
        frames.SETTINGS_ACK,
        frames.headers(1, CONNECT, False),
    ],
    ids=["ping", "data", "empty", "acknowledgement", "headers"],
)
def test_nothing_may_come_before_settings(first: bytes) -> None:
    server = End(client=False)
    server.feed(frames.PREFACE)
    assert failure(server, first) == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("wire", [b"GET / HTTP/1.1\r\n", frames.PREFACE[:-1] + b"x", b"\x16\x03\x01"])
def test_a_client_that_does_not_speak_http2_is_turned_away_at_the_first_wrong_byte(wire: bytes) -> None:
    server = End(client=False)
    assert failure(server, wire) == ErrorCode.PROTOCOL_ERROR


def test_a_whole_conversation_may_arrive_byte_by_byte() -> None:
    wire = frames.PREFACE + frames.settings({}) + frames.headers(1, CONNECT, False) + data(1, b"abc", end=True)
    server = End(client=False)
    feed(server, wire, 1)
    assert server.accepted[0].got == b"abc"
    assert server.saw("end") == [("end", 1)]


def test_a_server_cannot_open_streams_or_answer_what_was_not_asked() -> None:
    for wire in (frames.headers(2, OK, False), frames.headers(3, OK, False), data(3, b"x"), frames.rst_stream(2, 0)):
        client, _ = client_end(streams=1)
        assert failure(client, wire) == ErrorCode.PROTOCOL_ERROR
