"""Peers that try to make us work, wait or remember for nothing; and that what real peers do is not taken for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.h2 import frames
from mesh.h2.connection import MAX_CONTROL_FRAME, MAX_QUEUED, MAX_STREAMS, NUISANCE_LIMIT, ConnectionFailed, Stream
from mesh.h2.frames import ErrorCode, Setting
from mesh.h2.headers import MAX_LIST, Decoder, encode_field
from mesh.h2.messages import read_request

from .h2_ends import (
    CONNECT,
    OK,
    End,
    client_end,
    data,
    ends,
    exchange,
    failure,
    frame,
    merged,
    padded,
    server_end,
)

# -- rapid reset (CVE-2023-44487) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [False, True], ids=["answered later", "answered at once"])
@pytest.mark.parametrize("filler", [b"", b"x"], ids=["empty", "with a byte"])
def test_streams_opened_and_reset_without_waiting_for_the_answer_end_the_connection(
    answers: bool, filler: bytes
) -> None:
    server = server_end(answers=answers)
    codes = set()
    for number in range(1, 4 * NUISANCE_LIMIT, 2):
        wire = frames.headers(number, CONNECT, False) + (data(number, filler) if filler else b"")
        codes.add(failure(server, wire + frames.rst_stream(number, ErrorCode.CANCEL)))
        server.take()
        if len(codes) > 1:
            break
    assert codes == {None, ErrorCode.ENHANCE_YOUR_CALM}
    assert len(server.accepted) <= NUISANCE_LIMIT + 1


def test_a_busy_tunnel_whose_many_short_connections_are_reset_by_applications_lives() -> None:
    """Even those that carried no byte: a port scan, a health check, a benchmark of connects."""
    client, server = ends(answers=True)
    for turn in range(10 * NUISANCE_LIMIT // MAX_STREAMS):
        streams = [client.open() for _ in range(MAX_STREAMS)]
        exchange(client, server)
        for stream, accepted in zip(streams, server.accepted[-MAX_STREAMS:], strict=True):
            if turn % 2:
                client.connection.reset(stream, ErrorCode.CONNECT_ERROR)
            else:
                server.connection.reset(accepted, ErrorCode.CONNECT_ERROR)
        exchange(client, server)
    assert len(server.accepted) == 10 * NUISANCE_LIMIT
    assert not server.connection.streams


def test_requests_that_we_refuse_at_once_may_not_come_faster_than_their_answers_can_be_read() -> None:
    server = server_end()
    accept = server.on_request

    def refusing() -> Stream:
        stream = accept()
        stream.on_headers = lambda fields, end: server.connection.send_headers(stream, OK, end=True)  # type: ignore[method-assign]
        return stream

    server.on_request = refusing  # type: ignore[method-assign]
    wire = b"".join(frames.headers(number, CONNECT, True) for number in range(1, 4 * NUISANCE_LIMIT, 2))
    assert failure(server, wire) == ErrorCode.ENHANCE_YOUR_CALM
    assert len(server.accepted) <= NUISANCE_LIMIT + MAX_STREAMS + 1


def test_a_full_tunnel_may_replace_all_its_streams_in_one_flight() -> None:
    client, server = ends(answers=True)
    for _ in range(10 * NUISANCE_LIMIT // MAX_STREAMS):
        for stream in list(client.connection.streams.values()):
            client.connection.reset(stream, ErrorCode.CONNECT_ERROR)
        for _ in range(MAX_STREAMS):
            client.open()
        exchange(client, server)
    assert len(server.connection.streams) == MAX_STREAMS


def test_nuisances_are_forgiven_with_time() -> None:
    server = server_end()
    for _ in range(3):
        for _ in range(NUISANCE_LIMIT - 10):
            server.feed(frame(frames.PING, 0, 0, bytes(8)))
        server.connection.tick()


# -- floods -----------------------------------------------------------------------------------------------------------

FLOODS: dict[str, bytes] = {
    "ping": frame(frames.PING, 0, 0, bytes(8)),
    "ping answers": frame(frames.PING, frames.ACK, 0, bytes(8)),
    "settings": frames.settings({}),
    "settings acknowledgements": frames.SETTINGS_ACK,
    "goaway": frames.goaway(0, 0),
    "priority": frame(frames.PRIORITY, 0, 1, bytes(5)),
    "empty data": data(1, b""),
    "padding only": padded(1, b"", 0),
    "unknown frames": frame(200, 0, 0),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_of_frames_that_carry_nothing_ends_the_connection(what: str) -> None:
    server = server_end(streams=1)
    flood = FLOODS[what] * 500
    codes = [failure(server, flood) for _ in range(NUISANCE_LIMIT // 500 + 1)]
    assert codes[-1] == ErrorCode.ENHANCE_YOUR_CALM
    assert set(codes[:-2]) <= {None}


def test_streams_over_the_limit_are_a_nuisance_too() -> None:
    server = server_end(streams=MAX_STREAMS)
    codes = {
        failure(server, frames.headers(number, CONNECT, False)) for number in range(1001, 1003 + 2 * NUISANCE_LIMIT, 2)
    }
    assert codes == {None, ErrorCode.ENHANCE_YOUR_CALM}


def test_one_frame_of_thousands_of_settings_is_not_acted_on() -> None:
    server = server_end(streams=MAX_STREAMS)
    toggle = b"\x00\x04\x00\x00\x00\x00" + b"\x00\x04\x00\x00\xff\xff"
    assert failure(server, frame(frames.SETTINGS, 0, 0, toggle * 5000)) == ErrorCode.ENHANCE_YOUR_CALM
    assert server.saw("window") == []


def test_of_many_changes_of_the_window_in_one_frame_the_last_holds() -> None:
    """Each would have every stream that waits send a byte: 6 bytes of ours for a thousand frames."""
    server = server_end(streams=MAX_STREAMS)
    server.feed(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    setting = b"".join(b"\x00\x04" + size.to_bytes(4, "big") for size in range(1, 1001))
    server.feed(frame(frames.SETTINGS, 0, 0, setting))
    assert len(server.saw("window")) == MAX_STREAMS
    assert {stream.send_window for stream in server.accepted} == {1000}


def test_changes_of_the_window_count_as_the_work_that_they_are() -> None:
    server = server_end(streams=MAX_STREAMS)
    changes = [frames.settings({Setting.INITIAL_WINDOW_SIZE: size}) for size in range(NUISANCE_LIMIT)]
    codes = [failure(server, change) for change in changes[: 8 * NUISANCE_LIMIT // MAX_STREAMS]]
    assert codes[0] is None
    assert codes[-1] == ErrorCode.ENHANCE_YOUR_CALM


def test_continuations_without_end_are_cut_off_by_number_and_by_size() -> None:
    for part in (b"", bytes(30_000)):
        server = server_end()
        server.feed(frame(frames.HEADERS, 0, 1, CONNECT))
        codes: list[ErrorCode | None] = []
        while not codes or codes[-1] is None:
            codes.append(failure(server, frame(frames.CONTINUATION, 0, 1, part)))
        assert codes[-1] == ErrorCode.ENHANCE_YOUR_CALM
        assert len(codes) <= 33


def test_a_header_list_over_the_limit_is_refused_even_when_its_block_is_small() -> None:
    server = server_end()
    entry = b"\x40\x01a" + b"\x7f\xa1\x1e" + b"v" * 4000  # into the dynamic table, then named by one byte each
    server.feed(frames.headers(1, CONNECT + entry, False))
    assert failure(server, frames.headers(3, b"\xbe" * 100, False)) == ErrorCode.COMPRESSION_ERROR


def test_a_header_list_that_names_one_entry_over_and_over_is_refused() -> None:
    """Each request of 20 bytes would have a backend sent 60 KiB."""
    server = server_end()
    entry = b"\x60\x7f\xa1\x1e" + b"v" * 4000  # cookie
    server.feed(frames.headers(1, CONNECT + entry, False))
    server.feed(frames.headers(3, CONNECT + b"\xbe" * 2, False))
    assert failure(server, frames.headers(5, CONNECT + b"\xbe" * 3, False)) == ErrorCode.COMPRESSION_ERROR


def test_what_a_connection_remembers_of_blocks_is_bounded_by_what_they_stand_for() -> None:
    """Cookies are joined: what shares the table's memory in the list does not in the message."""
    decoder = Decoder()
    decoder.decode(b"\x60\x7f\xa1\x1e" + b"v" * 4000)
    asked = b"\x82\x86\x84" + encode_field(b":authority", b"web")
    tracemalloc.start()
    try:
        for number in range(1000):
            read_request(decoder.decode(asked + encode_field(b"x", b"%d" % number) + b"\xbe\xbe"), True)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 512 * 1024
    decoder = Decoder()
    usual = [decoder.decode(asked + encode_field(b"y", b"%d" % number)) for number in range(64)]
    assert all(decoder.decode(asked + encode_field(b"y", b"%d" % n)) is fields for n, fields in enumerate(usual))


def test_a_header_list_at_the_limit_is_read() -> None:
    server = server_end()
    room = MAX_LIST - sum(len(n) + len(v) + 32 for n, v in [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")])
    server.feed(frames.headers(1, CONNECT + encode_field(b"a", b"v" * (room - 33)), False))
    assert failure(server, frames.headers(3, CONNECT + encode_field(b"a", b"v" * (room - 32)), False)) is not None
    assert len(server.saw("headers")) == 1


def test_what_a_failure_says_does_not_repeat_the_peers_bytes_at_length() -> None:
    server = server_end()
    with pytest.raises(ConnectionFailed) as failed:
        server.feed(frames.headers(1, b"\x00\x7f" + b"\xff" * 60_000, False))
    assert len(str(failed.value)) < 200


@pytest.mark.parametrize(
    "ask",
    [
        lambda n: frames.headers(n, CONNECT, True),
        lambda n: frames.headers(n, CONNECT, False) + frames.rst_stream(n, 8),
        lambda n: frame(frames.PING, 0, 0, bytes(8)),
    ],
    ids=["requests", "resets", "pings"],
)
def test_a_peer_that_does_not_read_its_answers_is_cut_off_before_they_fill_the_memory(
    ask: Callable[[int], bytes],
) -> None:
    server = server_end()
    refuse = server.on_request

    def refusing() -> Stream:
        stream = refuse()
        stream.on_headers = lambda fields, end: server.connection.send_headers(stream, OK, end=True)  # type: ignore[method-assign]
        return stream

    server.on_request = refusing  # type: ignore[method-assign]
    code, number = None, 1
    while code is None:
        code = failure(server, b"".join(ask(n) for n in range(number, number + 200, 2)))
        server.connection.tick()
        number += 200
        assert len(server.connection.out) < MAX_QUEUED + 1000
    assert code == ErrorCode.ENHANCE_YOUR_CALM


# -- any bytes at all -------------------------------------------------------------------------------------------------

plausible = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 9, 12, 0x20, 0x24, 0x2D]) | st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 9]) | st.integers(0, 2**31 - 1),
    st.binary(max_size=40) | st.sampled_from([CONNECT, OK, bytes(4), bytes(8), b"\x00\x00\x10\x00", bytes(300)]),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(plausible | st.binary(max_size=30), max_size=12), st.booleans(), st.integers(1, 50))
def test_any_bytes_end_the_connection_or_are_understood_and_nothing_is_kept_but_one_frame(
    parts: list[bytes], client: bool, size: int
) -> None:
    end = client_end(streams=3)[0] if client else server_end(streams=3)
    wire = b"".join(parts)
    for at in range(0, len(wire), size):
        try:
            end.feed(wire[at : at + size])
        except ConnectionFailed as failed:
            assert failed.code in ErrorCode  # noqa: PT017 (whether it fails depends on the bytes)
            assert end.connection.closing
            return
        assert len(end.rest) < MAX_CONTROL_FRAME + 9
        assert len(end.connection.streams) <= MAX_STREAMS


@settings(deadline=None, max_examples=200)
@given(st.lists(plausible, max_size=12), st.booleans(), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_however_a_stream_of_bytes_is_cut_the_same_things_happen(
    parts: list[bytes], client: bool, sizes: list[int]
) -> None:
    wire = b"".join(parts)
    whole, cut, bytewise = (client_end(streams=3)[0] if client else server_end(streams=3) for _ in range(3))
    outcome = failure(whole, wire)

    def feed(end: End, sizes: list[int]) -> ErrorCode | None:
        at = turn = 0
        while at < len(wire):
            size = sizes[turn % len(sizes)]
            if (code := failure(end, wire[at : at + size])) is not None:
                return code
            at += size
            turn += 1
        return None

    for end, how in ((cut, sizes), (bytewise, [1])):
        assert feed(end, how) == outcome
        assert merged(end.events) == merged(whole.events)
        assert end.connection.streams.keys() == whole.connection.streams.keys()
        assert end.connection.send_window == whole.connection.send_window


@given(st.binary(max_size=60))
def test_no_greeting_but_the_preface_is_taken_for_one(wire: bytes) -> None:
    server = End(client=False)
    if wire[:24] != frames.PREFACE[: len(wire)]:
        assert failure(server, wire) == ErrorCode.PROTOCOL_ERROR


def test_a_setting_of_an_unlimited_peer_does_not_make_us_open_more_than_we_want() -> None:
    client = End(client=True)
    client.feed(frames.settings({Setting.MAX_CONCURRENT_STREAMS: 2**32 - 1, Setting.MAX_FRAME_SIZE: 2**24 - 1}))
    assert client.connection.room == MAX_STREAMS
    assert client.connection.peer_frame_size == 1_048_576
