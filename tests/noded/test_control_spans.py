from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from noded.control.spans import MAX_WAITING, Exporter
from noded.control.telemetry import Telemetry
from noded.link import Span

SPAN = Span(
    trace_id="0af7651916cd43dd8448eb211c80319c", span_id="b7ad6b7169203331", parent_id="00f067aa0ba902b7",
    server=False, start=1_000, end=2_000, workload="shop/client-1", app="client", source="shop/client-1",
    destination="shop/web-1", service="web.shop.svc.cluster.local", method="GET", authority="web", path="/a?b=c",
    protocol="1.1", code=503, grpc="", flags="UF", reason="connection refused", route="HTTPRoute/shop/web",
    client="10.77.1.2", upstream="10.77.2.2:8080", request_id="7", user_agent="curl", received=1, sent=2,
)  # fmt: skip


class Collector:
    """Takes OTLP over HTTP, or refuses it."""

    def __init__(self, listener: socket.socket | None = None) -> None:
        """On a port of its own, or at a socket that listens."""
        self.status = 200
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=listener is None)
        if listener is not None:
            self.server.socket.close()
            self.server.socket, self.server.server_port = listener, listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def spans(self) -> list[Any]:
        """All that came, each with its resource."""
        return [
            (span, {a.key: a.value.string_value for a in of.resource.attributes})
            for request in self.requests
            for of in request.resource_spans
            for scope in of.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


async def until(reached: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not reached():
            await trio.sleep(0.02)


async def test_spans_reach_a_collector_as_opentelemetry_has_them(collector: Collector) -> None:
    telemetry = Telemetry()
    exporter = Exporter(collector.url, "node-a", telemetry)
    exporter.add([SPAN, replace(SPAN, server=True, code=200, flags="-", reason="", parent_id="")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exporter.run)
        await until(lambda: telemetry.totals().get("spans_exported") == 2)
        nursery.cancel_scope.cancel()
    (client, resource), (server, _) = collector.spans
    assert (client.trace_id.hex(), client.span_id.hex()) == (SPAN.trace_id, SPAN.span_id)
    assert (client.parent_span_id.hex(), server.parent_span_id) == (SPAN.parent_id, b"")
    assert (client.name, client.kind, server.kind) == ("GET web.shop.svc.cluster.local", 3, 2)
    assert (client.start_time_unix_nano, client.end_time_unix_nano) == (1_000, 2_000)
    assert (client.status.code, client.status.message, server.status.code) == (2, "connection refused", 0)
    assert (resource["service.name"], resource["k8s.node.name"]) == ("client.shop", "node-a")
    texts = {a.key: a.value.string_value or a.value.int_value for a in client.attributes}
    assert (texts["url.path"], texts["url.query"], texts["http.response.status_code"]) == ("/a", "b=c", 503)
    assert (texts["response_flags"], texts["nodemesh.route"]) == ("UF", "HTTPRoute/shop/web")


async def test_what_a_collector_does_not_take_is_counted_and_the_next_is_tried(collector: Collector) -> None:
    telemetry = Telemetry()
    exporter = Exporter(collector.url, "node-a", telemetry)
    collector.status = 400
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exporter.run)
        exporter.add([SPAN])
        await until(lambda: telemetry.totals().get("spans_failed") == 1)
        collector.status = 200
        exporter.add([SPAN])
        await until(lambda: telemetry.totals().get("spans_exported") == 1)
        nursery.cancel_scope.cancel()


def test_too_many_are_dropped_and_counted() -> None:
    telemetry = Telemetry()
    exporter = Exporter("http://127.0.0.1:1/v1/traces", "node-a", telemetry)
    exporter.add([SPAN] * (MAX_WAITING + 7))
    assert telemetry.totals() == {"spans_dropped": 7}


def test_the_sdk_is_loaded_only_where_spans_are_exported() -> None:
    code = (
        "import sys, noded.control.daemon, noded.data.worker; sys.exit(any('opentelemetry' in m for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
