"""A client's connection at its corners, with an exchange that the test plays."""

from __future__ import annotations

from typing import Any

from mesh.http1 import BadMessage
from mesh.message import Headers, Request, Response
from noded.data.http.server import Http1Server, Responder
from tests.noded.data.http1_world import Wire

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH = Response(101, upgrade=b"websocket")
OK = Response(200, [(b"content-length", b"2")], 2)


class Exchange:
    """Notes what it is told."""

    def __init__(self, responder: Responder, request: Request, *, at_once: bool) -> None:
        self.responder, self.request, self._at_once = responder, request, at_once
        self.body = b""
        self.ends = 0
        self.gone = ""

    def begin(self) -> None:
        if self._at_once:
            self.answer()

    def answer(self) -> None:
        self.responder.head(OK)
        self.responder.data(b"ok")
        self.responder.end([])

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self, trailers: Headers) -> None:
        self.ends += 1

    def on_gone(self, reason: str, flags: str) -> None:
        self.gone = flags
        self.responder.abort()

    def on_room(self) -> None:
        pass

    def reply(self, status: int, flags: str, reason: str, text: str = "") -> None:
        self.gone = flags
        self.responder.head(Response(status))
        self.responder.end([])


class Served:
    def __init__(self, *, at_once: bool = False) -> None:
        self.exchanges: list[Exchange] = []
        self.refused: list[BadMessage] = []
        self.ended: list[tuple[str, str]] = []

        def begin(responder: Responder, request: Request) -> Any:
            self.exchanges.append(Exchange(responder, request, at_once=at_once))
            return self.exchanges[-1]

        self.server = Http1Server(begin, self.refused.append, lambda *end: self.ended.append(end))
        self.wire = self.server.transport = Wire(self.server, connected=True)

    @property
    def answers(self) -> list[bytes]:
        self.wire.flush()
        return [part.split(b" ")[0] for part in bytes(self.wire.delivered).split(b"HTTP/1.1 ")[1:]]


def test_bytes_behind_an_upgrade_wait_for_its_answer_however_many_they_are() -> None:
    served = Served()
    served.wire.feed(UPGRADE + b"x" * 50_000)
    served.wire.feed(b"y" * 50_000)
    (exchange,) = served.exchanges
    assert exchange.body == b""
    assert served.wire.held
    exchange.responder.head(SWITCH)
    served.wire.pump()
    assert exchange.body == b"x" * 50_000 + b"y" * 50_000
    assert not served.wire.held


def test_a_client_that_has_ended_before_its_upgrade_was_answered_has_ended_afterwards() -> None:
    served = Served()
    served.wire.feed(UPGRADE)
    served.wire.feed_eof()
    (exchange,) = served.exchanges
    exchange.responder.head(SWITCH)
    assert exchange.ends == 2  # of the request, then of what is no HTTP any more


def test_a_declined_upgrade_lets_what_is_behind_it_be_read_once_it_is_answered() -> None:
    served = Served()
    served.wire.feed(UPGRADE + UPGRADE)
    served.exchanges[0].answer()
    assert len(served.exchanges) == 2
    served.exchanges[1].answer()
    assert served.answers == [b"200", b"200"]


def test_a_body_that_turns_out_to_be_none_is_answered_if_nothing_was_yet() -> None:
    served = Served()
    served.wire.feed(CHUNKED + b"2\r\nok\r\nnonsense\r\n")
    (exchange,) = served.exchanges
    assert exchange.gone == "DPE"
    assert served.answers == [b"400"]
    assert b"connection: close" in served.wire.delivered


def test_nonsense_behind_an_early_answer_is_not_answered_as_well() -> None:
    served = Served(at_once=True)
    served.wire.feed(CHUNKED + b"nonsense\r\n")
    assert served.answers == [b"200"]
    assert served.refused == []
    for _ in range(4):
        served.server.tick()
    assert served.ended == [("-", "")]


def test_what_follows_a_request_that_said_close_is_not_looked_at() -> None:
    served = Served(at_once=True)
    served.wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: x\r\n\r\n" + UPGRADE)
    assert len(served.exchanges) == 1


def test_only_the_last_answer_to_a_client_that_has_ended_says_so() -> None:
    served = Served()
    served.wire.feed(UPGRADE * 3)
    served.wire.eof = True
    for number in range(3):
        served.exchanges[number].answer()
        served.wire.flush()
        served.wire.pump()
        assert (b"connection: close" in served.wire.delivered) == (number == 2), number
    assert served.ended


def test_a_client_that_drips_bytes_after_the_last_answer_is_let_go() -> None:
    served = Served(at_once=True)
    served.wire.feed(CHUNKED)
    for _ in range(5):
        served.wire.feed(b"1")
        served.server.tick()
    assert served.ended


def test_a_draining_tunnel_leaves_time_for_what_is_on_its_way() -> None:
    served = Served()
    served.wire.retiring = True
    served.server.drain()
    assert not served.ended
    served.wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    served.exchanges[0].answer()
    assert served.answers == [b"200"]
    assert b"connection: close" in served.wire.delivered
    idle = Served()
    idle.wire.retiring = True
    idle.server.drain()
    for _ in range(3):
        idle.server.tick()
    assert idle.ended
