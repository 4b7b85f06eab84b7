"""Every way known to make two parsers disagree: refused, in whatever pieces, and nothing of it is passed on."""

from __future__ import annotations

import pytest

from mesh.http1 import BadMessage, Limits, RequestParser, ResponseParser
from mesh.http1.heads import _meanings
from tests.mesh.http1_ends import Recorder, read_requests, read_responses, singly

_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def _with(*lines: bytes) -> bytes:
    return _HEAD + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


BAD_REQUESTS = {
    "both lengths": (_with(b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400),
    "both lengths, the other way round": (_with(b"Transfer-Encoding: chunked", b"Content-Length: 3"), 400),
    "two lengths": (_with(b"Content-Length: 3", b"Content-Length: 4"), 400),
    "one length twice": (_with(b"Content-Length: 3", b"content-length: 3"), 400),
    "lengths in a list": (_with(b"Content-Length: 5,5"), 400),
    "lengths in a list with a blank": (_with(b"Content-Length: 5, 5"), 400),
    "length with a plus": (_with(b"Content-Length: +5"), 400),
    "length with a minus": (_with(b"Content-Length: -1"), 400),
    "hexadecimal length": (_with(b"Content-Length: 0x5"), 400),
    "length with an exponent": (_with(b"Content-Length: 1e1"), 400),
    "length with an underscore": (_with(b"Content-Length: 1_0"), 400),
    "length with a blank": (_with(b"Content-Length: 1 0"), 400),
    "quoted length": (_with(b'Content-Length: "5"'), 400),
    "length in other digits": (_with("Content-Length: ٣".encode()), 400),
    "empty length": (_with(b"Content-Length:"), 400),
    "length of 2**63": (_with(b"Content-Length: 9223372036854775808"), 400),
    "length of 2**64": (_with(b"Content-Length: 18446744073709551616"), 400),
    "length of 2**64 + 3": (_with(b"Content-Length: 18446744073709551619"), 400),
    "length of very many digits": (_with(b"Content-Length: " + b"0" * 100 + b"3"), 400),
    "unknown coding": (_with(b"Transfer-Encoding: xchunked"), 400),
    "chunked and another": (_with(b"Transfer-Encoding: gzip, chunked"), 400),
    "chunked, not last": (_with(b"Transfer-Encoding: chunked, identity"), 400),
    "chunked twice": (_with(b"Transfer-Encoding: chunked, chunked"), 400),
    "two codings": (_with(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "a coding, then chunked": (_with(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"), 400),
    "identity": (_with(b"Transfer-Encoding: identity"), 400),
    "coding with a parameter": (_with(b"Transfer-Encoding: chunked;q=1"), 400),
    "coding with a comma": (_with(b"Transfer-Encoding: ,chunked"), 400),
    "quoted coding": (_with(b'Transfer-Encoding: "chunked"'), 400),
    "coding after a vertical tab": (_with(b"Transfer-Encoding: \x0bchunked"), 400),
    "coding before a form feed": (_with(b"Transfer-Encoding: chunked\x0c"), 400),
    "coding with a byte above 127": (_with(b"Transfer-Encoding: chunked\xa0"), 400),
    "empty coding": (_with(b"Transfer-Encoding:"), 400),
    "coding with a blank before the colon": (_with(b"Transfer-Encoding : chunked"), 400),
    "coding with a tab before the colon": (_with(b"Transfer-Encoding\t: chunked"), 400),
    "chunked in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "folded value": (_with(b"A: b", b" c"), 400),
    "folded with a tab": (_with(b"A: b", b"\tc"), 400),
    "folded coding": (_with(b"Transfer-Encoding:", b" chunked"), 400),
    "blank before the first header": (b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n", 400),
    "line of blanks": (_with(b"A: b", b" "), 400),
    "bare LF in a head": (_HEAD + b"A: b\nC: d\r\n\r\n", 400),
    "bare LFs only": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LF at a head's end": (_HEAD + b"\n", 400),
    "bare CR in a value": (_HEAD + b"A: b\rC: d\r\n\r\n", 400),
    "bare CR at a line's end": (_HEAD + b"A: b\r\r\n\r\n", 400),
    "bare CR before a name": (_HEAD + b"\rA: b\r\n\r\n", 400),
    "bare CR in the request line": (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    "NUL in a value": (_with(b"A: b\0c"), 400),
    "NUL in a name": (_with(b"A\0: b"), 400),
    "control in a value": (_with(b"A: b\x01"), 400),
    "escape in a value": (_with(b"A: \x1b[2J"), 400),
    "DEL in a value": (_with(b"A: b\x7f"), 400),
    "blank before the colon": (_with(b"A : b"), 400),
    "tab before the colon": (_with(b"A\t: b"), 400),
    "blank in a name": (_with(b"A B: c"), 400),
    "no name": (_with(b": b"), 400),
    "no colon": (_with(b"A"), 400),
    "bracket in a name": (_with(b"A(b): c"), 400),
    "slash in a name": (_with(b"A/b: c"), 400),
    "name with a byte above 127": (_with(b"A\xe9: c"), 400),
    "name in quotes": (_with(b'"A": c'), 400),
    "a colon first, as in HTTP/2": (_with(b":authority: c"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (_with(b"Host: b"), 400),
    "one host twice": (_with(b"Host: a"), 400),
    "two hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "host with a blank": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "hosts in a list": (b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
    "host with an escape": (b"GET / HTTP/1.1\r\nHost: %61\r\n\r\n", 400),
    "host with a query": (b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 400),
    "host with a fragment": (b"GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", 400),
    "host with a backslash": (b"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", 400),
    "host with a byte above 127": (b"GET / HTTP/1.1\r\nHost: \xe4\r\n\r\n", 400),
    "host with a port that is none": (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "host with an empty port": (b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", 400),
    "host with port 0": (b"GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", 400),
    "host with a port too large": (b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
    "host with two ports": (b"GET / HTTP/1.1\r\nHost: a:80:90\r\n\r\n", 400),
    "host that is too long": (b"GET / HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n", 400),
    "IPv6 address without brackets": (b"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", 400),
    "IPv6 address that is none": (b"GET / HTTP/1.1\r\nHost: [1::2::3]\r\n\r\n", 400),
    "target's host another": (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target's port another": (b"GET http://a:81/ HTTP/1.1\r\nHost: a:80\r\n\r\n", 400),
    "target with a user": (b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    "target with user and password": (b"GET http://a:b@c/ HTTP/1.1\r\nHost: c\r\n\r\n", 400),
    "target without a host": (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target of another scheme": (b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target of a local scheme": (b"GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a backslash for a host": (b"GET http://a\\@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    "target that is no path": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target that is a host": (b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "empty target": (b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a fragment": (b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a byte above 127": (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a blank": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a tab": (b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a NUL": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with DEL": (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "asterisk without OPTIONS": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target that is too long": (b"GET /" + b"a" * 16384 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "two blanks": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two blanks before the version": (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "blank before the method": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "blank after the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "tab for a blank": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two empty lines first": (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "lower-case method": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "unknown method": (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    "method of another protocol": (b"DESCRIBE / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "method that is no token": (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no method": (b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "HTTP/0.9 with its version": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/2": (b"GET / HTTP/2\r\nHost: a\r\n\r\n", 505),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/11": (b"GET / HTTP/11\r\nHost: a\r\n\r\n", 400),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "HTTP/01.1": (b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", 400),
    "lower-case http": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "another protocol's name": (b"GET / ICE/1.0\r\nHost: a\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "other expectation": (_with(b"Content-Length: 1", b"Expect: 200-ok"), 417),
    "two expectations": (_with(b"Content-Length: 1", b"Expect: 100-continue", b"Expect: 100-continue"), 417),
    "expectations in a list": (_with(b"Content-Length: 1", b"Expect: 100-continue, x"), 417),
    "Connection: content-length": (_with(b"Content-Length: 1", b"Connection: content-length"), 400),
    "Connection: transfer-encoding": (_with(b"Connection: Transfer-Encoding"), 400),
    "Connection: host": (_with(b"Connection: close, Host"), 400),
    "Connection: authorization": (_with(b"Connection: authorization"), 400),
    "Connection: cookie": (_with(b"Connection: cookie"), 400),
    "Connection: x-forwarded-for": (_with(b"Connection: close", b"Connection: X-Forwarded-For"), 400),
    "Connection: traceparent": (_with(b"Connection: traceparent"), 400),
    "Connection: grpc-timeout": (_with(b"Connection: grpc-timeout"), 400),
    "Connection names no name": (_with(b"Connection: a b"), 400),
    "Connection names no name, at length": (_with(b"Connection: " + b"a," * 200 + b"a b"), 400),
    "too many headers": (_with(*[b"A: b"] * 100), 431),
    "too large a head": (_with(*[b"A: " + b"b" * 1000] * 62), 431),
    "too large a header": (_HEAD + b"A: " + b"b" * 62000, 431),
    "no chunk size": (_CHUNKED + b"\r\n", 400),
    "chunk size that is none": (_CHUNKED + b"g\r\n", 400),
    "chunk size with 0x": (_CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with a plus": (_CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with a minus": (_CHUNKED + b"-5\r\n", 400),
    "chunk size with an underscore": (_CHUNKED + b"1_0\r\n", 400),
    "chunk size after a blank": (_CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size before a blank": (_CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n", 400),
    "chunk size before a tab and an extension": (_CHUNKED + b"5\t;a\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size of 2**63": (_CHUNKED + b"8000000000000000\r\n", 400),
    "chunk size of 2**64 + 5": (_CHUNKED + b"10000000000000005\r\nhello\r\n", 400),
    "chunk size with many zeros": (_CHUNKED + b"00000000000000005\r\nhello\r\n", 400),
    "chunk size in other digits": (_CHUNKED + "٥\r\nhello\r\n".encode(), 400),
    "chunk size in quotes": (_CHUNKED + b'"5"\r\nhello\r\n', 400),
    "bare LF after a chunk size": (_CHUNKED + b"5\nhello\r\n0\r\n\r\n", 400),
    "bare CR after a chunk size": (_CHUNKED + b"5\rhello\r\n0\r\n\r\n", 400),
    "bare LF in an extension": (_CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n", 400),
    "bare CR in an extension": (_CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
    "bare CR before an extension's end": (_CHUNKED + b"5;a\r\r\nhello\r\n0\r\n\r\n", 400),
    "NUL in an extension": (_CHUNKED + b"5;a=\0\r\nhello\r\n0\r\n\r\n", 400),
    "empty extension": (_CHUNKED + b"5;\r\nhello\r\n0\r\n\r\n", 400),
    "extension without an end": (_CHUNKED + b'5;a="b\r\nhello\r\n0\r\n\r\n', 400),
    "quoted line end in an extension": (_CHUNKED + b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', 400),
    "extension that is too long": (_CHUNKED + b"5;a=" + b"b" * 1100, 400),
    "many long extensions": (_CHUNKED + (b"1;a=" + b"b" * 500 + b"\r\nx\r\n") * 40, 400),
    "chunk longer than its size": (_CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n", 400),
    "chunk shorter than its size": (_CHUNKED + b"6\r\nhello\r\n0\r\n\r\n", 400),
    "bare LF after a chunk": (_CHUNKED + b"5\r\nhello\n0\r\n\r\n", 400),
    "bare CR after a chunk": (_CHUNKED + b"5\r\nhello\r0\r\n\r\n", 400),
    "bare LF after the last chunk": (_CHUNKED + b"0\n\n", 400),
    "bare LF for the trailers' end": (_CHUNKED + b"0\r\n\n", 400),
    "bare LF in a trailer": (_CHUNKED + b"0\r\nx-a: b\nx-c: d\r\n\r\n", 400),
    "bare CR in a trailer": (_CHUNKED + b"0\r\nx-a: b\rx-c: d\r\n\r\n", 400),
    "NUL in a trailer": (_CHUNKED + b"0\r\nx-a: \0\r\n\r\n", 400),
    "folded trailer": (_CHUNKED + b"0\r\nx-a: b\r\n c\r\n\r\n", 400),
    "blank before a trailer's colon": (_CHUNKED + b"0\r\nx-a : b\r\n\r\n", 400),
    "trailer without a name": (_CHUNKED + b"0\r\n: b\r\n\r\n", 400),
    "trailer without a colon": (_CHUNKED + b"0\r\nx-a\r\n\r\n", 400),
    "request for a trailer": (_CHUNKED + b"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "trailer content-length": (_CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", 400),
    "trailer transfer-encoding": (_CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "trailer host": (_CHUNKED + b"0\r\nHost: b\r\n\r\n", 400),
    "trailer connection": (_CHUNKED + b"0\r\nConnection: close\r\n\r\n", 400),
    "trailer authorization": (_CHUNKED + b"0\r\nAuthorization: x\r\n\r\n", 400),
    "trailer set-cookie": (_CHUNKED + b"0\r\nSet-Cookie: a=b\r\n\r\n", 400),
    "trailer content-encoding": (_CHUNKED + b"0\r\nContent-Encoding: gzip\r\n\r\n", 400),
    "trailer x-forwarded-for": (_CHUNKED + b"0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", 400),
    "too many trailers": (_CHUNKED + b"0\r\n" + b"x-a: b\r\n" * 101 + b"\r\n", 431),
    "too large trailers": (_CHUNKED + b"0\r\n" + (b"x-a: " + b"b" * 1000 + b"\r\n") * 62, 431),
    "too large a trailer": (_CHUNKED + b"0\r\nx-a: " + b"b" * 62000, 431),
}


@pytest.mark.parametrize(("raw", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_request_that_could_be_read_in_two_ways_is_refused(raw: bytes, status: int) -> None:
    before = b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n"
    after = b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"
    whole = read_requests(before + raw + after)
    one_by_one = read_requests(*singly(before + raw + after))
    for seen in (whole, one_by_one):
        assert seen.failed is not None
        assert seen.messages[0].trailers == []
        assert all(message.trailers is None for message in seen.messages[1:]), "part of it passed for a whole message"
    assert whole.failed is not None
    assert whole.failed[0] == status
    assert one_by_one.failed is not None
    assert one_by_one.failed[0] == status
    assert [message.head for message in whole.messages] == [message.head for message in one_by_one.messages]


@pytest.mark.parametrize(("raw", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_refused_request_stays_refused_however_often_it_comes(raw: bytes, status: int) -> None:
    assert [read_requests(raw).failed for _ in range(3)].count(read_requests(raw).failed) == 3


_OK = b"HTTP/1.1 200 OK\r\n"

BAD_RESPONSES = {
    "both lengths": _OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": _OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "lengths in a list": _OK + b"Content-Length: 3, 3\r\n\r\nabc",
    "length with a plus": _OK + b"Content-Length: +3\r\n\r\nabc",
    "unknown coding": _OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "chunked and another": _OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked twice": _OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded value": _OK + b"A: b\r\n c\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF in a head": _OK + b"A: b\nContent-Length: 0\r\n\r\n",
    "bare CR": _OK + b"A: b\rContent-Length: 0\r\n\r\n",
    "NUL": _OK + b"A: \0\r\n\r\n",
    "blank before the colon": _OK + b"Content-Length : 0\r\n\r\n",
    "no colon": _OK + b"A\r\n\r\n",
    "control in the reason": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "status of 99": b"HTTP/1.1 099 OK\r\n\r\n",
    "status of 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status with a plus": b"HTTP/1.1 +20 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "no status, and no more": b"HTTP/1.1 \r\n\r\n",
    "status after two blanks": b"HTTP/1.1  200 OK\r\n\r\n",
    "tab after the status": b"HTTP/1.1 200\tOK\r\n\r\n",
    "empty line first": b"\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "Connection: content-length": _OK + b"Content-Length: 0\r\nConnection: content-length\r\n\r\n",
    "Connection: set-cookie": _OK + b"Set-Cookie: a\r\nConnection: close, set-cookie\r\n\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
    "204 with a coding": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "100 with a length": b"HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\nabc",
    "100 with a coding": b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "100 in HTTP/1.0": b"HTTP/1.0 100 Continue\r\n\r\n",
    "101 that nobody asked for": b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "101 without a protocol": b"HTTP/1.1 101 S\r\n\r\n",
    "101 for HTTP/2": b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "too many informational": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 33,
    "too many headers": _OK + b"A: b\r\n" * 101 + b"\r\n",
    "too large a head": _OK + b"A: " + b"b" * 62000,
    "chunk size that is none": _OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "trailer content-length": _OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("raw", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_response_that_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    for seen in (read_responses(raw), read_responses(*singly(raw))):
        assert seen.failed is not None
        assert all(message.trailers is None for message in seen.messages)


def test_a_target_that_does_not_end_is_refused() -> None:
    seen = read_requests(b"GET /", *[b"a" * 1000] * 17)
    assert seen.failed is not None
    assert seen.failed[0] == 414


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    ok = _OK + b"Content-Length: 0\r\n\r\n"
    for pieces in ((ok + ok,), singly(ok + ok)):
        seen = read_responses(*pieces)
        assert len(seen.messages) == 1
        assert seen.failed is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 2",
        _OK + b"Content-Length: 3\r\n\r\nab",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_an_answer_cut_short_is_refused(raw: bytes) -> None:
    seen = read_responses(raw, eof=True)
    assert seen.failed is not None
    assert all(message.trailers is None for message in seen.messages)


def test_an_answer_to_the_second_request_is_missing_when_the_server_closes_after_the_first() -> None:
    seen = read_responses(_OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n", methods=(b"GET", b"GET"), eof=True)
    assert len(seen.messages) == 1
    assert seen.failed is not None


def test_two_lengths_are_refused_even_if_llhttp_let_them_pass() -> None:
    with pytest.raises(BadMessage):
        _meanings([b"Content-Length: 3", b"Content-Length: 3"], old=False)
    with pytest.raises(BadMessage):
        _meanings([b"Content-Length: 3", b"Transfer-Encoding: chunked"], old=False)


def test_a_failed_parser_reads_no_more() -> None:
    requests = RequestParser(Recorder())
    responses = ResponseParser(Recorder())
    responses.expect(b"GET")
    for parser in (requests, responses):
        with pytest.raises(BadMessage):
            parser.feed(b"\0")
        with pytest.raises(BadMessage):
            parser.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(BadMessage):
        responses.eof()


def test_what_is_sent_before_an_upgrade_is_answered_is_bounded() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert read_requests(head, b"x" * 65536).failed is None
    assert read_requests(head, b"x" * 65536, b"x").failed is not None


def test_limits_may_be_others() -> None:
    limits = Limits(head=200, headers=2, target=10)
    assert read_requests(b"GET /123456789 HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n", limits=limits).failed is None
    refused = {
        b"GET /1234567890 HTTP/1.1\r\nHost: a\r\n\r\n": 414,
        b"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\nD: e\r\n\r\n": 431,
        b"GET / HTTP/1.1\r\nHost: a\r\nB: " + b"c" * 200 + b"\r\n\r\n": 431,
    }
    for raw, status in refused.items():
        assert read_requests(raw).failed is None
        seen = read_requests(raw, limits=limits)
        assert seen.failed is not None
        assert seen.failed[0] == status
