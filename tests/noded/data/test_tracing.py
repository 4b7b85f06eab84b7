"""Which requests are sampled, and what they go on with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import pytest

from mesh.message import Headers, Request
from noded.data.http.exchange import Exchange
from noded.data.http.tracing import Tracing

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
W3C = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-0([01])")


@dataclass
class Fake:
    request: Request
    span: Any = None


def begun(sampling: float, headers: Headers) -> tuple[dict[bytes, bytes], Any]:
    """The headers that a request goes on with, and its span."""
    exchange = Fake(Request(b"GET", b"web", b"/", list(headers)))
    Tracing(sampling).begin(cast(Exchange, exchange))
    return dict(exchange.request.headers), exchange.span


@pytest.mark.parametrize(("sampling", "flag"), [(0.0, b"0"), (1.0, b"1")])
def test_a_trace_that_begins_here_says_whether_it_is_sampled(sampling: float, flag: bytes) -> None:
    headers, span = begun(sampling, [])
    match = W3C.fullmatch(headers[b"traceparent"])
    assert match is not None
    assert match[3] == flag
    assert (span is not None) is (flag == b"1")
    assert span is None or (span.trace_id, span.span_id, span.parent_id) == (match[1], match[2], b"")


@pytest.mark.parametrize("sampling", [0.0, 1.0])
def test_a_decision_that_was_made_holds_whatever_is_configured(sampling: float) -> None:
    headers, span = begun(sampling, [(b"traceparent", b"00-%b-%b-01" % (TRACE, SPAN)), (b"tracestate", b"a=b")])
    assert headers[b"traceparent"] == b"00-%b-%b-01" % (TRACE, span.span_id)
    assert (span.trace_id, span.parent_id, headers[b"tracestate"]) == (TRACE, SPAN, b"a=b")
    off = [(b"traceparent", b"00-%b-%b-00" % (TRACE, SPAN))]
    headers, span = begun(sampling, off)
    assert (headers[b"traceparent"], span) == (off[0][1], None)


def test_who_leaves_the_decision_to_others_is_told_it() -> None:
    headers, span = begun(0.0, [(b"x-b3-traceid", TRACE), (b"x-b3-spanid", SPAN)])
    assert (headers[b"x-b3-traceid"], headers[b"x-b3-spanid"], headers[b"x-b3-sampled"]) == (TRACE, SPAN, b"0")
    assert span is None
    headers, span = begun(1.0, [(b"x-b3-traceid", TRACE), (b"x-b3-spanid", SPAN)])
    assert (headers[b"x-b3-parentspanid"], headers[b"x-b3-sampled"]) == (SPAN, b"1")
    assert headers[b"x-b3-spanid"] == span.span_id != SPAN


def test_what_cannot_be_understood_is_replaced() -> None:
    headers, span = begun(1.0, [(b"traceparent", b"nonsense")])
    assert headers[b"traceparent"] == b"00-%b-%b-01" % (span.trace_id, span.span_id)
    headers, span = begun(0.0, [(b"b3", b"nonsense")])
    assert b"b3" not in headers
    assert W3C.fullmatch(headers[b"traceparent"])


def test_where_there_is_no_collector_requests_get_ids_only() -> None:
    headers, span = begun(-1.0, [(b"b3", b"1")])
    assert headers.keys() == {b"b3", b"x-request-id"}
    assert (headers[b"b3"], span) == (b"1", None)
    assert begun(-1.0, [(b"x-request-id", b"mine")])[0] == {b"x-request-id": b"mine"}
