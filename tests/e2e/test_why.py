"""What is explained is what happened, on both ends of a request and at the controller."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlencode

from tests.e2e.pods import Bed, eventually, read_all

PORT = 8081
RESOURCES = f"""\
apiVersion: v1
kind: Service
metadata: {{name: front, namespace: shop}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: {PORT}}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: read, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  rules: [{{to: [{{operation: {{methods: [GET], paths: [/public/*]}}}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: front, namespace: shop}}
spec:
  parentRefs: [{{kind: Service, group: "", name: front}}]
  rules:
    - {{matches: [{{path: {{value: /admin}}, method: PUT}}], backendRefs: [{{name: near, port: 80}}]}}
    - {{matches: [{{path: {{value: /}}}}], backendRefs: [{{name: front, port: 80}}]}}
"""


def answer(conn: socket.socket) -> None:
    conn.recv(65536)
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def asked(bed: Bed, address: str, path: str) -> int:
    with bed["client"].connect(address, 80) as conn:
        conn.sendall(f"GET {path} HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n".encode())
        return int(read_all(conn).split(b" ", 2)[1])


def remembered(bed: Bed, pod: str, path: str) -> dict[str, Any]:
    """What the noded of a pod's host says of a request."""
    find = lambda: [row["id"] for row in bed.api(pod, "/why") if row.get("path") == path]  # noqa: E731
    (found,) = eventually(find)
    return dict(bed.testbed.node_api(bed.node(pod), "GET", f"/why/{found}"))


def test_a_denied_request_is_explained_alike_by_its_nodes_and_by_the_controller(bed: Bed) -> None:
    with bed.resources(RESOURCES), bed["web"].serve(answer, PORT):
        address = bed.service("front")
        assert asked(bed, address, "/public/a") == 200
        assert asked(bed, address, "/public/../admin/x") == 403
        there = remembered(bed, "web", "/admin/x")
        here = remembered(bed, "client", "/admin/x")
        query = urlencode({"from": "shop/client", "to": "shop/front:80", "path": "/admin/x", "host": "front"})
        predicted = bed.testbed.controller_api("GET", f"/v1/policy-check?{query}")
        flip = there["verdict"]["flips"][0]["changes"]
        assert [change["what"] for change in flip] == ["path"]
        assert asked(bed, address, flip[0]["to"]) == 200
    assert there["verdict"]["nearest"] == {"policy": "shop/read", "rule": 0}
    (told,) = predicted["items"]
    for part in ("allowed", "policy", "rule", "reason", "steps", "flips"):
        assert told["why"][part] == there["verdict"][part]
    assert here["route"] == predicted["route"]
    assert (here["route"]["rule"], here["what"]["code"], here["what"]["flags"]) == (1, 403, "-")
    assert [clause["met"] for clause in here["route"]["steps"][0]["clauses"]] == [True, False]
