"""What a whole mesh shows of requests: metrics, commands, the log, and spans, of real clients and servers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from testbed import mesh
from testbed.mesh import Testbed
from testbed.spec import parse
from tests.e2e.pods import Bed, Pods, eventually
from tests.noded.test_control_spans import Collector

BED = """\
nodes: [a, b]
pods:
  - {name: client, node: a, namespace: shop, serviceAccount: client, labels: {app: client}}
  - name: web
    node: b
    namespace: shop
    serviceAccount: web
    labels: {app: web}
    run: [python3, -m, http.server, "8080"]
services:
  - {name: web, namespace: shop, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
policies: [policy.yaml]
noded: {tracing: {endpoint: "http://127.0.0.1:4318/v1/traces", sampling: 100}}
"""
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/closed"]}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A client and a web server, each on its node; requests are traced, and some were made."""
    name, folder = f"s{os.getpid()}", tmp_path_factory.mktemp("bed")
    (folder / "policy.yaml").write_text(POLICY)
    file = folder / "bed.yaml"
    file.write_text(f"name: {name}\n{BED}")
    testbed = Testbed(parse(file.read_text(), file))
    said: list[str] = []
    try:
        testbed.up(file.read_text(), file, said.append)
        made = Bed(testbed)
        eventually(lambda: status(made, "/") == "200")
        assert [status(made, path) for path in ("/", "/absent", "/closed")] == ["200", "404", "403"]
        yield made
    finally:
        mesh.down(name)


def status(bed: Bed, path: str) -> str:
    """Of a request of the client's."""
    argv = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", f"http://web{path}"]
    return bed.testbed.capture(bed.testbed.enter(bed["client"].pod, argv)).stdout


def typed(bed: Bed, where: str, *words: str) -> Any:
    """The JSON answer of a command on a pod's host, or the controller's."""
    if where == "controller":
        who, environment = "controller", bed.testbed.environment(None)
    else:
        who, environment = bed.node(where).name, bed.testbed.environment(bed.node(where))
    done = bed.testbed.capture(bed.testbed.enter(who, [*words, "-o", "json"]), environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["items"]


def totals(bed: Bed, pod: str) -> list[str]:
    """`istio_requests_total` of the node of a pod."""
    argv = bed.testbed.enter(bed.node(pod), ["curl", "-sS", "-m", "10", "http://127.0.0.1:15020/metrics"])
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return [line for line in text.splitlines() if line.startswith("istio_requests_total{")]


@pytest.mark.parametrize(("pod", "reporter", "flags"), [("client", "source", "-"), ("web", "destination", "RBAC")])
def test_both_nodes_count_requests_with_istio_s_labels(bed: Bed, pod: str, reporter: str, flags: str) -> None:
    def counted() -> list[str]:
        return [line for line in totals(bed, pod) if 'response_code="403"' in line]

    (line,) = eventually(counted)
    for label in (
        f'reporter="{reporter}"',
        'source_workload="client"',
        'destination_workload="web"',
        'destination_service="web.shop.svc.cluster.local"',
        f'response_flags="{flags}"',
        'connection_security_policy="mutual_tls"',
    ):
        assert label in line


def test_the_controller_tells_how_requests_fare(bed: Bed) -> None:
    def fared() -> Any:
        lines = typed(bed, "controller", "meshctl", "top")
        return [line for line in lines if line["requests"] - line["failed"] >= 5 and line["rate"] > 0]

    assert status(bed, "/") == "200"  # the others may be older than what counts as of late
    (service,) = eventually(fared)
    assert service["service"] == "shop/web"
    assert 0 < service["success"] <= 1
    assert 0 < service["p50"] <= service["p95"] <= service["p99"]
    (edge,) = typed(bed, "controller", "meshctl", "top", "edges")
    assert (edge["source"], edge["destination"]) == ("shop/client", "shop/web")
    (route,) = typed(bed, "controller", "meshctl", "routes")
    assert (route["kind"], route["route"], route["service"]) == ("HTTPRoute", "shop/web", "shop/web")
    edges = typed(bed, "controller", "meshctl", "edges")
    told = {(row["reporter"], row["flags"]) for row in edges if row["requests"] > 0}
    assert told >= {("source", "-"), ("destination", "-"), ("destination", "RBAC")}


def test_a_node_shows_its_requests_routes_and_endpoints(bed: Bed) -> None:
    (closed,) = eventually(lambda: typed(bed, "web", "nodectl", "requests", "--code", "403"))
    assert (closed["path"], closed["response_flags"], closed["policy"]) == ("/closed", "RBAC", "shop/closed")
    paths = [row["path"] for row in typed(bed, "client", "nodectl", "requests", "--path", "/absent")]
    assert paths == ["/absent"]
    (route,) = typed(bed, "client", "nodectl", "routes")
    assert (route["kind"], route["name"]) == ("HTTPRoute", "web")
    (endpoint,) = typed(bed, "client", "nodectl", "endpoints")
    assert (endpoint["service"], endpoint["workload"], endpoint["active"]) == ("shop/web", "shop/web", 0)


def test_spans_of_both_nodes_make_one_trace_at_a_collector(bed: Bed) -> None:
    collectors = []
    try:
        for node in ("a", "b"):
            listener = Pods(bed.testbed, node).open(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 4318))
            listener.listen()
            listener.settimeout(None)
            collectors.append(Collector(listener))
        assert status(bed, "/traced") == "404"

        def of(collector: Collector) -> list[Any]:
            return [s for s, _ in collector.spans if any(a.value.string_value == "/traced" for a in s.attributes)]

        (client,), (server,) = eventually(lambda: all(map(of, collectors)) and list(map(of, collectors)), 30)
    finally:
        for collector in collectors:
            collector.close()
    assert client.trace_id == server.trace_id
    assert server.parent_span_id == client.span_id
