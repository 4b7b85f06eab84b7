"""Both ends of an HTTP/2 connection, driven by hand: bytes go in, what happened is in a list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh.h2 import frames
from mesh.h2.connection import Budget, Connection, ConnectionFailed, Stream
from mesh.h2.frames import ErrorCode
from mesh.h2.headers import Fields, encode_field

CONNECT = encode_field(b":method", b"CONNECT") + encode_field(b":authority", b"10.0.0.1:80")
CONNECT_FIELDS = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
OK = b"\x88"

Event = tuple[Any, ...]


class Recorder(Stream):
    """Writes down what happens to it. With `stalled`, it delivers nothing until `deliver`."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end
        self.stalled = end.stalled
        self.held = 0
        self.got = bytearray()

    def on_headers(self, fields: Fields, end: bool) -> None:
        self.end.events.append(("headers", self.stream_id, fields, end))
        if self.end.answers and not self.end.client:
            self.connection.send_headers(self, OK)

    def on_data(self, data: memoryview) -> int:
        self.got += data
        self.end.events.append(("data", self.stream_id, bytes(data)))
        if self.stalled:
            self.held += len(data)
            return 0
        return len(data)

    def on_end(self) -> None:
        self.end.events.append(("end", self.stream_id))

    def on_reset(self, code: int) -> None:
        self.end.events.append(("reset", self.stream_id, code))

    def on_window(self) -> None:
        self.end.events.append(("window", self.stream_id))

    def deliver(self) -> None:
        """Report what was held back."""
        held, self.held = self.held, 0
        self.connection.delivered(self, held)


class End:
    """A connection with the buffer that its owner keeps, and a record of everything that it was told."""

    def __init__(self, *, client: bool, budget: Budget | None = None, answers: bool = False) -> None:
        self.client, self.answers = client, answers
        self.events: list[Event] = []
        self.accepted: list[Recorder] = []
        self.stalled = False
        self.budget = budget or Budget()
        self.connection = Connection(self, client=client, budget=self.budget)
        self.rest = b""

    def on_ready(self) -> None:
        self.events.append(("ready",))

    def on_request(self) -> Stream:
        self.accepted.append(Recorder(self))
        return self.accepted[-1]

    def on_goaway(self, code: int) -> None:
        self.events.append(("goaway", code))

    def on_window(self) -> None:
        self.events.append(("window", 0))

    def feed(self, data: bytes) -> None:
        """Bytes from the peer."""
        buffer = bytearray(self.rest + data)
        self.rest = b""
        used = self.connection.receive(buffer, memoryview(buffer), len(buffer))
        self.rest = bytes(buffer[used:])

    def take(self) -> bytes:
        """Bytes for the peer."""
        data = b"".join(self.connection.out)
        self.connection.out.clear()
        return data

    def open(self) -> Recorder:
        """A new stream, by a client."""
        stream = Recorder(self)
        self.connection.open(stream, CONNECT)
        return stream

    def send(self, stream: Stream, data: bytes) -> bytes:
        """Send what the windows allow; return the rest."""
        size = max(0, min(len(data), stream.send_window, self.connection.send_window))
        if size:
            self.connection.send_data(stream, data[:size])
        return data[size:]

    def saw(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event[0] == kind]


def exchange(one: End, other: End) -> None:
    """Carry bytes until neither has more to say."""
    while True:
        forth, back = one.take(), other.take()
        if not forth and not back:
            return
        if forth:
            other.feed(forth)
        if back:
            one.feed(back)


def ends(*, budget: Budget | None = None, answers: bool = False) -> tuple[End, End]:
    """A client and a server that have greeted each other."""
    client = End(client=True, budget=budget)
    server = End(client=False, budget=budget, answers=answers)
    exchange(client, server)
    return client, server


def server_end(*, streams: int = 0, answers: bool = False) -> End:
    """A server that was greeted by hand, with that many streams open."""
    server = End(client=False, answers=answers)
    server.feed(frames.PREFACE + frames.settings({}))
    for number in range(streams):
        server.feed(frames.headers(1 + 2 * number, CONNECT, False))
    server.take()
    return server


def client_end(*, streams: int = 0) -> tuple[End, list[Recorder]]:
    """A client that was greeted by hand, with that many streams open."""
    client = End(client=True)
    client.feed(frames.settings({}))
    opened = [client.open() for _ in range(streams)]
    client.take()
    return client, opened


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return frames.head(len(payload) << 8 | kind, flags, stream) + payload


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    return frame(frames.DATA, frames.END_STREAM if end else 0, stream, payload)


def padded(stream: int, payload: bytes, padding: int, *, end: bool = False) -> bytes:
    flags = frames.PADDED | (frames.END_STREAM if end else 0)
    return frame(frames.DATA, flags, stream, bytes([padding]) + payload + bytes(padding))


def sent(wire: bytes) -> list[tuple[int, int, int, bytes]]:
    """The frames in `wire`: type, flags, stream, payload."""
    found = []
    if wire.startswith(frames.PREFACE):
        wire = wire[len(frames.PREFACE) :]
    while wire:
        length = int.from_bytes(wire[:3], "big")
        found.append((wire[3], wire[4], int.from_bytes(wire[5:9], "big"), wire[9 : 9 + length]))
        wire = wire[9 + length :]
    return found


def merged(events: Iterable[Event]) -> list[Event]:
    """Events with the pieces of one stream's data joined, since DATA is handed on as it arrives."""
    joined: list[Event] = []
    for event in events:
        if event[0] == "data" and joined and joined[-1][:2] == event[:2]:
            joined[-1] = ("data", event[1], joined[-1][2] + event[2])
        else:
            joined.append(event)
    return joined


def failure(end: End, wire: bytes) -> ErrorCode | None:
    """The code with which `wire` ends the connection, None if it doesn't."""
    try:
        end.feed(wire)
    except ConnectionFailed as failed:
        return failed.code
    return None
