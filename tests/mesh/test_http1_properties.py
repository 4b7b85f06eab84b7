"""Whatever is accepted says one thing: however it is cut, written and read again, by us and by a second parser."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.http1 import BadMessage, RequestParser, ResponseParser, chunk, last_chunk, write_request, write_response
from mesh.http1.fields import forbidden_trailer
from mesh.http1.heads import METHODS
from mesh.message import Headers, Request, Response
from tests.mesh.http1_ends import Recorder, Seen, h11_requests, h11_responses, singly
from tests.mesh.test_http1_hostile import BAD_REQUESTS, BAD_RESPONSES

_TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_OWN = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"content-length"}
_OWN |= {b"host", b"expect", b"http2-settings"}

names = st.text(_TOKEN, min_size=1, max_size=12).map(str.encode).filter(lambda name: name not in _OWN)
values = (
    st.lists(st.sampled_from([9, *range(32, 127), *range(128, 256)]), max_size=20)
    .map(bytes)
    .map(lambda value: value.strip(b" \t"))
)
headers = st.lists(st.tuples(names, values), max_size=8)
trailers = st.lists(st.tuples(names.filter(lambda name: not forbidden_trailer(name)), values), max_size=3)
authorities = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}(:[1-9][0-9]{0,3})?|\[::[0-9a-f]{1,4}\](:80)?", fullmatch=True)
paths = st.text("".join(map(chr, range(33, 127))).replace("#", ""), max_size=30).map(lambda rest: b"/" + rest.encode())


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, bytes, Headers]:
    """A request as our parser would give it, its body, its trailers."""
    fields = draw(headers)
    body = draw(st.binary(max_size=50))
    upgrade = b""
    shape = draw(st.sampled_from(["none", "length", "chunked", "upgrade"]))
    length = 0
    ends: Headers = []
    if shape == "length":
        length = len(body)
        fields = [*fields, (b"content-length", b"%d" % length)]
    elif shape == "chunked":
        length, ends = -1, draw(trailers)
    else:
        body = b""
        upgrade = b"websocket" if shape == "upgrade" else b""
    if draw(st.booleans()):
        fields = [*fields, (b"te", b"trailers")]
    method = draw(st.sampled_from(sorted(METHODS)))
    path = b"*" if method == b"OPTIONS" and draw(st.booleans()) else draw(paths)
    expects = bool(length) and draw(st.booleans())
    return Request(method, draw(authorities).encode(), path, fields, length, upgrade, expects), body, ends


@st.composite
def responses(draw: st.DrawFn) -> tuple[Response, bytes, Headers, bytes]:
    """A response as our parser would give it, its body, its trailers, the method that it answers."""
    fields = draw(headers)
    body = draw(st.binary(max_size=50))
    status = draw(st.sampled_from([200, 201, 204, 206, 299, 304, 404, 503, 599]))
    method = draw(st.sampled_from([b"GET", b"HEAD"]))
    ends: Headers = []
    if status == 204:
        return Response(204, fields), b"", ends, method
    if draw(st.booleans()):
        said = (b"content-length", b"%d" % len(body))
        bodiless = method == b"HEAD" or status == 304
        return Response(status, [*fields, said], 0 if bodiless else len(body)), b"" if bodiless else body, ends, method
    if method == b"HEAD" or status == 304:
        return Response(status, fields), b"", ends, method
    return Response(status, fields, -1), body, draw(trailers), method


def _request_bytes(request: Request, body: bytes, ends: Headers) -> bytes:
    head = write_request(request)
    return head + (chunk(body) + last_chunk(ends) if request.length < 0 else body)


def _response_bytes(response: Response, body: bytes, ends: Headers, method: bytes) -> bytes:
    head = write_response(response, keep_alive=True, head=method == b"HEAD")
    return head + (chunk(body) + last_chunk(ends) if response.length < 0 else body)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


cuts = st.lists(st.integers(0, 10_000), max_size=6)


@settings(deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), cuts)
def test_requests_written_and_read_again_are_the_same_in_whatever_pieces(
    messages: list[tuple[Request, bytes, Headers]], cuts: list[int]
) -> None:
    data = b"".join(_request_bytes(*message) for message in messages)
    for pieces in ([data], singly(data), _cut(data, cuts)):
        seen = Recorder()
        parser = RequestParser(seen)
        for piece in pieces:
            parser.feed(piece)
            while parser.held:
                parser.proceed()
        assert seen.failed is None
        assert [(found.head, found.body, found.trailers) for found in seen.messages] == messages


@settings(deadline=None)
@given(st.lists(responses(), min_size=1, max_size=3), cuts)
def test_responses_written_and_read_again_are_the_same_in_whatever_pieces(
    messages: list[tuple[Response, bytes, Headers, bytes]], cuts: list[int]
) -> None:
    data = b"".join(_response_bytes(*message) for message in messages)
    for pieces in ([data], singly(data), _cut(data, cuts)):
        seen = Recorder()
        parser = ResponseParser(seen)
        for *_, method in messages:
            parser.expect(method)
        for piece in pieces:
            parser.feed(piece)
        parser.eof()
        assert [(found.head, found.body, found.trailers) for found in seen.messages] == [
            message[:3] for message in messages
        ]


@settings(deadline=None)
@given(st.lists(responses(), min_size=1, max_size=3))
def test_h11_reads_the_responses_that_were_meant(messages: list[tuple[Response, bytes, Headers, bytes]]) -> None:
    data = b"".join(_response_bytes(*message) for message in messages)
    found = h11_responses(data, *(method for *_, method in messages))
    assert len(found) == len(messages)
    for there, (response, body, ends, _) in zip(found, messages, strict=True):
        assert (there.status, there.body, there.trailers) == (response.status, body, ends)
        own = [pair for pair in there.headers if pair[0] != b"transfer-encoding"]
        assert own == response.headers


# -- hostile input ----------------------------------------------------------------------------------------------------

_SEEDS = [raw for raw, _ in BAD_REQUESTS.values() if len(raw) < 2000] + [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/b?c HTTP/1.1\r\nHost: A\r\nConnection: x-y, te\r\nX-Y: 1\r\nTE: trailers, gzip\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx-t: u\r\n\r\n",
    b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nab",
]
_NASTY = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x0c", b":", b",", b";", b"\"", b"\x7f", b"\x80",
    b"0", b"1", b"5", b"0\r\n\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Host: b\r\n", b"#", b"?",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: content-length\r\n", b"TE: trailers\r\n",
    b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1", b"HTTP/1.0", b"chunked", b", chunked", b"\xc2\xa0", b"@", b"\\",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n", b"A: b\r\n",
]  # fmt: skip


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """One or two messages, damaged."""
    data = b"".join(draw(st.lists(st.sampled_from(_SEEDS), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
        data = data[:at] + draw(st.sampled_from(_NASTY)) + data[at + gone :]
    return data


def _everything(pieces: list[bytes] | tuple[bytes, ...]) -> Recorder:
    """What is read of the pieces, as if every upgrade were declined."""
    seen = Recorder()
    parser = RequestParser(seen)
    try:
        for piece in pieces:
            parser.feed(piece)
            while parser.held:
                parser.proceed()
    except BadMessage as error:
        seen.failed = error.status, error.reason
    return seen


def _forwarded(seen: Seen) -> bytes:
    request = seen.head
    assert isinstance(request, Request)
    assert seen.trailers is not None
    request.authority = request.authority or b"10.0.0.1"
    return _request_bytes(request, seen.body, seen.trailers)


@settings(max_examples=200, deadline=None)
@given(hostile(), cuts)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", [])
def test_hostile_input_is_the_same_in_whatever_pieces(data: bytes, cuts: list[int]) -> None:
    whole = _everything([data])
    for pieces in (singly(data), _cut(data, cuts)):
        cut = _everything(pieces)
        complete = [seen for seen in cut.messages if seen.trailers is not None]
        assert complete == [seen for seen in whole.messages if seen.trailers is not None]
        assert (cut.failed is None) == (whole.failed is None)


@settings(max_examples=400, deadline=None)
@given(hostile())
def test_what_is_forwarded_of_hostile_input_is_to_h11_exactly_what_it_was_to_us(data: bytes) -> None:
    complete = [seen for seen in _everything([data]).messages if seen.trailers is not None]
    there = h11_requests(b"".join(_forwarded(seen) for seen in complete))
    assert len(there) == len(complete)
    for theirs, ours in zip(there, complete, strict=True):
        request = ours.head
        assert isinstance(request, Request)
        assert (theirs.method, theirs.target) == (request.method, request.path)
        assert (theirs.body, theirs.trailers) == (ours.body, ours.trailers)
        fields = dict(theirs.headers)
        assert [value for name, value in theirs.headers if name == b"host"] == [request.authority]
        assert (b"transfer-encoding" in fields) == (request.length < 0)
        assert fields.get(b"upgrade", b"") == request.upgrade
        assert (b"expect" in fields) == request.expects
        rest = [pair for pair in theirs.headers if pair[0] not in _OWN]
        assert rest == [pair for pair in request.headers if pair[0] not in _OWN]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([raw for raw in BAD_RESPONSES.values() if len(raw) < 2000]),
    st.integers(0, 200),
    st.sampled_from(_NASTY),
    cuts,
)
def test_hostile_responses_are_the_same_in_whatever_pieces(raw: bytes, at: int, nasty: bytes, cuts: list[int]) -> None:
    data = raw[:at] + nasty + raw[at:]
    found = []
    for pieces in ([data], singly(data), _cut(data, cuts)):
        seen = Recorder()
        parser = ResponseParser(seen)
        parser.expect(b"GET")
        parser.expect(b"GET")
        try:
            for piece in pieces:
                parser.feed(piece)
            parser.eof()
        except BadMessage as error:
            seen.failed = error.status, ""
        found.append(([message for message in seen.messages if message.trailers is not None], seen.failed is None))
    assert found[0] == found[1] == found[2]
