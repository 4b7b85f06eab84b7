"""Ends for HTTP/1 parsers: recorders of what they say, and h11 as a second parser that nobody here wrote."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11

from mesh.http1 import BadMessage, Limits, RequestParser, ResponseParser
from mesh.message import Headers, Request, Response


@dataclass
class Seen:
    """One message."""

    head: Request | Response
    keep_alive: bool
    body: bytes = b""
    trailers: Headers | None = None
    """None until it is complete."""


@dataclass
class Recorder:
    """A sink of either kind."""

    messages: list[Seen] = field(default_factory=list)
    informational: list[Response] = field(default_factory=list)
    rest: bytes = b""
    failed: tuple[int, str] | None = None

    def on_request(self, request: Request, keep_alive: bool) -> None:
        assert all(seen.trailers is not None for seen in self.messages), "the one before is not complete"
        self.messages.append(Seen(request, keep_alive))

    def on_informational(self, response: Response) -> None:
        self.informational.append(response)

    def on_response(self, response: Response, keep_alive: bool) -> None:
        self.messages.append(Seen(response, keep_alive))

    def on_body(self, data: bytes) -> None:
        assert data
        assert self.messages[-1].trailers is None
        self.messages[-1].body += data

    def on_end(self, trailers: Headers) -> None:
        assert self.messages[-1].trailers is None
        self.messages[-1].trailers = trailers

    def on_rest(self, data: bytes) -> None:
        self.rest += data

    @property
    def request(self) -> Request:
        """The one request that was seen."""
        (seen,) = self.messages
        assert isinstance(seen.head, Request)
        return seen.head

    @property
    def response(self) -> Response:
        """The one response that was seen."""
        (seen,) = self.messages
        assert isinstance(seen.head, Response)
        return seen.head


def read_requests(*pieces: bytes, limits: Limits | None = None) -> Recorder:
    """Feed the pieces, until one is refused."""
    seen = Recorder()
    parser = RequestParser(seen, limits) if limits else RequestParser(seen)
    try:
        for piece in pieces:
            parser.feed(piece)
    except BadMessage as error:
        seen.failed = error.status, error.reason
    return seen


def read_responses(*pieces: bytes, methods: tuple[bytes, ...] = (b"GET",), eof: bool = False) -> Recorder:
    """Feed the pieces as the answers to these, until one is refused."""
    seen = Recorder()
    parser = ResponseParser(seen)
    for method in methods:
        parser.expect(method)
    try:
        for piece in pieces:
            parser.feed(piece)
        if eof:
            parser.eof()
    except BadMessage as error:
        seen.failed = error.status, error.reason
    return seen


def singly(data: bytes) -> tuple[bytes, ...]:
    """Byte by byte."""
    return tuple(data[at : at + 1] for at in range(len(data)))


@dataclass
class H11Request:
    """A request as h11 understands it."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass
class H11Response:
    """A response as h11 understands it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)


def h11_requests(data: bytes) -> list[H11Request]:
    """All requests in the data, none of which may be incomplete, and nothing besides; raises what h11 raises."""
    found: list[H11Request] = []
    if not data:  # which would be the connection's end to h11
        return found
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(data)
    while True:
        event = server.next_event()
        if isinstance(event, h11.Request):
            found.append(H11Request(event.method, event.target, list(event.headers)))
        elif isinstance(event, h11.Data):
            found[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            found[-1].trailers = list(event.headers)
        else:
            if server.our_state is h11.SEND_RESPONSE and str(server.their_state) in ("DONE", "MIGHT_SWITCH_PROTOCOL"):
                server.send(h11.Response(status_code=204, headers=[]))
                server.send(h11.EndOfMessage())
                server.start_next_cycle()
                continue
            assert event is h11.NEED_DATA, event
            assert server.their_state is h11.IDLE, "a request is incomplete"
            assert server.trailing_data[0] == b""
            return found


def h11_responses(data: bytes, *requests: bytes, eof: bool = False) -> list[H11Response]:
    """The final responses to requests of these methods, all of which must be complete, and nothing besides."""
    found: list[H11Response] = []
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    client.receive_data(data)
    if eof:
        client.receive_data(b"")
    for at, method in enumerate(requests):
        if at:
            client.start_next_cycle()
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        while True:
            event = client.next_event()
            if isinstance(event, h11.Response):
                found.append(H11Response(event.status_code, list(event.headers)))
            elif isinstance(event, h11.Data):
                found[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found[-1].trailers = list(event.headers)
                break
            else:
                assert isinstance(event, h11.InformationalResponse), event
    assert client.trailing_data[0] == b""
    return found
