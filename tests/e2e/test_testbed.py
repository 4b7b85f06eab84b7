"""`tools/testbed` as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import mesh, network
from tests.e2e.pods import eventually

NAME = f"c{os.getpid()}"
FILE = f"""\
name: {NAME}
nodes: [node-a, node-b]
pods:
  - {{name: client, node: node-a, namespace: shop, serviceAccount: client, labels: {{app: client}}}}
  - name: web
    node: node-b
    namespace: shop
    serviceAccount: web
    labels: {{app: web}}
    run: [python3, -m, http.server, "8080"]
services:
  - {{name: web, namespace: shop, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
policies: [policy.yaml]
"""
POLICY = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
URL = ("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "http://web.shop.svc.cluster.local/")


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "testbed", *words]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("testbed")
    (folder / "shop.yaml").write_text(FILE)
    (folder / "policy.yaml").write_text(POLICY)
    try:
        done = typed("up", str(folder / "shop.yaml"))
        assert done.returncode == 0, done.stderr
        yield done.stdout
    finally:
        mesh.down(NAME)


def test_up_says_what_it_made_and_status_says_it_again(up: str) -> None:
    for made in ("node-a", "node-b", "shop/client", "shop/web", "10.77.2.2"):
        assert made in up
    facts = json.loads(typed("-n", NAME, "status", "-o", "json").stdout)
    assert {pod["name"]: (pod["mesh"], pod["program"]) for pod in facts["pods"]} == {
        "client": ("ready", "none"),
        "web": ("ready", "running"),
    }
    assert {node["noded"] for node in facts["nodes"]} == {"running"}


def test_a_program_in_a_pod_reaches_another_by_its_services_name(up: str) -> None:
    def ok() -> bool:
        return typed("exec", "-n", NAME, "client", "--", *URL).stdout == "200"

    eventually(ok)


def test_nodectl_works_on_a_node_and_meshctl_on_the_controllers_host(up: str) -> None:
    status = json.loads(typed("-n", NAME, "node", "node-b", "--", "nodectl", "status", "-o", "json").stdout)
    assert status["node"] == "node-b"
    assert "strict" in typed("-n", NAME, "meshctl", "get", "peerauthentications", "--namespace", "shop").stdout


def test_a_workload_is_removed_and_enrolled_again_by_hand(up: str) -> None:
    there = ("-n", NAME, "node", "node-a", "--", "nodectl")
    removed = typed(*there, "remove", "client", "--namespace", "shop", "--drain", "0s")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert typed("-n", NAME, "exec", "client", "--", *URL).returncode != 0  # plaintext, where STRICT is asked
    words = (
        "--netns",
        f"nm-{NAME}-shop.client",
        "--namespace",
        "shop",
        "--service-account",
        "client",
        "-l",
        "app=client",
    )
    enrolled = typed(*there, "enroll", "client", *words)
    assert enrolled.returncode == 0, enrolled.stderr
    assert typed("-n", NAME, "exec", "client", "--", *URL).stdout == "200"


def test_a_killed_noded_shows_and_comes_back(up: str) -> None:
    assert typed("-n", NAME, "kill", "node-b").returncode == 0
    assert "is not running" in typed("-n", NAME, "kill", "node-b").stderr
    facts = json.loads(typed("-n", NAME, "status", "-o", "json").stdout)
    assert [node["noded"] for node in facts["nodes"]] == ["running", "dead"]
    assert typed("-n", NAME, "exec", "client", "--", *URL).stdout == "503"
    restarted = typed("-n", NAME, "restart", "node-b")
    assert restarted.returncode == 0, restarted.stderr
    assert typed("-n", NAME, "exec", "client", "--", *URL).stdout == "200"


def test_logs_are_there_for_daemons_and_programs(up: str) -> None:
    assert "{" in typed("-n", NAME, "logs", "controller").stdout
    assert "node-a" in typed("-n", NAME, "logs", "node-a").stdout
    assert "GET / HTTP/1.1" in typed("-n", NAME, "logs", "web").stdout


def test_an_unknown_pod_is_answered_with_those_there_are(up: str) -> None:
    done = typed("-n", NAME, "exec", "nobody", "--", "true")
    assert (done.returncode, "shop/client" in done.stderr) == (1, True)


def test_down_leaves_nothing_even_after_everything_crashed(up: str) -> None:
    namespaces = network.remaining(NAME)
    for pid in network.processes(namespaces):
        os.kill(pid, 9)
    done = typed("down", NAME)
    assert (done.returncode, done.stderr) == (0, "")
    assert network.remaining(NAME) == []
    assert network.processes(namespaces) == []
    assert NAME not in mesh.names()
    assert NAME not in Path("/proc/mounts").read_text()
    assert "is not up" in typed("down", NAME).stderr


@pytest.mark.parametrize("tool", ["testbed", "demo"])
def test_ctrl_c_while_it_comes_up_takes_it_down_again_and_says_so(tool: str, tmp_path: Path) -> None:
    name = f"i{os.getpid()}"
    (tmp_path / "file.yaml").write_text(f"{{name: {name}, nodes: [node-a], pods: []}}")
    words = {"testbed": ["up", str(tmp_path / "file.yaml")], "demo": ["-n", name]}[tool]
    # A background job of a shell, which the tests may be, ignores the signal and would pass that on.
    argv = ["env", "--default-signal=INT", sys.executable, "-P", "-m", tool, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "network:" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1].startswith(f"tools/{tool}: interrupted, ")
    assert "Traceback" not in errors
    assert process.returncode == 130
    assert network.remaining(name) == []
    assert name not in mesh.names()
