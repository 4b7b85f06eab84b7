"""Requests and responses as HTTP/2 has them: what RFC 9113 section 8 wants refused is, and the rest means the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.h2.headers import Decoder, Fields
from mesh.h2.messages import (
    read_request,
    read_response,
    read_trailers,
    write_request,
    write_response,
    write_trailers,
)
from mesh.http1 import BadMessage, RequestParser
from mesh.http1 import write_request as write_http1
from mesh.message import Headers, Request, Response

START = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web"), (b":path", b"/a?b=c")]


def request(*more: tuple[bytes, bytes], end: bool = True) -> Request:
    return read_request([*START, *more], end)


def without(name: bytes, *more: tuple[bytes, bytes]) -> Fields:
    return [*(field for field in START if field[0] != name), *more]


def status_of(fields: Fields, end: bool = True) -> int:
    with pytest.raises(BadMessage) as refused:
        read_request(fields, end)
    return refused.value.status


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_is_read() -> None:
    got = request((b"accept", b"*/*"), (b"te", b"trailers"))
    assert got == Request(b"GET", b"web", b"/a?b=c", [(b"accept", b"*/*"), (b"te", b"trailers")], 0)


def test_the_order_of_pseudo_headers_is_the_clients_choice() -> None:
    assert read_request(list(reversed(START)), True) == request()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="nothing"),
        pytest.param(without(b":method"), id="no method"),
        pytest.param(without(b":path"), id="no path"),
        pytest.param(without(b":scheme"), id="no scheme"),
        pytest.param(without(b":authority"), id="no authority"),
        pytest.param([*START, START[0]], id="a method twice"),
        pytest.param([*START, (b":authority", b"other")], id="an authority twice"),
        pytest.param([*START, (b":status", b"200")], id="a response's pseudo-header"),
        pytest.param([*START, (b":protocol", b"websocket")], id="extended CONNECT was not offered"),
        pytest.param([*START, (b":unknown", b"x")], id="an unknown pseudo-header"),
        pytest.param([START[0], (b"accept", b"*/*"), *START[1:]], id="a pseudo-header behind a header"),
        pytest.param(without(b":method", (b":method", b"G ET")), id="a blank in the method"),
        pytest.param(without(b":method", (b":method", b"")), id="an empty method"),
        pytest.param(without(b":path", (b":path", b"")), id="an empty path"),
        pytest.param(without(b":path", (b":path", b"a")), id="a path that does not begin with /"),
        pytest.param(without(b":path", (b":path", b"*")), id="* for GET"),
        pytest.param(without(b":path", (b":path", b"http://web/")), id="a whole URL as the path"),
        pytest.param(without(b":path", (b":path", b"/a b")), id="a blank in the path"),
        pytest.param(without(b":path", (b":path", b"/a HTTP/1.1\r\nhost: evil")), id="a request line in the path"),
        pytest.param(without(b":path", (b":path", b"/a#b")), id="a fragment"),
        pytest.param(without(b":path", (b":path", "/ä".encode())), id="a path that is not ASCII"),
        pytest.param(without(b":scheme", (b":scheme", b"ftp")), id="another scheme"),
        pytest.param(without(b":authority", (b":authority", b"user@web")), id="userinfo"),
        pytest.param(without(b":authority", (b":authority", b"web\r\nx: y")), id="a line end in the authority"),
        pytest.param(without(b":authority", (b":authority", b"")), id="an empty authority"),
        pytest.param([*START, (b"host", b"other")], id="a Host that is not the authority"),
        pytest.param([*START, (b"host", b"web"), (b"host", b"web")], id="two Hosts"),
        pytest.param([*START, (b"Accept", b"x")], id="an upper-case name"),
        pytest.param([*START, (b"", b"x")], id="an empty name"),
        pytest.param([*START, (b"a b", b"x")], id="a blank in a name"),
        pytest.param([*START, (b"a:b", b"x")], id="a colon in a name"),
        pytest.param([*START, (b"a\r\nb", b"x")], id="a line end in a name"),
        pytest.param([*START, (b"a", b"x\r\nhost: evil")], id="a line end in a value"),
        pytest.param([*START, (b"a", b"x\ny")], id="a line feed in a value"),
        pytest.param([*START, (b"a", b"x\0y")], id="a NUL in a value"),
        pytest.param([*START, (b"a", b" x")], id="a blank before a value"),
        pytest.param([*START, (b"a", b"x\t")], id="a tab behind a value"),
        pytest.param([*START, (b"connection", b"close")], id="connection"),
        pytest.param([*START, (b"keep-alive", b"5")], id="keep-alive"),
        pytest.param([*START, (b"proxy-connection", b"close")], id="proxy-connection"),
        pytest.param([*START, (b"transfer-encoding", b"chunked")], id="transfer-encoding"),
        pytest.param([*START, (b"upgrade", b"h2c")], id="upgrade"),
        pytest.param([*START, (b"http2-settings", b"AAA")], id="http2-settings"),
        pytest.param([*START, (b"te", b"gzip")], id="te other than trailers"),
        pytest.param([*START, (b"content-length", b"1"), (b"content-length", b"1")], id="two lengths"),
        pytest.param([*START, (b"content-length", b"-1")], id="a negative length"),
        pytest.param([*START, (b"content-length", b"+1")], id="a length with a sign"),
        pytest.param([*START, (b"content-length", b"1, 1")], id="a list of lengths"),
        pytest.param([*START, (b"content-length", b"5")], id="a length, and the end"),
    ],
)
def test_a_malformed_request_is_refused(fields: Fields) -> None:
    assert status_of(fields) == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param([(b":method", b"CONNECT"), (b":authority", b"web:80")], 501, id="CONNECT"),
        pytest.param(without(b":method", (b":method", b"BREW")), 501, id="a method that nobody knows"),
        pytest.param(without(b":path", (b":path", b"/" + b"a" * 16_384)), 414, id="a long path"),
        pytest.param([*START, *[(b"a", b"b")] * 101], 431, id="many headers"),
        pytest.param([*START, (b"expect", b"miracles")], 417, id="another expectation"),
    ],
)
def test_what_is_well_formed_but_not_served_is_answered(fields: Fields, status: int) -> None:
    assert status_of(fields) == status


def test_host_stands_in_for_the_authority_and_may_repeat_it() -> None:
    assert read_request(without(b":authority", (b"host", b"web")), True) == request()
    assert request((b"host", b"WEB")) == request()


def test_cookie_crumbs_are_joined() -> None:
    got = request((b"cookie", b"a=b"), (b"x", b"y"), (b"cookie", b"c=d"))
    assert got.header(b"cookie") == b"a=b; c=d"
    assert len(got.headers) == 2


def test_the_length_of_a_body_is_what_it_says_or_unknown() -> None:
    assert request((b"content-length", b"007"), end=False).length == 7
    assert request((b"content-length", b"007"), end=False).header(b"content-length") == b"7"
    assert request(end=False).length == -1
    assert request((b"content-length", b"0")).length == 0


def test_an_expectation_is_the_hops() -> None:
    got = request((b"expect", b"100-continue"), (b"content-length", b"1"), end=False)
    assert got.expects
    assert got.header(b"expect") is None
    assert not request((b"expect", b"100-continue")).expects


def test_options_asks_the_server_itself() -> None:
    fields = [(b":method", b"OPTIONS"), *without(b":method")]
    assert read_request([(n, b"*" if n == b":path" else v) for n, v in fields], True).path == b"*"


# -- responses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="nothing"),
        pytest.param([(b"a", b"b")], id="no status"),
        pytest.param([(b":status", b"20")], id="two digits"),
        pytest.param([(b":status", b"099")], id="too small"),
        pytest.param([(b":status", b"600")], id="too large"),
        pytest.param([(b":status", b"+20")], id="a sign"),
        pytest.param([(b":status", b"101")], id="switching protocols"),
        pytest.param([(b":status", b"100")], id="informational and the end"),
        pytest.param([(b":status", b"200"), (b":status", b"200")], id="a status twice"),
        pytest.param([(b":status", b"200"), (b":path", b"/")], id="a request's pseudo-header"),
        pytest.param([(b"a", b"b"), (b":status", b"200")], id="a status behind a header"),
        pytest.param([(b":status", b"200"), (b"connection", b"close")], id="a header of a connection"),
        pytest.param([(b":status", b"200"), (b"transfer-encoding", b"chunked")], id="chunked"),
        pytest.param([(b":status", b"200"), (b"content-length", b"5")], id="a length, and the end"),
        pytest.param([(b":status", b"200"), (b"Server", b"x")], id="an upper-case name"),
        pytest.param([(b":status", b"200"), (b"x", b"y\r\n")], id="a line end in a value"),
    ],
)
def test_a_malformed_response_is_refused(fields: Fields) -> None:
    with pytest.raises(BadMessage):
        read_response(fields, True, False)


def test_responses_without_a_body_keep_the_length_that_they_state() -> None:
    fields = [(b":status", b"200"), (b"content-length", b"5")]
    assert read_response(fields, True, True) == Response(200, [(b"content-length", b"5")], 0)
    fields[0] = (b":status", b"304")
    assert read_response(fields, True, False) == Response(304, [(b"content-length", b"5")], 0)
    assert read_response([(b":status", b"204"), (b"content-length", b"0")], True, False) == Response(204, [], 0)


def test_informational_responses_are_not_the_last() -> None:
    got = read_response([(b":status", b"103"), (b"link", b"</x>")], False, False)
    assert (got.status, got.headers) == (103, [(b"link", b"</x>")])


# -- trailers ---------------------------------------------------------------------------------------------------------


def test_an_applications_trailers_are_its_own() -> None:
    fields = [(b"grpc-status", b"0"), (b"x-request-id", b"1"), (b"date", b"today")]
    assert read_trailers(fields) == fields


@pytest.mark.parametrize(
    "field",
    [
        (b":status", b"200"),
        (b"content-length", b"1"),
        (b"host", b"x"),
        (b"connection", b"x"),
        (b"A", b"b"),
        (b"a", b"\n"),
    ],
)
def test_what_would_frame_a_message_is_no_trailer(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(BadMessage):
        read_trailers([(b"grpc-status", b"0"), field])


# -- onto the wire ----------------------------------------------------------------------------------------------------

names = st.from_regex(rb"[a-z][a-z0-9-]{0,12}", fullmatch=True).map(lambda name: b"x-" + name)
values = st.from_regex(rb"([!-~\x80-\xff]([ -~\x80-\xff\t]{0,20}[!-~])?)?", fullmatch=True)
headers = st.lists(
    st.tuples(names, values) | st.sampled_from([(b"cookie", b"a=b"), (b"authorization", b"s")]), max_size=8
)
paths = st.from_regex(rb"/[!-\"$-~]{0,200}", fullmatch=True)
requests = st.builds(
    Request,
    st.sampled_from([b"GET", b"POST", b"PROPFIND"]),
    st.sampled_from([b"web", b"web.shop:8080", b"[fd00::1]:80"]),
    paths,
    headers.map(lambda fields: list(dict(fields).items())),
    st.just(-1),
    expects=st.booleans(),
    scheme=st.sampled_from([b"http", b"https"]),
)


def in_order(message: Request) -> Request:
    """Cookies are joined behind the other headers."""
    message.headers.sort(key=lambda field: field[0] == b"cookie")
    return message


@given(st.lists(requests, min_size=1, max_size=3))
def test_a_written_request_is_read_as_it_was(written: list[Request]) -> None:
    decoder = Decoder()
    for one in written * 2:
        assert read_request(decoder.decode(write_request(one)), False) == in_order(one)


@given(requests)
def test_what_is_read_here_is_the_same_in_http1(one: Request) -> None:
    got: list[Request] = []

    class Sink:
        def on_request(self, request: Request, keep_alive: bool) -> None:
            got.append(request)

        def on_body(self, data: bytes) -> None: ...
        def on_end(self, trailers: Headers) -> None: ...
        def on_rest(self, data: bytes) -> None: ...

    read = read_request(Decoder().decode(write_request(one)), False)
    RequestParser(Sink()).feed(write_http1(read))
    read.scheme = b"http"
    assert got == [read]


@given(st.integers(200, 599), headers)
def test_a_written_response_is_read_as_it_was(status: int, fields: Headers) -> None:
    fields = [field for field in fields if field[0] != b"cookie"]
    block = write_response(Response(status, fields, -1))
    read = read_response(Decoder().decode(block), False, False)
    assert (read.status, read.headers) == (status, fields)


def test_a_message_that_is_read_twice_is_not_the_same_object() -> None:
    """Routes edit headers in place."""
    decoder, block = Decoder(), write_request(request((b"a", b"b")))
    first = read_request(decoder.decode(block), True)
    first.headers.append((b"edited", b"yes"))
    first.path = b"/elsewhere"
    assert read_request(decoder.decode(block), True) == request((b"a", b"b"))
    block = write_response(Response(200, [(b"a", b"b")], -1))
    read_response(decoder.decode(block), False, False).headers.clear()
    assert read_response(decoder.decode(block), False, False).headers == [(b"a", b"b")]


def test_the_same_block_is_read_anew_where_it_means_something_else() -> None:
    decoder, block = Decoder(), write_response(Response(200, [(b"content-length", b"5")]))
    assert read_response(decoder.decode(block), True, True).length == 0
    assert read_response(decoder.decode(block), False, False).length == 5
    with pytest.raises(BadMessage):
        read_response(decoder.decode(block), True, False)
    block = write_request(request((b"content-length", b"5"), end=False))
    assert read_request(decoder.decode(block), False).length == 5
    with pytest.raises(BadMessage):
        read_request(decoder.decode(block), True)


def test_what_belongs_to_a_connection_is_left_out() -> None:
    block = write_response(
        Response(200, [(b"connection", b"x"), (b"upgrade", b"y"), (b"host", b"z"), (b"a", b"b")], -1)
    )
    assert Decoder().decode(block) == [(b":status", b"200"), (b"a", b"b")]
    assert Decoder().decode(write_trailers([(b"content-length", b"5"), (b"a", b"b")])) == [(b"a", b"b")]


@pytest.mark.parametrize("field", [(b"A", b"b"), (b"", b"b"), (b"a b", b"c"), (b"a", b"b\r\nc: d"), (b"a", b"\0")])
def test_no_edit_writes_what_is_no_header(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        write_response(Response(200, [field]))


def test_secrets_are_never_to_be_indexed() -> None:
    assert write_trailers([(b"authorization", b"s")])[0] & 0xF0 == 0x10
