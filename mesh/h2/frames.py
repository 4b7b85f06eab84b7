"""HTTP/2 frame types, flags, settings, error codes, and builders for the frames we send (RFC 9113 sections 4, 6, 7)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
DEFAULT_FRAME_SIZE = 16_384

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20


class Setting(enum.IntEnum):
    """SETTINGS parameters (RFC 9113 section 6.5.2, RFC 8441)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6
    ENABLE_CONNECT_PROTOCOL = 8


class ErrorCode(enum.IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


head = struct.Struct(">IBI").pack
"""`head(length << 8 | type, flags, stream)`: the nine bytes before a payload."""

_setting = struct.Struct(">HI").pack
_window = struct.Struct(">IBII").pack
_goaway = struct.Struct(">IBIII").pack


def settings(values: Mapping[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_setting(key, value) for key, value in values.items())
    return head(len(payload) << 8 | SETTINGS, 0, 0) + payload


SETTINGS_ACK = head(SETTINGS, ACK, 0)


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE for a stream, or for the connection with stream 0."""
    return _window(4 << 8 | WINDOW_UPDATE, 0, stream, increment)


def rst_stream(stream: int, code: int) -> bytes:
    """A RST_STREAM."""
    return _window(4 << 8 | RST_STREAM, 0, stream, code)


def ping(payload: bytes, flags: int = 0) -> bytes:
    """A PING of 8 bytes."""
    return head(8 << 8 | PING, flags, 0) + payload


def goaway(last_stream: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY."""
    return _goaway((8 + len(debug)) << 8 | GOAWAY, 0, 0, last_stream, code) + debug


def headers(stream: int, block: bytes, end_stream: bool, frame_size: int = DEFAULT_FRAME_SIZE) -> bytes:
    """HEADERS, with CONTINUATION where `block` exceeds `frame_size`."""
    if len(block) <= frame_size:
        return head(len(block) << 8 | HEADERS, END_HEADERS | end_stream, stream) + block
    out = [head(frame_size << 8 | HEADERS, int(end_stream), stream), block[:frame_size]]
    for at in range(frame_size, len(block), frame_size):
        part = block[at : at + frame_size]
        flags = END_HEADERS if at + frame_size >= len(block) else 0
        out += (head(len(part) << 8 | CONTINUATION, flags, stream), part)
    return b"".join(out)
