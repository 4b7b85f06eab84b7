"""The installed program: as a user starts and stops it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from controller.config import ConfigError, load
from tests.controller.client import Credential, connected, csr_for, join, new_key, workload

CONFIG = """
listen: "127.0.0.1:0"
monitoringAddress: "127.0.0.1:0"
advertise: [127.0.0.1]
stateDir: {folder}/state
runDir: {folder}/run
meshRanges: [10.77.0.0/16]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(folder: Path, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """mesh-controller, serving. Killed at the end if it is still there."""
    text = CONFIG.format(folder=folder)
    for key, value in changes.items():
        text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key}:")) + f"\n{key}: {value}\n"
    (folder / "controller.yaml").write_text(text)
    argv = [sys.executable, "-m", "controller.main", "--config", str(folder / "controller.yaml")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if json.loads(line)["message"] == "serving":
                break
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def call(folder: Path, method: str, path: str, body: Any = None) -> Any:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "run/controller.sock"))) as client:
        return client.request(method, f"http://controller{path}", json=body, timeout=10).json()


def test_sigterm_ends_it_cleanly_and_takes_the_socket_away(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not (tmp_path / "run/controller.sock").exists()


async def test_after_kill_9_nodes_come_back_with_what_they_had(tmp_path: Path) -> None:
    port = free_port()
    manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n"
    with running(tmp_path, listen=f'"127.0.0.1:{port}"') as process:
        token = call(tmp_path, "POST", "/v1/tokens", {"allow": ["shop/*"], "node": "node-a"})["token"]
        call(tmp_path, "POST", "/v1/apply", {"files": [{"name": "f", "text": manifest}]})
        before = call(tmp_path, "GET", "/v1/resources/services")
        credential = await join(port, token, "node-a")
        assert isinstance(credential, Credential)
        web = workload("web-1", "10.77.1.2")
        async with connected(port, credential) as node:
            await node.enrol(web)
            last = node.updates[-1]
            process.kill()
            with trio.fail_after(60):
                await node.closed.wait()
    with running(tmp_path, listen=f'"127.0.0.1:{port}"'):
        assert call(tmp_path, "GET", "/v1/resources/services") == before
        # Before the node is back it is still in the mesh: it runs without the controller.
        assert [w["uid"] for w in call(tmp_path, "GET", "/v1/workloads")["items"]] == ["shop/web-1"]
        again = connected(port, credential, epoch=last.epoch, revision=last.revision, workloads=(web,))
        async with again as node:
            update = await node.until(lambda: node.updates and node.updates[0])
            assert update.full
            assert [w.uid for w in update.workloads] == ["shop/web-1"]
            assert type(await node.sign("shop/web-1", csr_for(new_key()))).__name__ == "Signed"


def test_a_second_one_on_the_same_state_says_why_it_does_not_start(tmp_path: Path) -> None:
    with running(tmp_path):
        argv = [sys.executable, "-m", "controller.main", "--config", str(tmp_path / "controller.yaml")]
        second = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert second.returncode == 1
    assert "in use by another mesh-controller" in second.stderr
    assert "Traceback" not in second.stderr


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path).replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
        argv = [sys.executable, "-m", "controller.main", "--config", str(tmp_path / "c.yaml")]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert "in use" in ended.stderr
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listn: x", ["c.yaml:1:1: listn: unknown field 'listn' (did you mean 'listen'?)"]),
        ("\nlisten: 15012\n", ["c.yaml:2:1: listen: 15012 is not an IP address and port"]),
        ('listen: "host:15012"', ["is not an IP address and port"]),
        ("meshRanges: [10.77.0.1/16]", ["meshRanges[0]", "has host bits set"]),
        ("trustDomain: spiffe://x", ["trustDomain", "without spiffe://"]),
        ("stateDir: here", ["'here' is not an absolute path"]),
        ("logLevel: loud", ["'loud' is not supported", "'debug'"]),
        ("workloadCertificateHours: 0", ["workloadCertificateHours"]),
        ("advertise: ['mesh.test:15012']", ["advertise[0]", "leave the port out"]),
        ("advertise: []", ["advertise: must not be empty"]),
        ("serviceRange: [10.96.0.0/16, 10.97.0.0/16]", ["more than one range of a family"]),
        ("a: [", ["not valid YAML"]),
        ("logLevel: info\nlogLevel: info", ["duplicate key"]),
        ("listn: x\nlogLevel: loud", ["c.yaml:1:1", "c.yaml:2:1"]),
    ],
)
def test_a_bad_configuration_is_refused_with_the_line(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_configuration_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")


def test_an_empty_configuration_has_the_documented_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    config = load(tmp_path / "c.yaml")
    assert (str(config.listen), str(config.monitoring_address)) == ("0.0.0.0:15012", "0.0.0.0:15014")
    assert config.service_range == ["10.96.0.0/16"]
