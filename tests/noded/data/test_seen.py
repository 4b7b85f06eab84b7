"""What requests leave behind, seen from outside the worker: counts, log lines, headers, live taps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from mesh.model import Action, Operation, Policy, Rule
from mesh.request_counts import RequestReport
from mesh.traffic import Backend, Parent, Route, RouteRule
from noded import link as messages
from noded.control import request_metrics
from noded.control.request_telemetry import RequestTelemetry
from tests.noded.data.lab import Lab, Pod, lab, server
from tests.noded.data.test_http import GET, Web, asked, service

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
    lines = b"".join(request_metrics.text(source)).decode().splitlines()
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
    text = b"".join(request_metrics.text(destination)).decode()
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
        with trio.fail_after(20):
            await asked(client, request)
    (report,) = await counted(made, client, 1)
    assert (report.key.protocol, report.key.code, report.key.grpc) == ("grpc", 200, "7")
