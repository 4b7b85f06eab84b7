"""Envoy, configured as Istio does for each mode, gives a path the form that we give it."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.paths import Normalization, normalise

_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
_MANAGER = f"{_EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager"
_MODES: dict[Normalization, dict[str, object]] = {
    Normalization.BASE: {"normalize_path": True},
    Normalization.MERGE_SLASHES: {"normalize_path": True, "merge_slashes": True},
    Normalization.DECODE_AND_MERGE_SLASHES: {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    },
}
_PIECES = (
    b"/ / .. . %2e %2E a b %2f %2F %5c %5C \\ %41 %7e %25 %20 %zz % %00 %c0%af ; | { ' \" < ~ : ^ ` %5f %2 ? =".split()
)
_PARAMETERS = re.compile(rb"%2[eE](?:\.|%2[eE])?;|\.%2[eE];")
"""Where we see through one thing more than Envoy does; see `mesh.paths`."""
_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _listener(mode: Normalization, folder: Path) -> dict[str, object]:
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "response_headers_to_add": [{"header": {"key": "x-path", "value": "%REQ(:PATH)%"}}],
    }
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.http.router.v3.Router"}}],
        **_MODES[mode],
    }
    return {
        "name": mode.value,
        "address": {"pipe": {"path": str(folder / mode.value)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("paths")
    config = {"static_resources": {"listeners": [_listener(mode, folder) for mode in _MODES]}}
    (folder / "envoy.json").write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("envoy")), "-c", str(folder / "envoy.json"), "--concurrency", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--use-dynamic-base-id", "-l", "error"], stdout=log, stderr=log)
    try:
        while not all((folder / mode.value).exists() for mode in _MODES):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder
    finally:
        process.terminate()
        process.wait()


def _ask(address: Path, path: bytes) -> bytes | None:
    """The path as Envoy has it; None where it refuses."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(address))
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer and (data := client.recv(65_536)):
            answer += data
    if answer.startswith(b"HTTP/1.1 400 "):
        return None
    (found,) = re.findall(rb"\r\nx-path: ([^\r]*)\r\n", answer)
    return bytes(found)


@pytest.mark.parametrize("mode", _MODES)
def test_envoy_gives_a_path_the_same_form(envoy: Path, mode: Normalization) -> None:
    chance = random.Random(7)
    paths = [b"/" + b"".join(chance.choices(_PIECES, k=chance.randint(1, 7))) for _ in range(300)]
    paths += [b"/%%%02x" % byte for byte in range(256)]
    paths += [b"/%c" % byte for byte in range(33, 127) if byte != ord("#")]
    for path in paths:
        theirs = _ask(envoy / mode.value, path)
        try:
            ours = normalise(path, mode)
        except ValueError:
            ours = None
        if _BROKEN.search(path.partition(b"?")[0]):
            assert ours is None, path
        elif theirs is not None and theirs.partition(b"?")[0] == b"//" and mode is not Normalization.BASE:
            assert ours is not None
            assert ours.partition(b"?")[0] == b"/"
        elif _PARAMETERS.search(path):
            assert ours is not None
        else:
            assert ours == theirs, path
