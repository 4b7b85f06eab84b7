from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.cli.requests_summary import summarise
from controller.request_telemetry import RequestTelemetry
from controller.tokens import Scope
from mesh.model import EdgeKey, Party
from mesh.request_counts import BUCKETS, RequestCounts, RequestKey, RequestReport, bucket

SHOP = Scope(("shop/*",))
CLIENT, WEB = Party("client", "shop", "", "client", "v1"), Party("web", "shop", "", "web", "v1")
KEY = RequestKey(EdgeKey("source", CLIENT, WEB, "web.shop.svc.cluster.local", "mutual_tls", "-"), "http", 200)


def report(key: RequestKey = KEY, count: int = 1, milliseconds: float = 3) -> RequestReport:
    durations = [0] * BUCKETS
    durations[bucket(milliseconds)] = count
    return RequestReport(key, RequestCounts(count, round(milliseconds * 1000) * count, 0, 0, tuple(durations)))


def telemetry_of(*reports: RequestReport) -> RequestTelemetry:
    telemetry = RequestTelemetry(lambda: 1_000.0)
    telemetry.add("n", SHOP, reports)
    return telemetry


def test_rates_are_of_late_and_totals_of_all_time() -> None:
    now = [900.0]
    telemetry = RequestTelemetry(lambda: now[0])
    telemetry.add("n", SHOP, [report(count=60)])
    now[0] = 930.0
    telemetry.add("n", SHOP, [report(count=30)])
    (line,) = summarise(telemetry.rows(), "services")
    assert (line["service"], line["requests"], line["rate"], line["success"]) == ("shop/web", 90, 3.0, 1.0)
    assert 1 <= line["p50"] <= 5
    now[0] = 960.0
    (line,) = summarise(telemetry.rows(), "services")
    assert (line["requests"], line["rate"]) == (90, 1.0)
    now[0] = 990.0
    (line,) = summarise(telemetry.rows(), "services")
    assert (line["requests"], line["rate"], line["success"], line["p99"]) == (90, 0.0, None, None)


def test_a_request_told_of_by_both_of_its_ends_counts_once() -> None:
    far = replace(KEY, edge=replace(KEY.edge, reporter="destination"))
    outside = replace(KEY, edge=replace(far.edge, source=Party("unknown", "unknown", "", "", "")))
    rows = telemetry_of(report(), report(far), report(outside)).rows()
    assert [(line["source"], line["requests"]) for line in summarise(rows, "edges")] == [
        ("shop/client", 1),
        ("unknown", 1),
    ]
    (line,) = summarise(rows, "services")
    assert line["requests"] == 2


def test_routes_stand_by_themselves() -> None:
    canary = replace(KEY, route="HTTPRoute/shop/canary")
    (line,) = summarise(telemetry_of(report(), report(canary, 3), report(replace(canary, code=503))).rows(), "routes")
    assert (line["kind"], line["route"], line["service"]) == ("HTTPRoute", "shop/canary", "shop/web")
    assert (line["requests"], line["success"]) == (4, 0.75)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"code": 404}, False),
        ({"code": 0}, False),
        ({"code": 500}, True),
        ({"protocol": "grpc", "grpc": "0"}, False),
        ({"protocol": "grpc", "grpc": "5"}, False),
        ({"protocol": "grpc", "grpc": "14"}, True),
        ({"protocol": "grpc", "grpc": ""}, True),
    ],
)
def test_what_counts_against_a_service(changes: dict[str, Any], failed: bool) -> None:
    (row,) = telemetry_of(report(replace(KEY, **changes))).rows()
    assert row["failed"] is failed


def test_a_node_is_believed_only_what_an_honest_one_says_of_its_own_side() -> None:
    theirs = replace(KEY, edge=replace(KEY.edge, source=Party("x", "bank", "", "", "")))
    telemetry = telemetry_of(
        report(theirs),
        report(replace(KEY, code=1000)),
        report(replace(KEY, protocol="smtp")),
        report(replace(KEY, route="r" * 600)),
        RequestReport(KEY, RequestCounts(1, durations=(1, 2))),
        RequestReport(KEY, RequestCounts(-1)),
    )
    assert (telemetry.rejected, len(telemetry)) == (6, 0)


def test_the_outcome_that_was_quiet_longest_makes_room() -> None:
    telemetry = RequestTelemetry(lambda: 0.0, limit=2)
    telemetry.add("n", SHOP, [report(replace(KEY, code=code)) for code in (200, 201, 200, 202)])
    assert {row["code"] for row in telemetry.rows()} == {200, 202}
    assert telemetry.evicted == 1


def test_edges_know_their_requests() -> None:
    telemetry = telemetry_of(report(count=3), report(replace(KEY, code=500)))
    (edge,) = telemetry.by_edge().values()
    assert (edge.requests, edge.requests_failed, edge.recent, edge.recent_failed) == (4, 1, 4, 1)
