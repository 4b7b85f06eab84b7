"""Requests through a whole mesh: real clients and servers, routes and policies applied as a user does, under load."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Request, TextMessage

from testbed import mesh
from testbed.mesh import Testbed
from testbed.spec import parse
from tests.e2e.pods import Bed, eventually

PODS = """\
nodes: [a, b]
pods:
  - {name: client, node: a, namespace: shop, serviceAccount: client, labels: {app: client}}
  - name: web-v1
    node: b
    namespace: shop
    serviceAccount: web
    labels: {app: web, version: v1}
    run: &nginx [sh, -c, 'exec nginx -p "$TMPDIR" -c "$PWD/nginx.conf" -e stderr']
  - {name: web-v2, node: a, namespace: shop, serviceAccount: web, labels: {app: web, version: v2}, run: *nginx}
  - name: echo
    node: b
    namespace: shop
    serviceAccount: echo
    labels: {app: echo}
    run: [PYTHON, -m, hypercorn, "echo:app", --bind, "0.0.0.0:8080"]
services:
  - {name: web, namespace: shop, selector: {app: web}, ports: &http [{name: http, port: 80, targetPort: 8080}]}
  - {name: web-v1, namespace: shop, selector: {app: web, version: v1}, ports: *http}
  - {name: web-v2, namespace: shop, selector: {app: web, version: v2}, ports: *http}
  - {name: echo, namespace: shop, selector: {app: echo}, ports: *http}
"""
NGINX = """\
user root;
daemon off;
master_process off;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    server {
        listen 8080;
        default_type text/plain;
        location / { return 200 "$server_addr $connection $remote_addr $http_host $request_uri\\n"; }
        location /files/ { root .; dav_methods PUT; create_full_put_path on; client_max_body_size 100m; }
    }
}
"""
ECHO = """\
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    socket = scope["type"] == "websocket"
    if not socket:
        await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        event = await receive()
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif event["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})
        elif event["type"] == "http.request":
            more = event.get("more_body", False)
            await send({"type": "http.response.body", "body": event["body"], "more_body": more})
            if not more:
                return
        else:
            return
"""
ROUTE = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
"""
GET_ONLY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: get-only, namespace: shop}
spec:
  selector: {matchLabels: {app: APP}}
  action: ALLOW
  rules:
    - from: [{source: {principals: ["cluster.local/ns/shop/sa/client"]}}]
      to: [{operation: {methods: [GET], paths: ["/", "/a/*", "/ws"]}}]
"""
RETRIES = """\
apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {name: web}
  retries: {attempts: 3, codes: [503]}
  retryBudget: {percent: 100%, minPerSecond: 1000}
"""


def weights(v1: int, v2: int) -> str:
    return f"""{ROUTE}\
    - backendRefs:
        - {{name: web-v1, port: 80, weight: {v1}}}
        - {{name: web-v2, port: 80, weight: {v2}}}
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """nginx in two versions, one on each node, and an ASGI server."""
    name, folder = f"h{os.getpid()}", tmp_path_factory.mktemp("bed")
    (folder / "nginx.conf").write_text(NGINX)
    (folder / "echo.py").write_text(ECHO)
    file = folder / "bed.yaml"
    file.write_text(f"name: {name}\n{PODS.replace('PYTHON', sys.executable)}")
    testbed = Testbed(parse(file.read_text(), file))
    said: list[str] = []
    try:
        testbed.up(file.read_text(), file, said.append)
        made = Bed(testbed)
        for service in ("web-v1", "web-v2", "echo"):
            eventually(partial(answers, made, f"http://{service}/"))
        yield made
    finally:
        mesh.down(name)


def typed(bed: Bed, *argv: str) -> subprocess.CompletedProcess[str]:
    """A command in the client's pod."""
    return bed.testbed.capture(bed.testbed.enter(bed["client"].pod, list(argv)))


def fetch(bed: Bed, url: str, *options: str) -> tuple[int, str]:
    """Status and body, by curl."""
    done = typed(bed, "curl", "-sS", "-m", "20", "-w", "\n%{http_code}", *options, url)
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body.strip()


def fetch_all(bed: Bed, count: int, url: str, *options: str) -> list[list[str]]:
    """The words of nginx's answers to so many requests, by one curl, which keeps its connection if it may."""
    done = typed(bed, "curl", "-sS", *options, f"{url}?[1-{count}]")
    return [line.split() for line in done.stdout.splitlines()]


def answers(bed: Bed, url: str) -> bool:
    """Whether there is a server."""
    return fetch(bed, url)[0] == 200


def meshctl(bed: Bed, *words: str) -> subprocess.CompletedProcess[str]:
    """On the controller's host."""
    return bed.testbed.capture(bed.testbed.enter("controller", ["meshctl", *words]), bed.testbed.environment(None))


@contextmanager
def applied(bed: Bed, file: Path, text: str) -> Iterator[None]:
    """By meshctl, for the block; every node has it when the block begins."""
    file.write_text(text)
    done = meshctl(bed, "apply", "-f", str(file))
    assert done.returncode == 0, done.stderr
    bed.settle()
    try:
        yield
    finally:
        done = meshctl(bed, "delete", "-f", str(file))
        assert done.returncode == 0, done.stderr
        bed.settle()


def change(bed: Bed, file: Path, text: str) -> None:
    """Of what is applied; every node has it on return."""
    file.write_text(text)
    assert meshctl(bed, "apply", "-f", str(file)).returncode == 0
    bed.settle()


@contextmanager
def load(bed: Bed, url: str) -> Iterator[list[str]]:
    """wrk with 8 connections, for the block; afterwards the list holds what it said."""
    argv = ["wrk", "-t", "1", "-c", "8", "-d", "300s", "--timeout", "20s", url]
    wrk = subprocess.Popen(bed.testbed.enter(bed["client"].pod, argv), stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    try:
        yield said
        wrk.send_signal(signal.SIGINT)
        said.append(wrk.communicate(timeout=30)[0])
    finally:
        wrk.kill()
        wrk.wait()


def all_well(said: list[str]) -> bool:
    """Whether every request of a load was answered with success, and there were some."""
    (text,) = said
    count = re.search(r"(\d+) requests in", text)
    assert count is not None, text
    return int(count[1]) > 0 and "Non-2xx" not in text and "Socket errors" not in text


def test_curl_and_nginx_meet_and_nginx_sees_the_clients_address(bed: Bed) -> None:
    status, body = fetch(bed, "http://web-v1/a?b=c")
    server, _, client, host, target = body.split()
    assert (status, server, client) == (200, bed["web-v1"].v4, bed["client"].v4)
    assert (host, target) == ("web-v1", "/a?b=c")


def test_requests_of_one_client_share_a_connection_to_the_server(bed: Bed) -> None:
    kept = fetch_all(bed, 20, "http://web-v1/")
    assert (len(kept), len({connection for _server, connection, *_ in kept})) == (20, 1)
    closed = fetch_all(bed, 20, "http://web-v1/", "-H", "Connection: close")
    assert [words[0] for words in closed] == [bed["web-v1"].v4] * 20


@pytest.mark.parametrize("policy", [False, True], ids=["as it is", "read at both nodes"])
def test_chunked_uploads_arrive_whole(bed: Bed, tmp_path: Path, policy: bool) -> None:
    data = os.urandom(20 << 20)
    (tmp_path / "data").write_bytes(data)
    text = GET_ONLY.replace("APP", "web").replace("methods: [GET]", "methods: [GET, PUT]").replace("/a/*", "/files/*")
    upload = f"curl -sS -m 60 -w '%{{http_code}}' -T - http://web-v1/files/up-{policy} <{tmp_path}/data"
    with applied(bed, tmp_path / "policy.yaml", text) if policy else nullcontext():
        assert typed(bed, "sh", "-c", upload).stdout == "201"
        digest = typed(bed, "sh", "-c", f"curl -sS -m 60 http://web-v1/files/up-{policy} | sha256sum").stdout
    assert digest.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_body_streams_both_ways_at_once(bed: Bed) -> None:
    with bed["client"].connect(bed.service("echo"), 80) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = sock.makefile("rb")
        for n in range(5):
            word = b"word %d" % n
            sock.sendall(b"%x\r\n%b\r\n" % (len(word), word))
            while (line := answer.readline()) != word + b"\r\n":  # it comes back before the next is sent
                assert line
        sock.sendall(b"0\r\n\r\n")
        assert answer.readline() == b"0\r\n"


class WebSocket:
    """A client, over a socket in the client's pod."""

    def __init__(self, bed: Bed) -> None:
        self._sock = bed["client"].connect(bed.service("echo"), 80)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._sock.sendall(self._ws.send(Request(host="echo", target="/ws")))

    def send(self, event: Event) -> None:
        self._sock.sendall(self._ws.send(event))

    def next(self) -> Event:
        while True:
            for event in self._ws.events():
                return event
            data = self._sock.recv(65536)
            self._ws.receive_data(data or None)

    def message(self) -> str | bytes:
        parts: list[str | bytes] = []
        while True:
            event = self.next()
            assert isinstance(event, TextMessage | BytesMessage), event
            parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                return "".join(map(str, parts)) if isinstance(parts[0], str) else b"".join(map(bytes, parts))  # type: ignore[arg-type]

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("policy", [False, True], ids=["as it is", "read at both nodes"])
def test_a_websocket_echoes(bed: Bed, tmp_path: Path, policy: bool) -> None:
    text = GET_ONLY.replace("APP", "echo")
    with applied(bed, tmp_path / "policy.yaml", text) if policy else nullcontext():
        client = WebSocket(bed)
        try:
            assert isinstance(client.next(), AcceptConnection)
            for data in ("hello", b"\0" * 300_000, "bye"):
                client.send(TextMessage(data) if isinstance(data, str) else BytesMessage(data))
                assert client.message() == data
            client.send(CloseConnection(1000))
            assert isinstance(client.next(), CloseConnection)
        finally:
            client.close()


def test_a_route_by_header_is_applied_described_and_taken_back(bed: Bed, tmp_path: Path) -> None:
    text = f"""{ROUTE}\
    - matches: [{{headers: [{{name: x-version, value: v2}}]}}]
      backendRefs: [{{name: web-v2, port: 80}}]
    - backendRefs: [{{name: web-v1, port: 80}}]
"""
    with applied(bed, tmp_path / "route.yaml", text):
        described = meshctl(bed, "describe", "httproute", "web", "--namespace", "shop").stdout
        assert re.search(r"shop/web +yes +yes", described), described
        for _ in range(5):
            assert fetch(bed, "http://web/")[1].split()[0] == bed["web-v1"].v4
            assert fetch(bed, "http://web/", "-H", "X-Version: v2")[1].split()[0] == bed["web-v2"].v4
        change(bed, tmp_path / "route.yaml", text.replace("web-v2", "absent"))
        described = meshctl(bed, "describe", "httproute", "web", "--namespace", "shop").stdout
        assert "absent" in described
        assert fetch(bed, "http://web/", "-H", "X-Version: v2")[0] == 500
        assert fetch(bed, "http://web/")[0] == 200
    both = {fetch(bed, "http://web/")[1].split()[0] for _ in range(40)}
    assert both == {bed["web-v1"].v4, bed["web-v2"].v4}


def test_a_canary_gets_its_share(bed: Bed, tmp_path: Path) -> None:
    with applied(bed, tmp_path / "route.yaml", weights(80, 20)):
        share = Counter(server for server, *_ in fetch_all(bed, 1000, "http://web/"))
    assert share.total() == 1000
    assert abs(share[bed["web-v2"].v4] - 200) < 76  # six standard deviations


def test_routes_change_under_load_without_a_failed_request(bed: Bed, tmp_path: Path) -> None:
    file = tmp_path / "route.yaml"
    with load(bed, "http://web/") as said, applied(bed, file, weights(100, 0)):
        for v1 in (0, 50, 100):
            change(bed, file, weights(v1, 100 - v1))
            wanted = {bed[pod].v4 for pod, weight in (("web-v1", v1), ("web-v2", 100 - v1)) if weight}
            for _ in range(3):
                assert fetch(bed, "http://web/")[1].split()[0] in wanted
    assert all_well(said), said


def test_a_policy_by_method_and_path_holds_from_the_moment_it_is_applied(bed: Bed, tmp_path: Path) -> None:
    with bed["client"].connect(bed.service("web-v1"), 80) as sock:
        kept = HTTPConnection("web-v1")
        kept.sock = sock

        def ask(method: str, path: str) -> int:
            kept.request(method, path)
            answer = kept.getresponse()
            answer.read()
            return answer.status

        assert ask("GET", "/b") == 200
        with applied(bed, tmp_path / "policy.yaml", GET_ONLY.replace("APP", "web")):
            eventually(lambda: ask("GET", "/b") == 403)
            assert [ask("GET", path) for path in ("/", "/a/b", "/b", "/a/../b", "/a/%2e%2e/b")] == [
                200,
                200,
                403,
                403,
                403,
            ]
            assert [ask(method, "/") for method in ("POST", "DELETE", "GET")] == [403, 403, 200]
            assert fetch(bed, "http://web-v1/b") == (403, "RBAC: access denied")
            eventually(lambda: '"response_flags":"RBAC"' in bed.log("web-v1"))
        eventually(lambda: ask("GET", "/b") == 200)


def test_a_client_that_no_policy_lets_in_is_told_so_and_the_servers_node_logs_it(bed: Bed, tmp_path: Path) -> None:
    nobody = GET_ONLY.partition("  rules:")[0].replace("APP", "web") + "  rules: []\n"
    before = len(bed.log("web-v1"))
    with applied(bed, tmp_path / "policy.yaml", nobody):
        assert fetch(bed, "http://web-v1/") == (403, "RBAC: access denied")
        eventually(partial(logged, bed, "web-v1", before, 'flags":"RBAC"'))
    assert fetch(bed, "http://web-v1/")[0] == 200


def logged(bed: Bed, pod: str, before: int, what: str) -> bool:
    """Whether a pod's noded has logged it since."""
    return what in bed.log(pod)[before:]


def test_a_killed_backend_costs_no_request_where_there_are_retries(bed: Bed, tmp_path: Path) -> None:
    program = f"pod/{bed.testbed.spec.pod('web-v2').uid}"
    with applied(bed, tmp_path / "policy.yaml", RETRIES), load(bed, "http://web/") as said:
        eventually(lambda: {fetch(bed, "http://web/")[1].split()[0] for _ in range(10)} == backends(bed))
        try:
            assert bed.testbed.processes.kill(program)
            for _ in range(20):
                assert fetch(bed, "http://web/")[1].split()[0] == bed["web-v1"].v4
        finally:
            bed.testbed.run(bed.testbed.spec.pod("web-v2"))
        eventually(lambda: {fetch(bed, "http://web/")[1].split()[0] for _ in range(10)} == backends(bed))
    assert all_well(said), said


def test_a_killed_noded_costs_no_request_where_there_are_retries(bed: Bed, tmp_path: Path) -> None:
    node = bed.node("web-v1")
    with applied(bed, tmp_path / "policy.yaml", RETRIES), load(bed, "http://web/") as said:
        eventually(lambda: {fetch(bed, "http://web/")[1].split()[0] for _ in range(10)} == backends(bed))
        try:
            assert bed.testbed.processes.kill(f"node/{node.name}")
            for _ in range(20):
                assert fetch(bed, "http://web/")[1].split()[0] == bed["web-v2"].v4
        finally:
            bed.testbed.processes.stop(f"node/{node.name}", 40)
            bed.testbed.start_node(node)
        eventually(lambda: {fetch(bed, "http://web/")[1].split()[0] for _ in range(10)} == backends(bed))
    assert all_well(said), said


def test_a_policy_that_permits_them_comes_and_goes_without_a_failed_request(bed: Bed, tmp_path: Path) -> None:
    policy = GET_ONLY.replace("APP", "web")
    with applied(bed, tmp_path / "retries.yaml", RETRIES), load(bed, "http://web/") as said:
        for _ in range(3):
            with applied(bed, tmp_path / "policy.yaml", policy):
                eventually(lambda: fetch(bed, "http://web/", "-X", "POST")[0] == 403)
            eventually(lambda: fetch(bed, "http://web/", "-X", "POST")[0] == 200)
    assert all_well(said), said


def backends(bed: Bed) -> set[str]:
    return {bed["web-v1"].v4, bed["web-v2"].v4}


def test_a_dead_noded_at_the_server_is_a_503_that_says_why(bed: Bed) -> None:
    node = bed.node("web-v1")
    bed.testbed.processes.kill(f"node/{node.name}")
    try:
        status, body = fetch(bed, "http://web-v1/")
        assert (status, "no tunnel" in body) == (503, True)
        eventually(lambda: '"response_flags":"UF' in bed.log("client"))
    finally:
        bed.testbed.processes.stop(f"node/{node.name}", 40)
        bed.testbed.start_node(node)
    eventually(partial(answers, bed, "http://web-v1/"))
