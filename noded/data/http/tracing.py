"""Requests' ids and spans: made or continued at a request's start, gathered for the control process at its end."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from mesh.trace_context import OURS, Context, read, write
from noded.link import Span

if TYPE_CHECKING:
    from noded.data.http.exchange import Exchange
    from noded.data.http.session import Session
    from noded.data.http.tally import RequestEdge, RequestTally

MAX_SPANS = 1000
"""That wait to be sent; more within a second are dropped and counted."""
_MAX_TEXT = 1024
_SAMPLED = Context(b"", b"", True)


class SpanContext:
    """Of a request that is sampled."""

    __slots__ = ("parent_id", "span_id", "trace_id")

    def __init__(self, trace_id: bytes, span_id: bytes, parent_id: bytes) -> None:
        self.trace_id, self.span_id, self.parent_id = trace_id, span_id, parent_id


class Tracing:
    """Of a worker where anything of it is wanted."""

    def __init__(self, sampling: float) -> None:
        """`sampling`: of traces that begin here, the share that is sampled; negative: ids for requests, no spans."""
        self._sampling = sampling
        self._spans: list[Span] = []
        self.dropped = 0

    def begin(self, exchange: Exchange) -> None:
        """A request has come: see to it that it has an id and is part of a trace."""
        request = exchange.request
        found = dict(request.headers)
        if b"x-request-id" not in found:
            request.headers.append((b"x-request-id", _uuid()))
        if self._sampling < 0:
            return
        if not OURS.isdisjoint(found):
            self._continue(exchange, read(found))
        elif random.random() < self._sampling:
            self._continue(exchange, _SAMPLED)
        else:  # most of them: say so, and no more
            request.headers.append((b"traceparent", b"00-%032x-%016x-00" % (_bits(128), _bits(64))))

    def _continue(self, exchange: Exchange, came: Context | None) -> None:
        request = exchange.request
        context = came or Context(b"", b"", None)
        sampled = random.random() < self._sampling if context.sampled is None else context.sampled
        if not sampled and came is not None and came.sampled is not None:
            return  # as it is
        parent, span_id = context.span_id, b"%016x" % _bits(64)
        trace_id = context.trace_id or b"%032x" % _bits(128)
        if not sampled and parent:
            span_id, parent = parent, b""  # whoever asked is to know the decision; there is no span here
        now = Context(trace_id, span_id, sampled, context.kind, context.short)
        request.headers = write(request.headers, now, parent)
        if sampled:
            exchange.span = SpanContext(trace_id, span_id, parent)

    def end(
        self,
        span: SpanContext,
        session: Session,
        exchange: Exchange,
        edge: RequestEdge,
        tally: RequestTally,
        seconds: float,
    ) -> None:
        """A request that is sampled is over."""
        if len(self._spans) >= MAX_SPANS:
            self.dropped += 1
            return
        request, response, flow = exchange.request, exchange.response, session.flow
        headers = dict(request.headers)
        near = edge.source if edge.outbound else edge.destination
        end = time.time_ns()
        self._spans.append(
            Span(
                trace_id=span.trace_id.decode(),
                span_id=span.span_id.decode(),
                parent_id=span.parent_id.decode(),
                server=not edge.outbound,
                start=end - int(seconds * 1e9),
                end=end,
                workload=flow.uid,
                app=near.app,
                source=f"{edge.source.namespace}/{edge.source.workload}",
                destination=f"{edge.destination.namespace}/{edge.destination.workload}",
                service=edge.service,
                method=_text(request.method),
                authority=_text(request.authority),
                path=_text(exchange.asked or request.path),
                protocol="2" if session.http2 else "1.1",
                code=response.status if response is not None else 0,
                grpc=exchange.grpc_status.decode("latin-1")[:16] if exchange.grpc_status is not None else "",
                flags=exchange.flags,
                reason=exchange.reason[:_MAX_TEXT],
                route=tally.route.key if tally.route is not None else "",
                client=flow.client,
                upstream=tally.upstream,
                request_id=_text(headers.get(b"x-request-id", b"")),
                user_agent=_text(headers.get(b"user-agent", b"")),
                received=exchange.received,
                sent=exchange.sent,
            )
        )

    def take(self) -> tuple[Span, ...]:
        """Those that ended since the last call."""
        spans, self._spans = self._spans, []
        return tuple(spans)


def _bits(count: int) -> int:
    """Random, but not 0, which is no id."""
    return random.getrandbits(count) or 1


def _text(value: bytes) -> str:
    return value[:_MAX_TEXT].decode("latin-1")


def _uuid() -> bytes:
    """A version 4 UUID (RFC 9562)."""
    digits = b"%032x" % random.getrandbits(128)
    variant = b"89ab"[digits[16] & 3]
    return b"%b-%b-4%b-%c%b-%b" % (digits[:8], digits[8:12], digits[13:16], variant, digits[17:20], digits[20:])
