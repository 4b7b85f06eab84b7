"""docs/reference/metrics.md, access-log.md and the table of response flags against what the daemons say."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from controller.config import Config
from controller.daemon import Daemon
from controller.metrics import Metrics
from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Party
from mesh.request_counts import BUCKETS, RequestCounts, RequestKey, RequestReport
from noded import source_ports
from noded.control import metrics
from noded.control.telemetry import Telemetry
from noded.data.tracker import Flow, Tracker
from noded.link import Counts
from tests.docs.pages import DOCS, ROOT, spans, table

PAGE = DOCS / "reference/metrics.md"
WORKER = "\n".join(path.read_text() for path in sorted((ROOT / "noded/data").rglob("*.py")))
"""The source of what counts connections: counters have no register, they are counted by name."""
COUNTING = WORKER + (ROOT / "noded/control/spans.py").read_text()

LOG = DOCS / "reference/access-log.md"
NONE = (0,) * BUCKETS

Families = dict[str, tuple[str, set[str]]]
"""By name: type and labels."""


def families(text: str) -> Families:
    """What an exposition holds."""
    found: Families = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = family.type, {label for sample in family.samples for label in sample.labels}
    return found


def exported() -> Families:
    """What noded can export: one edge, and every total that its workers count."""
    totals = set(re.findall(r'\bcount\(\s*"(\w+)"', COUNTING)) | set(re.findall(r'totals\["(\w+)"\] =', WORKER))
    party = Party("web", "shop", "spiffe://cluster.local/ns/shop/sa/web", "web", "v1")
    edge = EdgeReport(EdgeKey("source", party, party, "web.shop.svc.cluster.local", "mutual_tls", "-"), EdgeCounts(1))
    telemetry = Telemetry()
    request = RequestReport(RequestKey(edge.key, "grpc", 200, "0"), RequestCounts(1, 0, 0, 0, NONE, NONE, NONE))
    telemetry.add(0, Counts((edge,), dict.fromkeys(totals, 1), (request,)))
    gauges = metrics.Gauges("1", "node-a", "east", {"ready": 1}, 1, 1.0, True, {0: 0}, {"shop/web": 1.0})
    return families(metrics.text(telemetry, gauges).decode())


def test_what_noded_exports_is_described_with_its_type_and_labels() -> None:
    found = exported()
    described = {
        spans(name)[0]: (kind, set(spans(labels))) for name, kind, labels, _ in table(PAGE, "## noded: itself")
    }
    assert described == {name: facts for name, facts in found.items() if name.startswith("nodemesh_")}

    tcp, requests = table(PAGE, "## noded: TCP"), table(PAGE, "## noded: requests")
    types = {name: row[1] for row in (*tcp, *requests) if len(row) == 3 for name in spans(row[0])}
    assert types == {name: kind for name, (kind, _) in found.items() if name.startswith("istio_")}
    of_tcp = {label for row in tcp if len(row) == 2 for label in spans(row[0])}
    assert of_tcp == set(metrics.LABELS)
    of_requests = {label for row in requests if len(row) == 2 for label in spans(row[0])}
    assert of_tcp | of_requests == found["istio_requests_total"][1]


def test_what_the_controller_exports_is_described_with_its_type(tmp_path: Path) -> None:
    daemon = Daemon(Config.model_validate({"stateDir": str(tmp_path / "state"), "runDir": str(tmp_path)}))
    try:
        parts = (daemon.authority, daemon.home.register, daemon.publisher, daemon.link, daemon.telemetry)
        found = families(Metrics(*parts).text().decode())
    finally:
        daemon.close()
    described = {spans(row[0])[0]: row[1] for row in table(PAGE, "## mesh-controller")}
    assert described == {name: kind for name, (kind, _) in found.items() if not name.startswith("process_")}


def test_the_fields_of_an_access_log_line_are_described_in_order() -> None:
    reader, writer = os.pipe()
    table_fd = source_ports.create(1)
    try:
        tracker = Tracker(source_ports.SourcePorts(table_fd, 0), access_log=True, log_fd=writer)
        flow = Flow(tracker, "shop/web", "inbound", "10.77.1.2", 40000)
        flow.dry_run = ("shop/trial would deny",)
        flow.audit = ("shop/watch rule 0",)
        flow.finish()
        tracker.flush_log()
        line = json.loads(os.read(reader, 4096))
    finally:
        for fd in (reader, writer, table_fd):
            os.close(fd)
    rows = table(LOG, "## Connections")
    assert [spans(row[0])[0] for row in rows] == list(line)
    types = {str: "text", int: "number", float: "number", list: "list of text"}
    assert [row[1] for row in rows] == [types[type(value)] for value in line.values()]


def test_the_fields_of_a_request_s_line_are_described() -> None:
    source = (ROOT / "noded/data/http/log_line.py").read_text()
    said = set(re.findall(r'[{,]"(\w+)":', source)) - {"type"}
    assert {field for row in table(LOG, "## Requests") for field in spans(row[0])} == said


def test_every_response_flag_is_explained() -> None:
    sources = [WORKER, (ROOT / "mesh/resolve.py").read_text(), (ROOT / "noded/control/telemetry.py").read_text()]
    used = set(re.findall(r'"(-|[A-Z]{2,4})"', "\n".join(sources)))
    used -= {"URI", "HEAD", "POST"}  # a kind of name in a certificate, and methods
    explained = {spans(row[0])[0] for row in table(DOCS / "how-to/troubleshoot.md", "## Response flags")}
    assert explained == used
