"""Wrong frames, from https://github.com/http2jp/http2-frame-test-case (MIT), and the codes that answer them."""

from __future__ import annotations

import pytest

from mesh.h2 import frames
from mesh.h2.connection import ConnectionFailed
from mesh.h2.frames import ErrorCode

from .test_h2_library import CONNECT, Ours

P, S = {ErrorCode.PROTOCOL_ERROR}, {ErrorCode.FRAME_SIZE_ERROR}

ERRORS = {
    "data-frame-padding": ("00000400080000000104AAAAAA", P),
    "data-frame-stream": ("000001000000000000AA", P),
    "goaway-frame-size": ("00000407000000000000000002", S | P),
    "goaway-frame-stream": ("0000080700000000010000000200000003", P),
    "headers-frame-padding": ("00000401080000000104AAAAAA", P),
    "headers-frame-stream": ("000001010000000000AA", P),
    "ping-frame-size": ("000004060000000000AAAAAAAA", S),
    "ping-frame-stream": ("000008060100000001AAAAAAAAAAAAAAAA", P),
    "priority-frame-size": ("00000802000000000280000001FFAAAAAA", S),
    "push_promise-frame-padding": ("00000405080000000104AAAAAA", P | S),
    "push_promise-frame-promised_stream-odd": ("00000405000000000100000001", P),
    "push_promise-frame-promised_stream-zero": ("00000405000000000100000000", P),
    "push_promise-frame-stream": ("00000405000000000077777777", P),
    "rst_stream-frame-size": ("000008030000000002AAAAAAAABBBBBBBB", S),
    "rst_stream-frame-stream": ("000004030000000000AAAAAAAA", P),
    "settings-frame-ack-size": ("000006040100000000AAAABBBBBBBB", S),
    "settings-frame-size": ("000008040000000000AAAABBBBBBBBCCCC", S),
    "settings-frame-stream": ("000006040000000001AAAABBBBBBBB", P),
    "window_update-frame-increment": ("00000408000000000100000000", P),
    "window_update-frame-size": ("0000020800000000015566", S),
    "priority-frame-stream": ("000005020000000000AAAAAAAABB", P),
}


def server_with_one_stream() -> Ours:
    server = Ours(client=False)
    server.feed(frames.PREFACE + frames.settings({}) + frames.headers(1, CONNECT, False))
    assert len(server.accepted) == 1
    server.take()
    return server


def feed_all(server: Ours, wire: bytes, size: int) -> None:
    for at in range(0, len(wire), size):
        server.feed(wire[at : at + size])


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("name", ERRORS)
def test_an_erroneous_frame_ends_the_connection_with_its_code(name: str, bytewise: bool) -> None:
    wire, codes = bytes.fromhex(ERRORS[name][0]), ERRORS[name][1]
    server = server_with_one_stream()
    with pytest.raises(ConnectionFailed) as failed:
        feed_all(server, wire, 1 if bytewise else len(wire))
    assert failed.value.code in codes
    assert server.take()[3] == frames.GOAWAY
