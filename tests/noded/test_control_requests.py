from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from mesh.model import EdgeKey, Party
from mesh.request_counts import BUCKETS, RequestCounts, RequestKey, RequestReport
from noded.control import request_metrics
from noded.control.request_telemetry import MAX_UNSENT, RequestTelemetry

CLIENT, WEB = Party("client", "shop", "", "client", "v1"), Party('w"eb\\', "shop", "", "web", "v1")
KEY = RequestKey(EdgeKey("source", CLIENT, WEB, "web.shop.svc.cluster.local", "mutual_tls", "-"), "http", 200)
HISTOGRAM = (1,) + (0,) * (BUCKETS - 2) + (2,)
COUNTS = RequestCounts(3, 4_500, 10, 20, HISTOGRAM, HISTOGRAM, HISTOGRAM)


def test_prometheus_reads_what_is_written() -> None:
    telemetry = RequestTelemetry()
    telemetry.add([RequestReport(replace(KEY, route=route), COUNTS) for route in ("HTTPRoute/shop/a", "")])
    text = b"".join(request_metrics.text(telemetry, "east")).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (total,) = families["istio_requests"].samples
    assert total.value == 6
    assert total.labels["destination_workload"] == 'w"eb\\'
    assert (total.labels["source_cluster"], total.labels["destination_cluster"]) == ("east", "east")
    assert "grpc_response_status" not in total.labels
    family = families["istio_request_duration_milliseconds"]
    assert family.type == "histogram"
    values = {(sample.name[36:], sample.labels.get("le", "")): sample.value for sample in family.samples}
    assert (values["bucket", "0.5"], values["bucket", "3600000"], values["bucket", "+Inf"]) == (2, 2, 6)
    assert (values["sum", ""], values["count", ""]) == (9.0, 6)


def test_routes_and_no_sizes_go_to_the_controller() -> None:
    telemetry = RequestTelemetry()
    telemetry.add([RequestReport(replace(KEY, route="HTTPRoute/shop/a"), COUNTS)])
    (report,) = taken = telemetry.take()
    assert (report.key.route, report.counts.durations, report.counts.sent_sizes) == ("HTTPRoute/shop/a", HISTOGRAM, ())
    telemetry.give_back(taken)
    telemetry.add(taken)
    (again,) = telemetry.take()
    assert again.counts.count == 6
    assert not telemetry.waiting


def test_ever_new_outcomes_don_t_grow_it() -> None:
    telemetry = RequestTelemetry(max_series=10)
    telemetry.add([RequestReport(replace(KEY, code=code), COUNTS) for code in range(MAX_UNSENT + 5)])
    assert [key.code for key, _ in telemetry.sums()] == list(range(MAX_UNSENT - 5, MAX_UNSENT + 5))
    assert telemetry.unreported == 5
