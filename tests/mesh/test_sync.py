"""The node link's framing: however the bytes arrive, the same messages come out; too much is refused early."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.codec import DecodeError
from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Enrolment, MeshConfig, Party
from mesh.sync import (
    MAX_FRAME,
    MAX_FRAME_BEFORE_HELLO,
    Ack,
    Enrol,
    Enrolled,
    FromController,
    FromNode,
    Hello,
    Join,
    Joined,
    Nack,
    Ping,
    Pong,
    Reader,
    Refused,
    Report,
    Sign,
    Signed,
    Trust,
    Update,
    Welcome,
    Withdraw,
    frame,
)

from .samples import peer_auths, policies, routes, services, traffic, tuples, workloads

texts = st.text(max_size=12)
blobs = st.binary(max_size=40)
numbers = st.integers(0, 2**32)
enrolments = st.builds(Enrolment, texts, texts, texts, st.dictionaries(texts, texts, max_size=2), tuples(texts))
parties = st.builds(Party, texts, texts, texts, texts, texts)
edges = st.builds(
    EdgeReport,
    st.builds(EdgeKey, texts, parties, parties, texts, texts, texts),
    st.builds(EdgeCounts, numbers, numbers, numbers, numbers, numbers, numbers),
)
from_node = st.one_of(
    st.builds(Join, texts, texts, blobs),
    st.builds(Hello, numbers, texts, texts, numbers, tuples(enrolments), tuples(texts)),
    st.builds(Ack, numbers),
    st.builds(Nack, numbers, texts),
    st.builds(Enrol, numbers, enrolments),
    st.builds(Withdraw, texts),
    st.builds(Sign, numbers, texts, blobs),
    st.builds(Report, tuples(edges)),
    st.just(Ping()),
    st.just(Pong()),
)
from_controller = st.one_of(
    st.builds(Joined, blobs, blobs, texts),
    st.builds(Welcome, numbers, texts, st.dictionaries(texts, texts, max_size=2)),
    st.builds(
        Update,
        texts,
        numbers,
        numbers,
        st.booleans(),
        st.builds(MeshConfig, ranges=tuples(texts)),
        tuples(workloads),
        tuples(services),
        tuples(texts),
        st.booleans(),
        tuples(policies),
        tuples(peer_auths),
        tuples(routes),
        tuples(traffic),
    ),
    st.builds(Enrolled, numbers),
    st.builds(Signed, numbers, blobs, st.floats(0, 4e9), st.floats(0, 4e9)),
    st.builds(Refused, numbers, texts),
    st.builds(Trust, blobs),
    st.just(Ping()),
    st.just(Pong()),
)


@pytest.mark.parametrize(("union", "strategy"), [(FromNode, from_node), (FromController, from_controller)])
@given(data=st.data())
def test_the_same_messages_come_out_however_the_bytes_arrive(
    union: object, strategy: st.SearchStrategy[object], data: st.DataObject
) -> None:
    messages = data.draw(st.lists(strategy, max_size=4))
    stream = b"".join(frame(message, union) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert Reader(union).feed(stream) == messages
    for arrival in (pieces, [stream[i : i + 1] for i in range(len(stream))]):
        reader = Reader(union)
        assert [message for piece in arrival for message in reader.feed(piece)] == messages


def test_a_message_comes_out_with_its_last_byte() -> None:
    reader, data = Reader(FromNode), frame(Ack(7), FromNode)
    assert reader.feed(data[:-1]) == []
    assert reader.feed(data[-1:] + data[:2]) == [Ack(7)]
    assert reader.feed(data[2:]) == [Ack(7)]


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    reader = Reader(FromNode, MAX_FRAME_BEFORE_HELLO)
    assert reader.feed((MAX_FRAME_BEFORE_HELLO + 1).to_bytes(4, "big")[:3]) == []
    with pytest.raises(DecodeError, match="exceeds the limit of 65536"):
        reader.feed((MAX_FRAME_BEFORE_HELLO + 1).to_bytes(4, "big")[3:])


def test_a_frame_of_the_limit_is_read_and_a_raised_limit_counts_for_the_next() -> None:
    big = Join("t" * 100, "n", b"")
    size = len(frame(big, FromNode)) - 4
    reader = Reader(FromNode, size)
    assert reader.feed(frame(big, FromNode)) == [big]
    bigger = replace(big, token="t" * 101)
    reader.limit = size + 1
    assert reader.feed(frame(bigger, FromNode)) == [bigger]


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(DecodeError, match="unknown type 'Trust'"):
        Reader(FromNode).feed(frame(Trust(b""), FromController))


@given(st.binary(max_size=40))
def test_noise_is_refused_or_waited_on_but_never_anything_else(noise: bytes) -> None:
    for data in (noise, len(noise).to_bytes(4, "big") + noise):
        try:
            Reader(FromNode, MAX_FRAME_BEFORE_HELLO).feed(data)
        except DecodeError:
            pass


def test_a_message_too_big_for_a_frame_is_not_sent() -> None:
    with pytest.raises(ValueError, match=r"Trust of .* bytes exceeds the frame limit"):
        frame(Trust(bytes(MAX_FRAME)), FromController)
