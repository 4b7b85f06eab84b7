from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Party
from noded.control import metrics
from noded.control.telemetry import REPORT_EDGES, Telemetry
from noded.link import Counts
from tests.noded.fake_worker import EDGE


def edge(name: str) -> EdgeKey:
    party = Party(name, "shop", "", "", "")
    return EdgeKey("source", party, party, "", "none", "-")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 10**9), st.sampled_from(["add", "send", "fail"]))))
def test_no_byte_is_lost_or_counted_twice_whatever_fails_in_between(steps: list[tuple[str, int, str]]) -> None:
    telemetry, counted, reported = Telemetry(), Counter[EdgeKey](), Counter[EdgeKey]()
    for name, sent, step in steps:
        telemetry.add(0, Counts((EdgeReport(edge(name), EdgeCounts(sent=sent)),), {}))
        counted[edge(name)] += sent
        if step != "add":
            taken = telemetry.take()
            if step == "fail":
                telemetry.give_back(taken)
            else:
                reported.update({report.key: report.counts.sent for report in taken})
    reported.update({report.key: report.counts.sent for report in telemetry.take()})
    assert {key: counts.sent for key, counts in telemetry.edges()} == counted
    assert reported == counted


def test_ever_new_peers_don_t_grow_it() -> None:
    telemetry = Telemetry(max_edges=10)
    for number in range(25):
        telemetry.add(0, Counts((EdgeReport(edge(f"w{number}"), EdgeCounts(opened=1)),), {}))
    assert [key.source.workload for key, _ in telemetry.edges()] == [f"w{number}" for number in range(15, 25)]
    assert (telemetry.evicted, telemetry.unreported, len(telemetry.take())) == (15, 15, 10)


def test_one_report_is_bounded() -> None:
    telemetry = Telemetry()
    edges = tuple(EdgeReport(edge(f"w{number}"), EdgeCounts(opened=1)) for number in range(REPORT_EDGES + 5))
    telemetry.add(0, Counts(edges, {}))
    assert (len(telemetry.take()), len(telemetry.take()), telemetry.take()) == (REPORT_EDGES, 5, ())


def test_a_dead_worker_s_counters_stay_and_its_gauges_go() -> None:
    telemetry = Telemetry()
    telemetry.add(0, Counts((), {"handshakes": 5, "open_connections": 7}))
    telemetry.add(1, Counts((), {"handshakes": 1, "open_connections": 2}))
    telemetry.worker_ended(0)
    telemetry.add(0, Counts((), {"handshakes": 2, "open_connections": 1}))
    assert telemetry.totals() == {"handshakes": 8, "open_connections": 3}


def test_metrics_have_istio_s_names_and_labels() -> None:
    telemetry = Telemetry()
    counts = EdgeCounts(opened=3, closed=2, failed=1, received=10, sent=20)
    telemetry.add(0, Counts((EdgeReport(EDGE, counts),), {"tunnels": 4, "handshakes": 9}))
    gauges = metrics.Gauges("1", "node-a", "east", {"ready": 1}, 7, 0.0, True, {0: 2}, {"shop/web": 5.0})
    lines = metrics.text(telemetry, gauges).decode().splitlines()
    [opened] = [line for line in lines if line.startswith("istio_tcp_connections_opened_total{")]
    assert opened.endswith("} 3.0")
    for label in (
        'reporter="source"',
        'source_workload="client"',
        'source_workload_namespace="shop"',
        'source_principal="spiffe://cluster.local/ns/shop/sa/client"',
        'source_cluster="east"',
        'destination_canonical_service="web"',
        'destination_canonical_revision="v1"',
        'destination_service="web.shop.svc.cluster.local"',
        'destination_service_name="web"',
        'destination_service_namespace="shop"',
        'request_protocol="tcp"',
        'response_flags="-"',
        'connection_security_policy="mutual_tls"',
    ):
        assert label in opened
    values = {line.split("{")[0]: line.rsplit(" ", 1)[1] for line in lines if line[0] != "#"}
    assert values["istio_tcp_connections_closed_total"] == "2.0"
    assert values["istio_tcp_connections_failed_total"] == "1.0"
    assert values["istio_tcp_sent_bytes_total"] == "20.0"
    assert values["istio_tcp_received_bytes_total"] == "10.0"
    assert "nodemesh_tunnels 4.0" in lines
    assert "nodemesh_handshakes_total 9.0" in lines
    assert 'nodemesh_worker_restarts_total{worker="0"} 2.0' in lines


def test_a_dead_worker_s_live_connections_are_reported_closed() -> None:
    telemetry = Telemetry()
    opened = EdgeReport(edge("a"), EdgeCounts(opened=3))
    closed = EdgeReport(replace(edge("a"), flags="DC"), EdgeCounts(closed=1))
    telemetry.add(0, Counts((opened, closed), {}))
    telemetry.worker_ended(0)
    assert dict(telemetry.edges())[replace(edge("a"), flags="LR")].closed == 2
