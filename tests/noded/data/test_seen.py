"""What requests leave behind, seen from outside the worker: counts, log lines, headers, live taps."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.message import Request
from mesh.model import Action, Operation, Policy, Rule
from mesh.request_counts import RequestReport
from mesh.traffic import Backend, Parent, PathEdit, Rewrite, Route, RouteRule
from noded import link as messages
from noded.control import request_metrics
from noded.control.request_telemetry import RequestTelemetry
from noded.data.http.log_line import grpc_status
from tests.noded.data.lab import Lab, Pod, lab, server
from tests.noded.data.test_http import GET, Web, asked, logged, service
from tests.noded.data.test_http2 import called, grpc_server

pytestmark = pytest.mark.root


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Lab, Pod, Pod]]:
    """Client and service, whose policy has its node read requests too."""
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        denied = Rule(operations=(Operation(paths=("/denied",)),))
        made.policies = (Policy("p", "shop", Action.DENY, (denied,)),)
        await made.publish()
        yield made, client, web


async def counted(made: Lab, pod: Pod, requests: int) -> list[RequestReport]:
    """What the worker reports, until it has told of so many requests."""
    found: list[RequestReport] = []
    while sum(report.counts.count for report in found) < requests:
        found += (await made.expect(pod, messages.Counts)).requests
    return found


async def test_requests_are_counted_at_both_ends_with_istio_s_labels(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    with server(pod, 8080, Web()):
        for path in (b"/a", b"/b", b"/denied"):
            await asked(client, GET.replace(b"/a?b=c", path))
    source, destination = RequestTelemetry(), RequestTelemetry()
    source.add(await counted(made, client, 3))
    destination.add(await counted(made, pod, 3))
    lines = b"".join(request_metrics.text(source, "east")).decode().splitlines()
    totals = [line for line in lines if line.startswith("istio_requests_total{")]
    [fine] = [line for line in totals if 'response_code="200"' in line]
    assert fine.endswith(" 2")
    for label in (
        'reporter="source"',
        'source_workload="client"',
        f'source_principal="{client.identity}"',
        'destination_workload="web"',
        'destination_service="web.shop.svc.cluster.local"',
        'request_protocol="http"',
        'response_flags="-"',
        'connection_security_policy="mutual_tls"',
    ):
        assert label in fine
    [denied] = [line for line in totals if 'response_code="403"' in line]
    assert denied.endswith(" 1")
    [inf] = [line for line in lines if "milliseconds_bucket" in line and 'code="200"' in line and 'le="+Inf"' in line]
    assert inf.endswith(" 2")
    [size] = [line for line in lines if "response_bytes_sum" in line and 'code="200"' in line]
    assert size.endswith(" 4")
    text = b"".join(request_metrics.text(destination, "east")).decode()
    [refused] = [x for x in text.splitlines() if x.startswith("istio_requests_total") and 'response_flags="RBAC"' in x]
    assert 'reporter="destination"' in refused
    assert 'source_workload="client"' in refused
    assert 'destination_service="web.shop.svc.cluster.local"' in refused
    assert refused.endswith(" 1")


async def test_the_route_that_took_a_request_is_reported(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    rule = RouteRule(backends=(Backend("shop/web", 80),))
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web", 80),), (rule,)),)
    await made.publish()
    with server(pod, 8080, Web()):
        await asked(client, GET)
    (report,) = await counted(made, client, 1)
    assert report.key.route == "HTTPRoute/shop/r"


async def test_a_grpc_request_is_counted_with_its_status(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    with server(pod, 8080, Web()):
        request = b"POST /denied HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n"
        with trio.fail_after(60):
            await asked(client, request)
    (report,) = await counted(made, client, 1)
    assert (report.key.protocol, report.key.code, report.key.grpc) == ("grpc", 200, "7")


def test_a_status_that_grpc_does_not_have_is_unknown() -> None:
    said = [b"0", b"16", b"17", b"00", b"1 ", b"", b"123456789"]
    request = Request(b"POST", b"web", b"/", [(b"content-type", b"application/grpc")])
    exchanges: Any = [SimpleNamespace(request=request, grpc_status=status, response=None) for status in said]
    assert [grpc_status(exchange) for exchange in exchanges] == ["0", "16", "2", "2", "2", "2", "2"]


async def test_a_request_s_line_has_the_keys_of_istio_s_log(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    request = GET.replace(b"\r\n\r\n", b'\r\nUser-Agent: a "b"\r\nX-Request-Id: 7\r\nX-Forwarded-For: 10.1.1.1\r\n\r\n')
    with server(pod, 8080, Web()):
        await asked(client, request)
        await asked(client, GET.replace(b"/a?b=c", b"/denied"))
    line, denied = await logged(client, 2)
    expected = {
        "method": "GET",
        "authority": "web",
        "path": "/a?b=c",
        "protocol": "HTTP/1.1",
        "response_code": 200,
        "response_flags": "-",
        "response_code_details": "via_upstream",
        "route_name": "default",
        "upstream_cluster": "outbound|80||web.shop.svc.cluster.local",
        "upstream_host": f"{pod.address}:8080",
        "bytes_received": 0,
        "bytes_sent": 2,
        "request_id": "7",
        "user_agent": 'a "b"',
        "x_forwarded_for": "10.1.1.1",
        "requested_server_name": None,
        "downstream_local_address": "10.96.0.1:80",
        "direction": "outbound",
        "workload": client.uid,
        "security": "mutual_tls",
    }
    assert {key: line[key] for key in expected} == expected
    assert line["downstream_remote_address"].startswith(f"{client.address}:")
    assert line["start_time"] <= line["time"]
    assert line["duration"] >= line["upstream_service_time"] >= 0
    assert (denied["response_code"], denied["user_agent"]) == (403, None)
    _, there = await logged(pod, 2)
    assert (there["response_flags"], there["response_code_details"]) == ("RBAC", "rbac_access_denied")
    assert (there["policy"], there["upstream_host"], there["upstream_service_time"]) == ("shop/p", None, None)
    assert there["peer_identity"] == client.identity


async def test_the_protocol_that_the_client_speaks_is_logged(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    with server(pod, 8080, Web()):
        await asked(client, GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
        await asked(client, GET)
    assert [line["protocol"] for line in await logged(client, 2)] == ["HTTP/1.0", "HTTP/1.1"]
    assert {line["protocol"] for line in await logged(pod, 2)} == {"HTTP/1.1"}


async def test_a_request_has_one_id_in_log_list_and_where_why_is_asked(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    with server(pod, 8080, Web()):
        await asked(client, GET)
        await asked(client, GET.replace(b"/a?b=c", b"/denied"))
    for at in (client, pod):
        line = (await logged(at, 2))[1]
        (row,) = await made.query(at, "requests", {"path": "/denied"})
        (remembered,) = await made.query(at, "failed")
        assert line["id"] == row["id"] == remembered["id"] == "0-r2"


async def test_long_headers_neither_fill_the_log_nor_the_memory(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    count = 200

    def resident(of: Pod) -> int:
        assert of.process is not None
        status = Path(f"/proc/{of.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    with server(pod, 8080, Web()):
        await asked(client, GET)
        before = [resident(of) for of in (client, pod)]
        for number in range(count):
            head = b"GET /a?%b HTTP/1.1\r\nHost: web\r\nUser-Agent: %d" % (b"b" * 4500, number)
            answer = await asked(client, head + b"\xff" * 55_000 + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
        line = (await logged(client, count + 1))[-1]
        grown = [resident(of) - then for of, then in zip((client, pod), before, strict=True)]
    assert line["user_agent"] == "199" + "\xff" * 1021
    assert line["path"] == "/a?" + "b" * 4093
    assert max(grown) < 40 * 1024


async def test_the_path_before_a_rewrite_is_logged(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    rule = RouteRule(backends=(Backend("shop/web", 80),), rewrite=Rewrite(path_edit=PathEdit.FULL, path="/new"))
    made.routes = (Route("HTTPRoute", "r", "shop", (Parent("shop/web", 80),), (rule,)),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        await asked(client, GET)
    (line,) = await logged(client)
    assert web.heads[0].startswith(b"GET /new")
    assert (line["path"], line["route_name"]) == ("/a?b=c", "HTTPRoute/shop/r")


async def test_the_log_can_be_envoy_s_text(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        made.settings = {"access_log_format": "text"}
        client, pod = made.pod("client"), made.pod("web")
        await made.enrol(client)
        made.services = (service(pod),)
        await made.publish()
        with server(pod, 8080, Web()):
            await asked(client, GET.replace(b"\r\n\r\n", b'\r\nUser-Agent: a "b"\r\n\r\n'))
        assert client.log is not None
        with trio.fail_after(60):
            while not (found := [line for line in client.log.read_text().splitlines() if " HTTP/1.1" in line]):
                await trio.sleep(0.05)
        pattern = (
            r'\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] "GET /a\?b=c HTTP/1\.1" 200 - 0 2 \d+ \d+ "-" "a \\"b\\"" "-" '
            rf'"web" "{pod.address}:8080"'
        )
        assert re.fullmatch(pattern, found[0])


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[tuple[Lab, Pod, Pod]]:
    """As `pair`; every trace that begins here is sampled."""
    async with lab(tmp_path) as made:
        made.settings = {"trace_sampling": 1.0}
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        made.policies = (Policy("p", "shop", Action.DENY, (Rule(operations=(Operation(paths=("/denied",)),)),)),)
        await made.publish()
        yield made, client, web


def headers_of(head: bytes) -> dict[bytes, bytes]:
    return dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])


async def test_a_request_without_a_trace_begins_one_that_goes_on_at_its_destination(
    traced: tuple[Lab, Pod, Pod],
) -> None:
    made, client, pod = traced
    web = Web()
    with server(pod, 8080, web):
        await asked(client, GET)
    headers = headers_of(web.heads[0])
    assert re.fullmatch(
        rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", headers[b"x-request-id"]
    )
    match = re.fullmatch(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-01", headers[b"traceparent"])
    assert match is not None
    (outbound,) = (await made.expect(client, messages.Spans)).spans
    (inbound,) = (await made.expect(pod, messages.Spans)).spans
    assert outbound.trace_id == inbound.trace_id == match[1].decode()
    assert (outbound.parent_id, inbound.parent_id, inbound.span_id) == ("", outbound.span_id, match[2].decode())
    assert (outbound.server, inbound.server) == (False, True)
    assert (outbound.code, outbound.path, outbound.upstream) == (200, "/a?b=c", f"{pod.address}:8080")
    assert outbound.request_id == inbound.request_id == headers[b"x-request-id"].decode()
    assert outbound.start <= outbound.end


async def test_what_the_client_says_of_its_trace_holds(traced: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = traced
    trace, span = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
    unsampled = b"traceparent: 00-%b-%b-00" % (trace, span)
    web = Web()
    with server(pod, 8080, web):
        for line in (unsampled, b"b3: 0", b"b3: %b-%b-1" % (trace, span), b"X-Request-Id: mine"):
            await asked(client, GET.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % line))
    first, second, third, fourth = map(headers_of, web.heads)
    assert first[b"traceparent"] == unsampled[13:]
    assert second[b"b3"] == b"0"
    assert third[b"b3"].startswith(trace + b"-")
    assert third[b"b3"].split(b"-")[1] != span
    assert b"traceparent" not in third
    assert fourth[b"x-request-id"] == b"mine"
    spans = (await made.expect(client, messages.Spans)).spans
    assert [(found.trace_id == trace.decode(), found.parent_id) for found in spans][:1] == [(True, span.decode())]


async def test_without_tracing_nothing_is_added(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair
    web = Web()
    with server(pod, 8080, web):
        await asked(client, GET)
    assert headers_of(web.heads[0]) == {b"host": b"web"}


async def test_who_watches_sees_what_is_wanted_and_only_what_is_new(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    wanted = {"path": "/den*", "code": "4xx"}

    async def asked_for(path: bytes) -> None:
        await asked(client, GET.replace(b"/a?b=c", path))

    with server(pod, 8080, Web()):
        await asked_for(b"/denied")
        await asked_for(b"/a")
        await logged(client, 2)
        (recent,) = await made.query(client, "requests", wanted)
        await asked_for(b"/denied")
        await asked_for(b"/other")
        await logged(client, 4)
        (new,) = await made.query(client, "requests", wanted | {"after.0": recent["after"]})
    assert (recent["path"], recent["response_code"], new["path"]) == ("/denied", 403, "/denied")
    assert new["id"] != recent["id"]
    assert await made.query(client, "requests", wanted | {"after.0": new["after"]}) == []


async def test_what_is_no_request_is_seen_by_who_watches(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, _ = pair
    assert await made.query(client, "requests", {"code": "505"}) == []
    await asked(client, b"GET / HTTP/1.7\r\nHost: web\r\n\r\n")
    await logged(client, 1)
    for wanted in ({"code": "505"}, {"code": "5xx"}):  # as it came, and from among the last
        (row,) = await made.query(client, "requests", wanted)
        assert (row["response_code"], row["response_flags"], row["workload"]) == (505, "DPE", client.uid)
    assert await made.query(client, "requests", {"path": "/"}) == []


async def test_endpoints_show_how_they_fare(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    with server(pod, 8080, Web()):
        await asked(client, GET)
    (row,) = await made.query(client, "endpoints", {})
    assert (row["service"], row["port"], row["address"], row["target_port"]) == ("shop/web", 80, pod.address, 8080)
    assert (row["workload"], row["active"], row["ejected_seconds"]) == (pod.uid, 0, 0)
    assert row["ewma_ms"] > 0


async def test_grpc_calls_are_counted_logged_and_remembered_with_the_status_in_their_trailers(
    traced: tuple[Lab, Pod, Pod],
) -> None:
    made, client, pod = traced
    made.services = (service(pod, protocol="grpc"),)
    await made.publish()
    with grpc_server(pod):
        await called(client, "unary", "failure")
    for side in (client, pod):
        reports = await counted(made, side, 2)
        assert {(report.key.protocol, report.key.code) for report in reports} == {("grpc", 200)}
        assert {report.key.grpc: report.key.edge.flags for report in reports} == {"0": "-", "9": "-"}
        assert {line["grpc_status"] for line in await logged(side, 2)} == {0, 9}
        (failed,) = await made.query(side, "failed")
        assert (failed["code"], failed["grpc_status"]) == (200, 9)
