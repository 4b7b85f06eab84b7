"""Which trace a request belongs to, as its headers say: W3C's `traceparent`, or B3 in one header or several.

https://www.w3.org/TR/trace-context/ and https://github.com/openzipkin/b3-propagation. A request goes on with the kind
of headers that it came with; one that had none gets W3C's. What is malformed counts as absent, as both demand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mesh.message import Headers

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_B3 = re.compile(rb"([0-9a-f]{16}(?:[0-9a-f]{16})?)-([0-9a-f]{16})(?:-([01d]))?(?:-([0-9a-f]{16}))?")
_TRACE, _SPAN = re.compile(rb"[0-9a-f]{16}(?:[0-9a-f]{16})?"), re.compile(rb"[0-9a-f]{16}")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
_SAYS = {b"1": True, b"d": True, b"true": True, b"0": False, b"false": False}
OURS = frozenset({b"traceparent", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled"})
"""Headers that `write` replaces."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a request is in its trace. Ids are lower-case hexadecimal, 32 and 16 digits."""

    trace_id: bytes
    span_id: bytes
    """Of the span that the request is part of: the parent of those to come; `""` where a trace begins."""
    sampled: bool | None
    """None: nobody has decided yet."""
    kind: str = "w3c"
    """Whose headers: `w3c`, `b3` (one) or `b3multi`."""
    short: bool = False
    """The trace's id came with 16 digits."""


def read(headers: Mapping[bytes, bytes]) -> Context | None:
    """What the headers say; None if they say nothing, or nothing that can be understood."""
    if (value := headers.get(b"traceparent")) is not None and (context := _w3c(value)) is not None:
        return context
    if (value := headers.get(b"b3")) is not None:
        return _b3(value)
    if b"x-b3-traceid" in headers or b"x-b3-sampled" in headers:
        return _b3_multi(headers)
    return None


def _w3c(value: bytes) -> Context | None:
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest) or trace == _NO_TRACE or span == _NO_SPAN:
        return None
    return Context(trace, span, bool(int(flags, 16) & 1))


def _b3(value: bytes) -> Context | None:
    if value in _SAYS:
        return Context(b"", b"", _SAYS[value], "b3")
    match = _B3.fullmatch(value)
    if match is None:
        return None
    trace, span, sampled, _ = match.groups()
    return _known(trace, span, _SAYS.get(sampled) if sampled else None, "b3")


def _b3_multi(headers: Mapping[bytes, bytes]) -> Context | None:
    sampled = True if headers.get(b"x-b3-flags") == b"1" else _SAYS.get(headers.get(b"x-b3-sampled", b"").lower())
    trace, span = headers.get(b"x-b3-traceid"), headers.get(b"x-b3-spanid", b"")
    if trace is None:
        return Context(b"", b"", sampled, "b3multi")
    if not _TRACE.fullmatch(trace) or not _SPAN.fullmatch(span):
        return None
    return _known(trace, span, sampled, "b3multi")


def _known(trace: bytes, span: bytes, sampled: bool | None, kind: str) -> Context | None:
    if not trace.strip(b"0") or span == _NO_SPAN:
        return None
    return Context(trace.rjust(32, b"0"), span, sampled, kind, len(trace) == 16)


def write(headers: Headers, context: Context, parent: bytes = b"") -> Headers:
    """The headers with these in the place of what they said of it; `context.span_id` is of the span that goes on.

    `tracestate` stays: it belongs to the trace. B3 is also told the `parent` of that span.
    """
    kept = [pair for pair in headers if pair[0] not in OURS]
    trace, sampled = context.trace_id[16:] if context.short else context.trace_id, b"1" if context.sampled else b"0"
    if context.kind == "b3":
        value = b"%b-%b-%b" % (trace, context.span_id, sampled)
        kept.append((b"b3", b"%b-%b" % (value, parent) if parent else value))
    elif context.kind == "b3multi":
        kept += [(b"x-b3-traceid", trace), (b"x-b3-spanid", context.span_id), (b"x-b3-sampled", sampled)]
        if parent:
            kept.append((b"x-b3-parentspanid", parent))
    else:
        kept.append((b"traceparent", b"00-%b-%b-0%b" % (context.trace_id, context.span_id, sampled)))
    return kept
