"""What `tools/bench l7` asks of proxies, and what it makes of its measurements."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench import envoy_http, haproxy, mesh_http, work
from bench.certificates import Authority
from bench.figures import Run
from bench.http_figures import Idle, Series, document, table
from bench.http_load import report
from bench.load import LoadError, Requests
from controller.schema import manifests

H2LOAD = """\
finished in 1.00s, 4.00 req/s, 1.21MB/s
requests: 5 total, 6 started, 5 done, 4 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 1 5xx
traffic: 1.21MB (1269889) total, 384.98KB (394221) headers (space savings 94.11%), 8B (21) data
"""
LOG = "1795189390946301\t200\t10\n1795189390946405\t200\t20\n1795189390946409\t200\t30\n"


def run(rps: float, cpu: float) -> Run:
    return Run(Requests(1000, rps, p50_us=rps / 10, p99_us=rps / 5, errors=0), cpu_us=cpu * 1000)


def series(*values: float, processes: tuple[str, ...] = ("envoy client", "envoy server")) -> Series:
    kinds = [(protocol.name, count) for protocol in work.PROTOCOLS for count in (1, 64)]
    before, after = dict.fromkeys(processes, 10.0), dict.fromkeys(processes, 20.0)
    return Series({kind: [run(value, value) for value in values] for kind in kinds}, Idle(5000, before, after))


def test_only_the_last_policy_permits_what_the_load_asks_for() -> None:
    for number in range(work.POLICIES):
        permits = [
            any(protocol.path.startswith(prefix) for prefix in work.policy_paths(number))
            for protocol in work.PROTOCOLS
        ]  # fmt: skip
        assert permits == [number == work.POLICIES - 1] * 3
    assert not any(protocol.path.startswith(work.OTHER_ROUTES) for protocol in work.PROTOCOLS)


def test_the_mesh_takes_the_routes_and_policies_that_it_is_asked_for() -> None:
    resources = [*mesh_http.routes(), *mesh_http.policies({"app": "server"}, "td/ns/bench/sa/client")]
    read, problems = manifests.load([("bench", yaml.safe_dump_all(resources))])
    assert problems == []
    assert len(read) == 3 + work.POLICIES


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_envoy_has_as_many_policies_and_routes_as_the_mesh(authority: Authority, tmp_path: Path) -> None:
    identities = ["spiffe://td/ns/bench/sa/client"]
    credentials = authority.issue("client", identities[0])
    server = envoy_http.server(credentials, pod="10.0.0.1", mark=1, accepts=identities, log=tmp_path / "log")
    client = envoy_http.client(credentials, server="10.0.0.1", mark=1, accepts=identities, log=tmp_path / "log")
    inner = server["listeners"][1]["filter_chains"][0]["filters"][0]["typed_config"]
    assert len(inner["http_filters"][0]["typed_config"]["rules"]["policies"]) == work.POLICIES
    outbound = client["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    rules = [len(resource["spec"]["rules"]) for resource in mesh_http.routes()]
    assert [len(host["routes"]) for host in outbound["route_config"]["virtual_hosts"]] == rules


def test_haproxy_asks_for_identity_method_and_path(authority: Authority) -> None:
    text = haproxy.server(authority.issue("server", "spiffe://td/ns/bench/sa/server"), policies=3)
    rules = [line.split("if ")[-1] for line in text.splitlines() if "http-request allow" in line]
    who = "{ ssl_c_s_dn(cn) -m str client } { method GET POST }"
    assert rules[0] == f"{who} {{ path_beg /service-00000/ /v2/service-00000/ }}"
    assert rules[2] == f"{who} {{ path_beg /bench/ }}"
    assert text.index("http-request deny") > text.index("path_beg /bench/")


def test_a_grpc_call_that_was_refused_with_status_200_is_an_error() -> None:
    seen = report(H2LOAD, LOG, "http://a/", size=7)
    assert seen == Requests(requests=4, rps=4.0, p50_us=20.0, p99_us=seen.p99_us, errors=1 + (4 - 3))


def test_without_an_answer_there_is_no_figure() -> None:
    with pytest.raises(LoadError, match="http://a/"):
        report(H2LOAD.replace("4 succeeded", "0 succeeded"), LOG, "http://a/", size=7)
    with pytest.raises(LoadError, match="could not resolve"):
        report("could not resolve", "", "http://a/", size=7)


def test_the_document_has_a_row_for_each_path_protocol_and_number_of_connections() -> None:
    ours = series(1.0, 3.0, 100.0, processes=("node-a control", "node-a worker 0", "node-b worker 0"))
    written = document({"nodemesh": ours, "direct": Series({("http/1.1", 1): [run(5, 0)]})})
    assert json.loads(json.dumps(written)) == written
    assert len(written["rows"]) == 7
    assert written["rows"][0] == {
        "path": "nodemesh",
        "protocol": "http/1.1",
        "connections": 1,
        "rps": 3.0,
        "p50_us": 0.3,
        "p99_us": 0.6,
        "cpu_us_per_request": 3.0,
    }
    # What carries no traffic is not counted as memory of connections.
    assert written["idle"] == {
        "nodemesh": {"connections": 5000, "rss_mb": 40.0, "rss_mb_before": 20.0, "kb_each": 4.0},
    }


def test_the_table_says_what_is_wanted() -> None:
    lines = table({"nodemesh": series(2.0), "envoy": series(4.0), "direct": Series()}).splitlines()
    wanted = {line.split(":")[0] + line.split(":")[1].split("  ")[0]: line.rpartition("≤ ")[2] for line in lines[1:]}
    assert wanted["http/1.1, 64 CPU µs a request"] == "1"
    assert wanted["http/2, 64 CPU µs a request"] == wanted["grpc, 64 CPU µs a request"] == "1.3"
    assert wanted["grpc, 1 p50 µs"] == "1.2"
    assert next(line for line in lines if line.startswith("5 000 idle connections: MB")).split()[-6:] == [
        "40", "-", "1.00", "1.00–1.00", "≤", "1",
    ]  # fmt: skip


def test_idle_connections_stay_open_until_stdin_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "-P", "-m", "bench.idle", "127.0.0.1", str(port), "/bench/item", "3"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            opened = [listening.accept()[0] for _ in range(3)]
            for connection in opened:
                connection.settimeout(20)
                assert connection.recv(4096).startswith(b"GET /bench/item HTTP/1.1\r\n")
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.communicate()
        assert [connection.recv(1) for connection in opened] == [b"", b"", b""]
        for connection in opened:
            connection.close()
