"""What clients and servers that mean well say, and how it is written."""

from __future__ import annotations

import httptools
import pytest

from mesh.http1 import RequestParser, ResponseParser, chunk, last_chunk, write_request, write_response
from mesh.http1.fields import is_authority
from mesh.http1.heads import Memo
from mesh.message import Headers, Request, Response
from tests.mesh.http1_ends import Recorder, read_requests, read_responses, singly

_UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\n"


def _request(*lines: bytes, start: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> Recorder:
    raw = b"\r\n".join((start, b"Host: a", *lines, b"", body))
    whole, cut = read_requests(raw), read_requests(*singly(raw))
    assert whole.failed is None
    assert whole == cut
    return whole


def test_names_are_in_lower_case_and_values_without_blanks_around() -> None:
    assert _request(b"X-A: \t b  c \t ", b"x-a:d", b"E:").request.headers == [
        (b"x-a", b"b  c"),
        (b"x-a", b"d"),
        (b"e", b""),
    ]


def test_bytes_above_127_pass_in_values() -> None:
    assert _request(b"A: \xe9").request.header(b"a") == b"\xe9"


def test_an_empty_line_before_a_request_is_overlooked() -> None:
    seen = read_requests(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n")
    assert [message.head.authority for message in seen.messages if isinstance(message.head, Request)] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("target", "authority", "path"),
    [
        (b"/a?b=c?d", b"a", b"/a?b=c?d"),
        (b"//b/c", b"a", b"//b/c"),
        (b"http://a/b?c", b"a", b"/b?c"),
        (b"HTTP://A/b", b"a", b"/b"),
        (b"http://a", b"a", b"/"),
        (b"http://a?b=http://c/", b"a", b"/?b=http://c/"),
    ],
)
def test_a_target_becomes_authority_and_path(target: bytes, authority: bytes, path: bytes) -> None:
    request = _request(start=b"GET " + target + b" HTTP/1.1").request
    assert (request.authority, request.path) == (authority, path)


@pytest.mark.parametrize("target", [b"*", b"http://a"])
def test_options_may_be_of_the_server(target: bytes) -> None:
    assert _request(start=b"OPTIONS " + target + b" HTTP/1.1").request.path == b"*"


@pytest.mark.parametrize(
    "host", [b"a", b"a.b-c_d:8080", b"10.0.0.1", b"10.0.0.1:80", b"[::1]", b"[2001:db8::1]:443", b"[::ffff:1.2.3.4]"]
)
def test_hosts_are_names_or_addresses_with_or_without_a_port(host: bytes) -> None:
    assert is_authority(host)
    assert read_requests(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").request.authority == host


@pytest.mark.parametrize(("said", "length"), [(b"3", 3), (b"0003", 3), (b"0", 0), (b"9223372036854775807", 2**63 - 1)])
def test_a_length_is_passed_on_as_it_was_understood(said: bytes, length: int) -> None:
    request = read_requests(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + said + b"\r\n\r\n").request
    assert request.length == length
    assert request.headers == [(b"content-length", b"%d" % length)]


def test_a_chunked_body_comes_without_its_chunks() -> None:
    body = b'3;a;b=c;d="e \\" f"\r\nabc\r\n000A\r\n0123456789\r\n0\r\nX-A: b\r\nX-A: c\r\n\r\n'
    seen = _request(b"Transfer-Encoding: Chunked", start=b"POST / HTTP/1.1", body=body)
    assert seen.request.length == -1
    assert seen.request.headers == []
    assert seen.messages[0].body == b"abc0123456789"
    assert seen.messages[0].trailers == [(b"x-a", b"b"), (b"x-a", b"c")]


def test_what_belongs_to_the_hop_goes_no_further() -> None:
    request = _request(
        b"Connection: keep-alive, X-Mine, ,te",
        b"Connection: HTTP2-Settings, Proxy-Connection",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"X-Mine: 1",
        b"TE: trailers, deflate;q=0.5",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
        b"Trailer: X-T",
        b"X-Theirs: 2",
    ).request
    assert request.headers == [(b"trailer", b"X-T"), (b"x-theirs", b"2"), (b"te", b"trailers")]
    assert request.upgrade == b""


def test_te_without_trailers_goes_no_further() -> None:
    assert _request(b"TE: gzip").request.headers == []


def test_many_connection_options_are_understood_too() -> None:
    seen = _request(b"Connection: " + b"keep-alive, " * 50 + b"close")
    assert not seen.messages[0].keep_alive


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Close", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"close", False),
    ],
)
def test_a_connection_is_kept_as_version_and_header_say(version: bytes, connection: bytes, kept: bool) -> None:
    lines = [b"Connection: " + connection] if connection else []
    seen = _request(*lines, start=b"GET / HTTP/" + version)
    assert seen.messages[0].keep_alive == kept
    assert seen.request.http10 == (version == b"1.0")


def test_nothing_is_read_after_the_last_request() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    for pieces in ((raw + raw,), (raw, raw)):
        seen = read_requests(*pieces)
        assert len(seen.messages) == 1
        assert seen.failed is None


def test_http_1_0_needs_no_host_but_is_not_written_without() -> None:
    request = read_requests(b"GET / HTTP/1.0\r\n\r\n").request
    assert request.authority == b""
    with pytest.raises(ValueError, match="authority"):
        write_request(request)
    request.authority = b"10.0.0.1:80"
    assert write_request(request) == b"GET / HTTP/1.1\r\nhost: 10.0.0.1:80\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "lines", "expects"),
    [
        (b"PUT / HTTP/1.1", (b"Content-Length: 1", b"Expect: 100-Continue"), True),
        (b"PUT / HTTP/1.1", (b"Content-Length: 1",), False),
        (b"PUT / HTTP/1.1", (b"Content-Length: 0", b"Expect: 100-continue"), False),
        (b"PUT / HTTP/1.0", (b"Content-Length: 1", b"Expect: 100-continue"), False),
        (b"PUT / HTTP/1.0", (b"Content-Length: 1", b"Expect: other"), False),
    ],
)
def test_a_client_waits_for_100_continue_where_it_says_so(
    start: bytes, lines: tuple[bytes, ...], expects: bool
) -> None:
    seen = read_requests(b"\r\n".join((start, b"Host: a", *lines, b"", b"")))
    assert seen.failed is None
    assert seen.request.expects == expects
    assert (b"expect: 100-continue\r\n" in write_request(seen.request)) == expects


# -- upgrades ---------------------------------------------------------------------------------------------------------


def test_after_a_switch_everything_is_raw() -> None:
    seen = Recorder()
    parser = RequestParser(seen)
    parser.feed(_UPGRADE + b"early")
    assert parser.held
    assert seen.request.upgrade == b"websocket"
    assert seen.rest == b""
    parser.switch()
    parser.feed(b"\0 late")
    assert seen.rest == b"early\0 late"
    parser.switch()
    assert not parser.held


def test_when_an_upgrade_is_declined_http_goes_on() -> None:
    seen = Recorder()
    parser = RequestParser(seen)
    parser.feed(_UPGRADE + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(seen.messages) == 1
    parser.proceed()
    assert len(seen.messages) == 2


def test_an_owner_may_switch_while_it_is_told() -> None:
    class Eager(Recorder):
        def on_end(self, trailers: Headers) -> None:
            super().on_end(trailers)
            parser.switch()

    seen = Eager()
    parser = RequestParser(seen)
    parser.feed(_UPGRADE + b"raw")
    assert seen.rest == b"raw"


@pytest.mark.parametrize(
    "lines",
    [
        (b"Connection: upgrade", b"Upgrade: h2c"),
        (b"Connection: upgrade", b"Upgrade: HTTP/2.0"),
        (b"Connection: upgrade", b"Upgrade: TLS/1.0"),
        (b"Connection: upgrade", b"Upgrade: websocket, h2c"),
        (b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: websocket"),
        (b"Connection: upgrade", b"Upgrade: " + b"a" * 65),
        (b"Connection: upgrade",),
        (b"Upgrade: websocket",),
        (b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 1"),
    ],
)
def test_an_upgrade_that_we_do_not_carry_is_an_ordinary_request(lines: tuple[bytes, ...]) -> None:
    seen = read_requests(b"\r\n".join((b"GET / HTTP/1.1", b"Host: a", *lines, b"", b"")))
    assert seen.failed is None
    assert seen.request.upgrade == b""
    assert b"upgrade" not in write_request(seen.request)


def test_an_upgrade_in_http_1_0_is_none() -> None:
    assert read_requests(_UPGRADE.replace(b"1.1", b"1.0")).request.upgrade == b""


def test_a_server_takes_up_the_upgrade_that_it_was_asked_for() -> None:
    raw = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nA: b\r\n\r\nraw"
    for pieces in ((raw,), singly(raw)):
        seen = Recorder()
        parser = ResponseParser(seen)
        parser.expect(b"GET", b"websocket")
        for piece in pieces:
            parser.feed(piece)
        assert seen.response == Response(101, [(b"a", b"b")], 0, b"websocket")
        parser.switch()
        parser.feed(b"more")
        assert seen.rest == b"rawmore"
        parser.eof()
    written = write_response(seen.response, keep_alive=True)
    assert written == (b"HTTP/1.1 101 Switching Protocols\r\na: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")


# -- responses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "length", "body"),
    [
        (_OK + b"Content-Length: 3\r\n\r\nabc", 3, b"abc"),
        (_OK + b"Content-Length: 0\r\n\r\n", 0, b""),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", -1, b"abc"),
        (_OK + b"\r\nabc", -1, b"abc"),
        (_OK + b"\r\n", -1, b""),
        (b"HTTP/1.0 200\r\n\r\nabc", -1, b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0, b""),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 0, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", 0, b""),
    ],
)
def test_a_body_is_as_long_as_its_head_says_or_until_the_end(raw: bytes, length: int, body: bytes) -> None:
    for pieces in ((raw,), singly(raw)):
        seen = read_responses(*pieces, eof=True)
        assert seen.failed is None
        assert seen.response.length == length
        assert seen.messages[0].body == body
        assert seen.messages[0].trailers == []


def test_an_answer_to_head_has_no_body() -> None:
    for framing in (b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b""):
        raw = _OK + framing + b"\r\n" + _OK + b"Content-Length: 3\r\n\r\nabc"
        seen = read_responses(raw, methods=(b"HEAD", b"GET"))
        assert [message.body for message in seen.messages] == [b"", b"abc"]


def test_a_length_where_no_body_can_be_goes_no_further() -> None:
    assert read_responses(b"HTTP/1.1 204 N\r\nContent-Length: 0\r\nA: b\r\n\r\n").response.headers == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (_OK + b"Content-Length: 0\r\n\r\n", True),
        (_OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n", False),
        (_OK + b"Content-Length: 1\r\nConnection: close\r\n\r\nx", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
        (_OK + b"\r\n", False),
    ],
)
def test_a_server_s_connection_is_kept_where_both_ends_know_the_answer_s_end(raw: bytes, kept: bool) -> None:
    assert read_responses(raw, eof=True).messages[0].keep_alive == kept


def test_informational_answers_come_before_the_one_that_counts() -> None:
    raw = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n"
    )
    seen = read_responses(raw)
    assert seen.informational == [Response(100), Response(103, [(b"link", b"x")])]
    assert seen.response.status == 200


def test_an_idle_server_may_close() -> None:
    assert read_responses(methods=(), eof=True).failed is None
    assert read_responses(_OK + b"Content-Length: 0\r\n\r\n", eof=True).failed is None


def test_memory_is_read_as_well_as_bytes() -> None:
    seen = Recorder()
    parser = RequestParser(seen)
    parser.feed(memoryview(b"GET / HTTP/1.1\r\n"))
    parser.feed(bytearray(b"Host: a\r\n\r\n"))
    assert seen.request == Request(b"GET", b"a", b"/")


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_request_is_written_anew() -> None:
    request = Request(b"POST", b"a:80", b"/b?c", [(b"d", b"e"), (b"te", b"trailers")], -1, expects=True)
    assert write_request(request) == (
        b"POST /b?c HTTP/1.1\r\nhost: a:80\r\nd: e\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n"
        b"connection: te\r\nte: trailers\r\n\r\n"
    )


def test_an_upgrade_is_written_with_its_connection_header() -> None:
    request = Request(b"GET", b"a", b"/", [(b"te", b"trailers")], upgrade=b"websocket")
    assert write_request(request) == (
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, te\r\nupgrade: websocket\r\nte: trailers\r\n\r\n"
    )


def test_headers_of_the_hop_and_wrong_lengths_are_not_written_as_they_are() -> None:
    own = [(b"connection", b"x"), (b"host", b"b"), (b"transfer-encoding", b"gzip"), (b"content-length", b"9")]
    assert write_request(Request(b"PUT", b"a", b"/", [*own, (b"d", b"e")], 3)) == (
        b"PUT / HTTP/1.1\r\nhost: a\r\nd: e\r\ncontent-length: 3\r\n\r\n"
    )
    assert write_response(Response(200, [*own, (b"d", b"e")], 3), keep_alive=True) == (
        b"HTTP/1.1 200 OK\r\nd: e\r\ncontent-length: 3\r\n\r\n"
    )


def test_a_response_ends_as_the_client_s_version_allows() -> None:
    unknown = Response(200, [], -1)
    known = Response(299, [], 0)
    assert write_response(unknown, keep_alive=True) == _OK + b"transfer-encoding: chunked\r\n\r\n"
    assert write_response(unknown, keep_alive=True, http10=True) == _OK + b"connection: close\r\n\r\n"
    assert write_response(known, keep_alive=False) == (
        b"HTTP/1.1 299 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    assert write_response(known, keep_alive=True, http10=True) == (
        b"HTTP/1.1 299 \r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"
    )


@pytest.mark.parametrize(("status", "head"), [(200, True), (304, False), (304, True)])
def test_an_answer_without_a_body_keeps_the_length_that_it_would_have_had(status: int, head: bool) -> None:
    with_length = write_response(Response(status, [(b"content-length", b"5")]), keep_alive=True, head=head)
    without = write_response(Response(status), keep_alive=True, head=head)
    assert b"content-length: 5\r\n" in with_length
    assert b"content-length" not in without
    assert b"content-length" not in write_response(
        Response(status, [(b"content-length", b"x")]), keep_alive=True, head=head
    )


def test_no_framing_is_written_where_there_is_no_body() -> None:
    assert write_response(Response(204), keep_alive=True) == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert write_response(Response(103, [(b"link", b"x")]), keep_alive=True) == (
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    )
    assert write_response(Response(100), keep_alive=True, http10=True) == b""


def test_an_empty_piece_does_not_end_a_body() -> None:
    assert chunk(b"") == b""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert last_chunk([]) == b"0\r\n\r\n"
    assert last_chunk([(b"grpc-status", b"0")]) == b"0\r\ngrpc-status: 0\r\n\r\n"
    assert last_chunk([(b"date", b"x"), (b"a", b"b"), (b"authorization", b"c")]) == b"0\r\na: b\r\n\r\n"
    assert last_chunk([(b"content-length", b"5")]) == b"0\r\n\r\n"


@pytest.mark.parametrize(
    "pair",
    [
        (b"a", b"b\r\nc: d"),
        (b"a", b"b\n"),
        (b"a", b"\0"),
        (b"a\r\nb", b"c"),
        (b"a:", b"b"),
        (b"a b", b"c"),
        (b"A", b"b"),
        (b"", b"b"),
    ],
)
def test_what_would_be_another_header_on_the_wire_is_not_written(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError):
        write_request(Request(b"GET", b"a", b"/", [pair]))
    with pytest.raises(ValueError):
        write_response(Response(200, [pair]), keep_alive=True)
    with pytest.raises(ValueError):
        last_chunk([pair])


@pytest.mark.parametrize(
    "request_",
    [
        Request(b"GET /x HTTP/1.1\r\n", b"a", b"/"),
        Request(b"CONNECT", b"a", b"/"),
        Request(b"GET", b"a\r\nb: c", b"/"),
        Request(b"GET", b"", b"/"),
        Request(b"GET", b"a", b"/ HTTP/1.1\r\n"),
        Request(b"GET", b"a", b"/\xe9"),
        Request(b"GET", b"a", b"x"),
        Request(b"GET", b"a", b"*"),
        Request(b"GET", b"a", b"/", upgrade=b"a\r\nb"),
    ],
)
def test_what_would_be_another_request_on_the_wire_is_not_written(request_: Request) -> None:
    with pytest.raises(ValueError):
        write_request(request_)


def test_many_headers_are_written_too() -> None:
    headers = [(b"a%d" % at, b"b") for at in range(80)]
    seen = read_requests(write_request(Request(b"GET", b"a", b"/", headers)))
    assert seen.request.headers == headers


# -- what is remembered -----------------------------------------------------------------------------------------------


def test_the_memory_of_heads_is_bounded_in_bytes_and_keeps_what_is_used() -> None:
    memo = Memo[int]()
    memo.seen(b"hot", 1)
    assert memo.get(b"hot") is None, "it may never come again"
    memo.seen(b"hot", 1)
    for at in range(10_000):
        for _ in range(2):
            memo.seen(b"%0100d" % at, at)
        assert memo.get(b"hot") == 1
    assert memo.get(b"%0100d" % 9_999) == 9_999
    assert memo.get(b"%0100d" % 0) is None
    assert 0 < memo.size <= Memo.ROOM
    for _ in range(2):
        memo.seen(b"x" * 5000, 2)
    assert memo.get(b"x" * 5000) is None


def test_a_head_that_comes_again_is_a_message_of_its_own() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n"
    for _ in range(4):
        request = read_requests(raw).request
        assert request == Request(b"GET", b"a", b"/", [(b"a", b"b")])
        request.headers.append((b"x", b"y"))
        request.path = b"/changed"


def test_whether_a_head_is_on_its_way_is_known() -> None:
    parser = RequestParser(Recorder())
    found = []
    for piece in (b"GET / HTTP/1.1\r\n", b"Host: a\r\nContent-Length: 1\r\n\r\n", b"x"):
        parser.feed(piece)
        found.append(parser.in_head)
    assert found == [True, False, False]


# -- llhttp -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"A : b",
        b"A\t: b",
        b"A B: c",
        b"A(: b",
        b"A\xe9: b",
        b": b",
        b"A",
        b" A: b",
        b"A: b\r\n c",
        b"A: b\nC: d",
        b"A: b\rC: d",
        b"A: \0",
        b"A: \x7f",
        b"Content-Length: +5",
        b"Content-Length: 5,5",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    ],
)
def test_the_pinned_llhttp_refuses_what_we_leave_to_it(line: bytes) -> None:
    with pytest.raises(httptools.HttpParserError):
        httptools.HttpRequestParser(object()).feed_data(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")


# -- one by one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stepwise_parser_reads_a_request_and_holds_the_rest(size: int) -> None:
    seen = Recorder()
    parser = RequestParser(seen, stepwise=True)
    body = b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    raw = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" + body + b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n"
    for at in range(0, len(raw), size):
        parser.feed(raw[at : at + size])
    assert len(seen.messages) == 1
    assert parser.waiting
    parser.proceed()
    assert [message.body for message in seen.messages] == [b"", b"abc"]
    parser.proceed()
    assert len(seen.messages) == 3
    assert not parser.waiting
    parser.proceed()
    parser.feed(raw)
    assert len(seen.messages) == 4
