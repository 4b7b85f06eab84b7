"""Frames and events in any order at either end of an HTTP/2 connection: nothing raises, and each end is told once."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.h2 import frames
from mesh.h2.frames import ErrorCode, Setting
from mesh.h2.headers import encode_field
from mesh.message import Response
from tests.mesh.h2_ends import data, frame, padded
from tests.noded.data.test_http2_streams import GET, OK, POST, Client, Record, Server

BLOCKS = (
    GET,
    POST,
    OK,
    encode_field(b":status", b"103"),
    OK + encode_field(b"content-length", b"3"),
    POST + encode_field(b"content-length", b"3"),
    encode_field(b"grpc-status", b"0"),
    GET + encode_field(b"connection", b"x"),
    b"\x40\x01a\x01b",
    b"\xbe",
    b"\xff\xff",
    b"",
)
TOLD = ("on_gone", "on_failed", "on_response_end")
"""Of each exchange, once at most."""


def frame_of(dice: random.Random, opened: list[int], ended: set[int], *, opens: bool) -> bytes:
    """Mostly one that may come, on a stream that was `opened`; if the peer `opens` them, at times on a new one."""
    if dice.random() < 0.02:
        return anything(dice)
    if opens and (not opened or dice.random() < 0.2):
        opened.append(2 * len(opened) + 1)
        if end := dice.random() < 0.4:
            ended.add(opened[-1])
        return frames.headers(opened[-1], dice.choice(BLOCKS[:2] * 4 + BLOCKS[5:9]), end)
    end = dice.random() < 0.3
    size = dice.choice((0, 1, 2, 3, 1000, 10_000))
    live = [stream for stream in opened if stream not in ended]
    kind = dice.randrange(10 if live else 2)
    if kind == 0:
        return dice.choice((frames.ping(b"12345678", dice.randrange(2)), frames.window_update(0, 50_000)))
    if kind == 1:
        return frames.settings({Setting.INITIAL_WINDOW_SIZE: dice.choice((0, 1, 65_535, 10**6))})
    stream = dice.choice(live)
    if kind == 5 or (end and kind != 6):
        ended.add(stream)
    if kind < 5:
        return data(stream, bytes(size), end=end) if dice.random() < 0.8 else padded(stream, bytes(size), 9, end=end)
    if kind == 5:
        return frames.rst_stream(stream, dice.choice(tuple(ErrorCode)))
    if kind == 6:
        return frames.window_update(stream, dice.choice((1, 10_000)))
    return frames.headers(stream, dice.choice(BLOCKS[2:5] + BLOCKS[6:9]), end)


def anything(dice: random.Random) -> bytes:
    stream = dice.choice((0, 1, 2, 3))
    return dice.choice(
        (
            frames.headers(stream, dice.choice(BLOCKS), True),
            frame(frames.HEADERS, 0, stream, GET) + frame(frames.CONTINUATION, 4, stream),
            frames.window_update(stream, 2**31 - 1),
            frames.goaway(dice.choice((0, 1, 3, 2**31 - 1)), ErrorCode.NO_ERROR),
            frame(dice.randrange(20), dice.randrange(256), stream, bytes(dice.randrange(20))),
            frames.ping(b"12345678")[: dice.randrange(17)],
        )
    )


def over(record: Record) -> bool:
    return any(name in TOLD for name in record.names()) or ("over",) in record.events


def act(dice: random.Random, record: Record) -> None:
    """What an exchange may do with its responder."""
    if over(record):
        return
    responder = record.responder
    began = ("began",) in record.events
    step = dice.randrange(7)
    if step == 0 and not began:
        record.events.append(("began",))
        responder.head(Response(200, [], dice.choice((-1, 0, 5))))
    elif step == 1 and began:
        responder.data(bytes(dice.choice((0, 1, 5, 100_000))))
    elif step == 2 and began:
        record.events.append(("over",))
        responder.end(dice.choice(([], [(b"a", b"b")])))
    elif step == 3:
        record.events.append(("over",))
        responder.abort()
    elif step == 4:
        responder.hold()
    elif step == 5:
        responder.release()
    elif not began:
        responder.informational(Response(103))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_a_server_stands_anything(seed: int) -> None:
    dice = random.Random(seed)
    server = Server()
    opened: list[int] = []
    ended: set[int] = set()
    for _ in range(200):
        step = dice.randrange(12)
        if step < 6:
            server.feed(frame_of(dice, opened, ended, opens=True))
        elif step < 10:
            for record in server.exchanges:
                act(dice, record)
        elif step == 10:
            server.wire.full = not server.wire.full
            if not server.wire.full:
                server.server.on_room()
        elif dice.random() < 0.3:
            server.server.tick()
        elif dice.random() < 0.05:
            dice.choice((server.server.on_eof, lambda: server.server.on_lost("broke"), server.server.drain))()
        server.engine.flush()
        for record in server.exchanges:
            assert record.names().count("on_gone") <= 1
        assert len(server.ended) <= 1
        assert bool(server.ended) == server.server.closed
        if server.ended:
            assert server.wire.closed
            assert not server.server.connection.streams


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_a_client_stands_anything(seed: int) -> None:
    dice = random.Random(seed)
    client = Client()
    calls: list[Record] = []
    ended: set[int] = set()
    for _ in range(200):
        step = dice.randrange(12)
        if step < 6 and not client.client.closed:
            client.feed(frame_of(dice, [2 * n + 1 for n in range(len(calls))], ended, opens=False))
        elif step < 8 and client.client.room and not client.client.closed:
            record, call = client.call(length=dice.choice((-1, 0, 5)))
            record.responder = call
            calls.append(record)
        elif step < 10 and calls:
            record = dice.choice(calls)
            if not over(record):
                call = record.responder
                choice = dice.randrange(5)
                if choice == 0:
                    call.data(bytes(dice.choice((1, 5, 100_000))))
                elif choice == 1:
                    call.end([])
                elif choice == 2:
                    call.hold()
                elif choice == 3:
                    call.release()
                else:
                    record.events.append(("over",))
                    call.cancel()
        elif step == 10:
            client.wire.full = not client.wire.full
            if not client.wire.full:
                client.client.on_room()
        elif dice.random() < 0.3:
            client.client.tick()
        elif dice.random() < 0.05:
            dice.choice((client.client.on_eof, lambda: client.client.on_lost("broke"), client.client.close))()
        client.engine.flush()
        for record in calls:
            told = [name for name in record.names() if name in TOLD]
            assert len(told) <= 1
            if ("over",) in record.events:
                assert not told
        assert client.gone == client.client.closed
        if client.gone:
            assert client.wire.closed
            # what is held had arrived whole
            assert all(over(record) or record.responder._held for record in calls)
