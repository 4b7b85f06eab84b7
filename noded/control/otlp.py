"""The workers' spans as OpenTelemetry's, and their way to a collector (OTLP over HTTP). Loading this takes 9 MB.

Attributes are those of https://opentelemetry.io/docs/specs/semconv/http/http-spans/ and, where it has none, Istio's.
"""

from __future__ import annotations

import functools
import logging

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mesh.request_counts import failed
from noded.link import Span


class _LastWords(logging.Handler):
    """What the library says of a failure only its log has."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.levelno >= logging.ERROR:
            self.text = record.getMessage()


_last_words = _LastWords()
_library = logging.getLogger("opentelemetry")
_library.addHandler(_last_words)
_library.propagate = False  # whoever sends says what failed, once


class Sender:
    """Blocking: for a thread of its own."""

    def __init__(self, endpoint: str, node: str, timeout: float) -> None:
        self._node = node
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=timeout)

    def send(self, spans: list[Span]) -> str:
        """Send a batch; says what went wrong, or `""`."""
        try:
            result = self._exporter.export([_readable(span, self._node) for span in spans])
        except Exception as error:  # whatever the library lets through must not end the exporter
            return f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            return ""
        return _last_words.text or "the collector did not take them"


@functools.lru_cache(1024)
def _resource(workload: str, app: str, node: str) -> Resource:
    namespace, _, name = workload.partition("/")
    return Resource(
        {
            "service.name": f"{app or name}.{namespace}",
            "service.namespace": namespace,
            "service.instance.id": workload,
            "k8s.namespace.name": namespace,
            "k8s.pod.name": name,
            "k8s.node.name": node,
        }
    )


def _readable(span: Span, node: str) -> ReadableSpan:
    trace = int(span.trace_id, 16)
    context = SpanContext(trace, int(span.span_id, 16), False, TraceFlags(TraceFlags.SAMPLED))
    parent = SpanContext(trace, int(span.parent_id, 16), True) if span.parent_id else None
    attributes: dict[str, str | int] = {
        "http.request.method": span.method,
        "url.path": span.path.partition("?")[0],
        "url.query": span.path.partition("?")[2],
        "url.scheme": "http",
        "server.address": span.authority,
        "network.protocol.version": span.protocol,
        "client.address": span.client,
        "user_agent.original": span.user_agent,
        "http.response.status_code": span.code,
        "rpc.grpc.status_code": span.grpc,
        "http.request.body.size": span.received,
        "http.response.body.size": span.sent,
        "guid:x-request-id": span.request_id,
        "response_flags": span.flags,
        "upstream_address": span.upstream,
        "nodemesh.route": span.route,
        "nodemesh.source": span.source,
        "nodemesh.destination": span.destination,
        "nodemesh.service": span.service,
    }
    wrong = failed("grpc" if span.grpc else "http", span.code, span.grpc) or (not span.server and span.code >= 400)
    return ReadableSpan(
        name=f"{span.method} {span.service or span.destination}",
        context=context,
        parent=parent,
        resource=_resource(span.workload, span.app, node),
        attributes={name: value for name, value in attributes.items() if value != ""},
        kind=SpanKind.SERVER if span.server else SpanKind.CLIENT,
        status=Status(StatusCode.ERROR, span.reason or None) if wrong else Status(),
        start_time=span.start,
        end_time=span.end,
    )
