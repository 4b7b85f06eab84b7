"""nodectl against a real noded without a controller: what test_nodectl.py's canned answers promise is what it says."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from noded.control.cli import main
from tests.noded.test_nodectl import STATUS
from tests.unix_api import Result, daemon, invoke

Nodectl = Callable[..., Result]

pytestmark = pytest.mark.root


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def nodectl(capsys: pytest.CaptureFixture[str]) -> Iterator[Nodectl]:
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir="/dev/shm") as keys:  # on tmpfs
        folder = Path(name)
        config = folder / "noded.yaml"
        settings = {
            "node": "node-a",
            "controller": {"address": f"127.0.0.1:{_free_port()}", "tokenFile": f"{folder}/token"},
            "runDir": f"{folder}/run",
            "keyDir": keys,
            "stateDir": f"{folder}/state",
            "workers": 1,
            "metricsAddress": "",
            "readyAddress": "",
        }
        config.write_text(yaml.safe_dump(settings))
        with daemon("noded.main", config, folder / "run/noded.sock"):
            yield lambda *args: invoke(main, capsys, "--socket", f"{folder}/run/noded.sock", *args)


def test_a_node_alone_says_so_and_takes_orders(nodectl: Nodectl) -> None:
    answer = json.loads(nodectl("status", "-o", "json").out)
    assert answer.keys() >= STATUS.keys()
    assert answer["controller"].keys() >= STATUS["controller"].keys()
    assert answer["snapshot"].keys() >= STATUS["snapshot"].keys()
    assert answer["workers"][0].keys() >= STATUS["workers"][0].keys()
    text = nodectl("status").out
    assert "disconnected" in text
    assert "none yet: connections are held" in text

    lists = ["workloads", "services", "policies", "certs", "connections", "tunnels", "capture"]
    results = {name: nodectl(name) for name in lists}
    assert {name: (result.status, result.out) for name, result in results.items()} == dict.fromkeys(lists, (0, ""))
    assert nodectl("workloads", "--all").status == nodectl("capture", "--verify").status == 0

    assert yaml.safe_load(nodectl("config").out)["node"] == "node-a"
    assert "nodemesh_" in nodectl("metrics").out
    assert nodectl("log-level", "debug").status == 0
    assert nodectl("log-level").out == "debug\n"

    refused = nodectl("enroll", "Web", "--netns", "/nowhere")
    assert (refused.status, "DNS name" in refused.err, "hint:" in refused.err) == (1, True, True)
    assert nodectl("remove", "web").status == 1

    assert "noded has ended" in nodectl("drain", "--timeout", "1s").out
    assert nodectl("status").status == 3
