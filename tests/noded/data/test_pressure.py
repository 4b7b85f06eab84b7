"""Who has to let go when requests that wait hold too much memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from mesh.h2 import frames
from mesh.message import Request, Response
from noded.data.http import pressure
from noded.data.http.exchange import Exchange
from noded.data.http.streams import HIGH
from tests.mesh.h2_ends import data
from tests.noded.data.test_http2_streams import POST, Client, Server


@dataclass
class Session:
    source: str
    held: int
    ended: list[tuple[str, str]] = field(default_factory=list)

    def abort(self, reason: str, flags: str) -> None:
        self.ended.append((reason, flags))


def test_below_the_limit_nobody_is_reset() -> None:
    sessions = [Session("a", 60), Session("b", 40)]
    assert pressure.relieve(sessions, most=100) == 0
    assert not any(session.ended for session in sessions)


def test_the_largest_of_whoever_holds_most_is_reset_until_there_is_room() -> None:
    others = [Session(f"other{number}", 30) for number in range(3)]
    small = [Session("hog", 1) for _ in range(10)]
    large = [Session("hog", 40) for _ in range(10)]
    assert pressure.relieve([*small, *others, *large], most=200) == 9
    assert sum(bool(session.ended) for session in large) == 9
    assert not any(session.ended for session in (*others, *small))
    assert {flags for session in large for _, flags in session.ended} == {"OM"}


def test_many_connections_of_one_are_counted_together() -> None:
    one, many = Session("one", 50), [Session("many", 2) for _ in range(100)]
    pressure.relieve([one, *many], most=200)
    assert not one.ended
    assert sum(bool(session.ended) for session in many) == 50


def test_what_a_client_of_http2_holds_is_what_waits_both_ways() -> None:
    server = Server()
    records = [server.request(number, POST, end=False) for number in (1, 3)]
    for record in records:
        cast(Any, record).held = 7
    records[0].responder.hold()
    server.feed(data(1, bytes(1000)))
    records[1].responder.head(Response(200, [], -1))
    records[1].responder.data(bytes(2 * HIGH))
    cast(Any, server.wire).held = 11
    sent = sum(len(payload) for kind, _, _, payload in server.take() if kind == frames.DATA)
    assert server.server.held == 2 * 7 + 11 + 1000 + 2 * HIGH - sent


def test_what_a_request_holds_is_its_head_what_is_kept_for_another_try_and_what_its_backend_does_not_take() -> None:
    client = Client()
    record, call = client.call(length=-1)
    call.data(bytes(100_000))
    client.take()
    exchange = Exchange.__new__(Exchange)
    exchange.request = Request(b"POST", b"web", b"/path", [(b"name", b"value")], -1)
    exchange.kept, exchange.kept_size, exchange.call = [bytes(500)], 500, None
    assert exchange.held == 5 + 9 + 500
    exchange.kept, exchange.call = None, call
    assert exchange.held == 5 + 9 + 100_000 - 65_535
    assert record is not None
