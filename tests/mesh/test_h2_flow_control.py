"""Windows: what may be sent, what is credited, and whose stall stops whom."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.h2 import frames
from mesh.h2.connection import CONNECTION_WINDOW, MAX_FRAME, MAX_STREAM_WINDOW, Budget
from mesh.h2.frames import DEFAULT_WINDOW, ErrorCode, Setting

from .h2_ends import (
    CONNECT,
    End,
    Recorder,
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


def pump(sender: End, stream: Recorder, receiver: End, size: int) -> int:
    """Send up to `size` bytes as the windows open; return how many went."""
    left = bytes(size)
    while left:
        before = len(left)
        left = sender.send(stream, left)
        exchange(sender, receiver)
        if len(left) == before:
            break
    return size - len(left)


def joined(budget: Budget | None = None, streams: int = 1) -> tuple[End, End, list[Recorder]]:
    """Both ends with that many streams open and answered."""
    client, server = ends(budget=budget, answers=True)
    opened = [client.open() for _ in range(streams)]
    exchange(client, server)
    return client, server, opened


def test_a_stalled_stream_takes_its_window_and_no_more_and_never_stops_the_others() -> None:
    client, server, (stalled, *others) = joined(streams=20)
    server.accepted[0].stalled = True
    assert pump(client, stalled, server, 10_000_000) == DEFAULT_WINDOW
    for stream in others:
        assert pump(client, stream, server, 3_000_000) == 3_000_000
    server.accepted[0].deliver()
    exchange(client, server)
    assert client.saw("window").count(("window", 1)) == 1
    assert pump(client, stalled, server, 100_000) >= DEFAULT_WINDOW


def test_even_a_hundred_stalled_streams_leave_the_connection_open() -> None:
    client, server, opened = joined(streams=100)
    for accepted in server.accepted[:99]:
        accepted.stalled = True
    for stream in opened[:99]:
        assert pump(client, stream, server, 1_000_000) == DEFAULT_WINDOW
    assert pump(client, opened[99], server, 50_000_000) == 50_000_000


def test_a_stream_that_drains_grows_to_the_largest_window_and_not_beyond() -> None:
    client, server, (stream,) = joined()
    pump(client, stream, server, 100_000_000)
    accepted = server.accepted[0]
    assert MAX_STREAM_WINDOW // 2 < accepted.receive_size <= MAX_STREAM_WINDOW
    assert accepted.receive_size == DEFAULT_WINDOW + accepted.granted


def test_a_stream_grows_also_where_its_frames_arrive_in_parts() -> None:
    client, server, (stream,) = joined()
    for _ in range(3):
        client.send(stream, bytes(min(stream.send_window, 65_000)))
        sent = client.take()
        for at in range(0, len(sent), 10_000):
            server.feed(sent[at : at + 10_000])
        exchange(client, server)
    assert server.accepted[0].receive_size > DEFAULT_WINDOW


def test_streams_grow_only_while_the_budget_lasts_and_give_it_back_when_they_end() -> None:
    budget = Budget(DEFAULT_WINDOW * 3)
    client, server, (one, two) = joined(budget, streams=2)
    pump(client, one, server, 5_000_000)
    pump(client, two, server, 5_000_000)
    assert [stream.granted for stream in server.accepted] == [DEFAULT_WINDOW * 3, 0]
    assert budget.left == 0
    client.connection.reset(one, ErrorCode.CANCEL)
    exchange(client, server)
    assert budget.left == DEFAULT_WINDOW * 3
    pump(client, two, server, 5_000_000)
    client.connection.end(two)
    server.connection.end(server.accepted[1])
    exchange(client, server)
    assert budget.left == DEFAULT_WINDOW * 3


def test_what_was_delivered_before_the_end_needs_no_credit() -> None:
    client, server, (stream,) = joined()
    server.accepted[0].stalled = True
    client.send(stream, bytes(50_000))
    client.connection.end(stream)
    exchange(client, server)
    server.accepted[0].deliver()
    assert server.take() == b""


def test_the_connection_is_credited_for_data_that_nobody_takes() -> None:
    server = server_end(streams=1)
    server.connection.reset(server.accepted[0], ErrorCode.CANCEL)
    for _ in range(3 * CONNECTION_WINDOW // 16_384):
        server.feed(data(1, bytes(16_384)))
    credited = sum(
        int.from_bytes(payload, "big")
        for kind, _, stream, payload in sent(server.take())
        if kind == frames.WINDOW_UPDATE and not stream
    )
    assert credited >= 2 * CONNECTION_WINDOW


@pytest.mark.parametrize("cut", [0, 9, 10, 30])
@pytest.mark.parametrize("padding", [None, 255], ids=["plain", "padded"])
def test_more_than_a_streams_window_is_refused_however_the_frame_is_cut(cut: int, padding: int | None) -> None:
    wire = data(1, bytes(16_000)) if padding is None else padded(1, bytes(15_744), padding)
    server = server_end(streams=1)
    server.accepted[0].stalled = True
    for _ in range(4):
        server.feed(wire[:cut])
        server.feed(wire[cut:])
    assert (failure(server, wire[:cut]) or failure(server, wire[cut:])) == ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("gone", [False, True], ids=["live", "gone"])
def test_more_than_the_connections_window_is_refused(gone: bool) -> None:
    server = server_end(streams=1)
    stream = server.accepted[0]
    stream.receive_window = stream.receive_size = 2 * CONNECTION_WINDOW
    server.connection._credit = lambda: None  # type: ignore[method-assign]
    if gone:
        server.connection.reset(stream, ErrorCode.CANCEL)
    for _ in range(CONNECTION_WINDOW // MAX_FRAME):
        server.feed(data(1, bytes(MAX_FRAME)))
    assert failure(server, data(1, b"x")) == ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("stream", [1, 3], ids=["live", "gone"])
def test_a_frame_over_the_announced_size_is_refused_at_its_head(stream: int) -> None:
    server = server_end(streams=2)
    server.connection.reset(server.accepted[1], ErrorCode.CANCEL)
    server.accepted[0].receive_window = 2 * MAX_FRAME
    assert failure(server, data(stream, bytes(MAX_FRAME + 1))[:9]) == ErrorCode.FRAME_SIZE_ERROR


def test_a_frame_of_the_announced_size_is_handed_on_as_it_arrives() -> None:
    server = server_end(streams=1)
    server.accepted[0].receive_window = server.accepted[0].receive_size = MAX_FRAME
    wire = data(1, bytes(MAX_FRAME), end=True)
    for at in range(0, len(wire), 100_000):
        server.feed(wire[at : at + 100_000])
        assert len(server.rest) < 9, "nothing of it is kept"
    assert len(server.saw("data")) == 11
    assert server.saw("end") == [("end", 1)]


def test_a_stream_reset_in_the_middle_of_a_frame_swallows_the_rest_of_it() -> None:
    server = server_end(streams=2)
    wire = data(1, bytes(1000), end=True)
    server.feed(wire[:300])
    server.connection.reset(server.accepted[0], ErrorCode.CANCEL)
    server.feed(wire[300:] + data(3, b"next"))
    assert len(server.accepted[0].got) == 291
    assert server.saw("end") == []
    assert server.accepted[1].got == b"next"


def test_a_window_that_settings_took_below_zero_must_be_earned_back() -> None:
    client, server, (stream,) = joined()
    server.accepted[0].stalled = True
    assert pump(client, stream, server, 60_000) == 60_000
    server.connection.out.append(frames.settings({Setting.INITIAL_WINDOW_SIZE: 10_000}))
    exchange(client, server)
    assert stream.send_window == 10_000 - 60_000
    assert client.send(stream, b"x") == b"x"
    server.connection.out.append(frames.window_update(1, 50_000))
    exchange(client, server)
    assert client.saw("window") == [], "it is 0 now"
    server.connection.out.append(frames.window_update(1, 1))
    exchange(client, server)
    assert client.saw("window") == [("window", 1)]
    assert client.send(stream, b"xy") == b"y"


def test_the_owner_hears_of_the_connections_window_when_it_was_used_up() -> None:
    client, _ = client_end(streams=2)
    one, two = client.connection.streams.values()
    client.send(one, bytes(40_000))
    client.send(two, bytes(40_000))
    assert client.connection.send_window == 0
    client.feed(frames.window_update(0, 5))
    client.feed(frames.window_update(0, 5))
    assert client.saw("window") == [("window", 0)]


def test_the_windows_last_byte_may_be_granted() -> None:
    client, (stream,) = client_end(streams=1)
    client.feed(frames.window_update(1, frames.MAX_WINDOW - DEFAULT_WINDOW))
    client.feed(frames.window_update(0, frames.MAX_WINDOW - DEFAULT_WINDOW))
    assert stream.send_window == client.connection.send_window == frames.MAX_WINDOW


class Watch:
    """A peer's bookkeeping of what it granted, kept apart from ours and by other means: the frames themselves."""

    def __init__(self) -> None:
        self.connection = DEFAULT_WINDOW
        self.streams: dict[int, int] = {}

    def granted(self, wire: bytes) -> None:
        """`wire` is what the receiver sent."""
        for kind, _, stream, payload in sent(wire):
            if kind == frames.WINDOW_UPDATE:
                size = int.from_bytes(payload, "big")
                if stream:
                    self.streams[stream] = self.streams.get(stream, DEFAULT_WINDOW) + size
                else:
                    self.connection += size
                assert max(self.connection, *self.streams.values(), 0) <= frames.MAX_WINDOW

    def used(self, wire: bytes) -> None:
        """`wire` is what the sender sent."""
        for kind, _, stream, payload in sent(wire):
            if kind == frames.DATA:
                self.connection -= len(payload)
                self.streams[stream] = self.streams.get(stream, DEFAULT_WINDOW) - len(payload)
                assert self.connection >= 0
                assert self.streams[stream] >= 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 3), st.integers(1, 300_000)),
        st.tuples(st.just("stall"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("deliver"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("reset"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("carry"), st.just(0), st.booleans()),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps, st.integers(0, 10).map(lambda n: n * DEFAULT_WINDOW))
def test_no_window_is_ever_overrun_and_every_delivered_byte_is_credited(
    script: list[tuple[str, int, int]], budget_size: int
) -> None:
    budget = Budget(budget_size)
    client = End(client=True, budget=budget)
    server = End(client=False, budget=budget, answers=True)
    watch = Watch()

    def carry() -> None:
        while True:
            forth, back = client.take(), server.take()
            if not forth and not back:
                return
            watch.used(forth)
            watch.granted(back)
            if forth:
                server.feed(forth)
            if back:
                client.feed(back)

    carry()
    streams = [client.open() for _ in range(4)]
    carry()
    for what, index, argument in script:
        stream, accepted = streams[index], server.accepted[index]
        if what == "send" and not stream.ended:
            client.send(stream, bytes(argument))
        elif what == "stall":
            accepted.stalled = bool(argument)
        elif what == "deliver" and not accepted.ended:
            accepted.deliver()
        elif what == "reset":
            end, mine = (server, accepted) if argument else (client, stream)
            end.connection.reset(mine, ErrorCode.CANCEL)
        elif what == "carry":
            carry()
    for accepted in server.accepted:
        accepted.stalled = False
        accepted.deliver()
    carry()
    for stream, accepted in zip(streams, server.accepted, strict=True):
        if not stream.ended:
            # all is delivered: what is not credited is under half the window, so that the sender is never stuck
            assert accepted.receive_size - stream.send_window < accepted.receive_size / 2
    assert client.connection.send_window >= CONNECTION_WINDOW * 3 // 4
    assert budget.left == budget_size - sum(stream.granted for stream in server.accepted)
    client.connection.fail(0)
    server.connection.fail(0)
    assert budget.left == budget_size


def test_the_greeting_opens_the_connections_window() -> None:
    server = End(client=False)
    assert sent(server.take())[-1] == (
        frames.WINDOW_UPDATE, 0, 0, (CONNECTION_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big")
    )  # fmt: skip


def test_a_new_stream_starts_with_the_window_the_peer_announced() -> None:
    client = End(client=True)
    client.feed(frames.settings({Setting.INITIAL_WINDOW_SIZE: 7}))
    assert client.open().send_window == 7
    server = End(client=False)
    server.feed(frames.PREFACE + frames.settings({Setting.INITIAL_WINDOW_SIZE: 9}) + frames.headers(1, CONNECT, False))
    assert server.accepted[0].send_window == 9


def test_no_padding_at_all_is_padding_too() -> None:
    server = server_end(streams=1)
    server.feed(frame(frames.DATA, frames.PADDED, 1, b"\x00abc"))
    assert server.accepted[0].got == b"abc"
