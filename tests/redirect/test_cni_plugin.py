"""The plug-in as a runtime calls it: a process with CNI_* variables and a configuration on stdin, under two shells."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redirect.cni.install import NAME, Installer

SHELLS = {"dash": ("dash",), "busybox": ("busybox", "sh")}
RESULT = {
    "cniVersion": "0.4.0",
    "interfaces": [{"name": "eth0", "mac": "0a:58:0a:f4:01:05", "sandbox": "/var/run/netns/cni-1"}],
    "ips": [{"version": "4", "interface": 0, "address": "10.244.1.5/24", "gateway": "10.244.1.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {},
}
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1"


@dataclass
class Host:
    """A host's folders with the plug-in in them, and the shell that runs it."""

    installer: Installer
    shell: tuple[str, ...]
    folder: Path

    @property
    def requests(self) -> Path:
        return self.installer.exchange_dir / "requests"

    def present(self) -> None:
        self.requests.mkdir(parents=True)
        (self.installer.exchange_dir / "ready").touch()

    def mark(self, namespace: str) -> None:
        (self.installer.namespaces / namespace).touch()

    def call(
        self, command: str = "ADD", config: Any = None, text: str | None = None, **variables: str
    ) -> tuple[int, str]:
        config = {"cniVersion": "0.4.0", "name": "kbridge", "type": NAME, "prevResult": RESULT, **(config or {})}
        environment = {
            "PATH": "/nowhere",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/var/run/netns/cni-1",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": ARGS,
            "CNI_PATH": "/opt/cni/bin",
            **variables,
        }
        done = subprocess.run(
            ["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in environment.items()),
             *[f"/usr/bin/{self.shell[0]}", *self.shell[1:]], str(self.installer.bin_dir / NAME)],
            input=json.dumps(config) if text is None else text, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture(params=SHELLS, ids=list(SHELLS))
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    for name in ("bin", "conf"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf" / "10-net.conflist").write_text(
        '{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge"}]}'
    )
    folder = tmp_path / "it's a folder"
    installer = Installer(tmp_path / "bin", tmp_path / "conf", folder / "state", folder / "run")
    installer.ensure()
    return Host(installer, SHELLS[request.param], tmp_path)


class Noded:
    """Answers requests as `noded` does, on a thread."""

    def __init__(self, host: Host, answer: Callable[[str], bytes | None]) -> None:
        self.seen: list[str] = []
        self._host, self._answer, self._stop = host, answer, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Noded":
        self._host.present()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            for path in self._host.requests.glob("*.request"):
                taken = path.with_suffix(".taken")
                path.rename(taken)
                self.seen.append(taken.read_text())
                answer = self._answer(self.seen[-1])
                if answer is not None:
                    unfinished = path.with_suffix(".part")
                    unfinished.write_bytes(answer)
                    unfinished.rename(path.with_suffix(".answer"))
                taken.unlink()


def test_version_names_what_it_speaks(host: Host) -> None:
    status, out = host.call("VERSION")
    assert status == 0
    assert {"0.3.1", "0.4.0", "1.0.0"} <= set(json.loads(out)["supportedVersions"])


@pytest.mark.parametrize("command", ["CHECK", "GC", "STATUS", "DEL"])
def test_commands_other_than_add_succeed_without_noded(host: Host, command: str) -> None:
    host.mark("shop")
    assert host.call(command) == (0, "")


def test_an_admitted_pod_gets_the_result_of_the_plug_in_before(host: Host) -> None:
    with Noded(host, lambda _: b"0\n") as noded:
        status, out = host.call()
    assert (status, json.loads(out)) == (0, RESULT)
    head, _, config = noded.seen[0].partition("\n\n")
    assert dict(line.split("=", 1) for line in head.splitlines()) == {
        "command": "ADD", "netns": "/var/run/netns/cni-1", "interface": "eth0",
        "namespace": "shop", "name": "web-0", "uid": "u-1",
    }  # fmt: skip
    assert json.loads(config)["prevResult"] == RESULT
    assert list(host.requests.iterdir()) == []


def test_what_noded_refuses_is_the_plug_ins_error(host: Host) -> None:
    error = {"cniVersion": "0.4.0", "code": 11, "msg": 'the "controller" is away', "details": "wait\\"}
    with Noded(host, lambda _: b"1\n" + json.dumps(error).encode() + b"\n"):
        status, out = host.call()
    assert (status, json.loads(out)) == (1, error)
    assert list(host.requests.iterdir()) == []


def test_without_noded_a_pod_of_the_mesh_is_to_be_tried_again_later(host: Host) -> None:
    host.mark("shop")
    status, out = host.call()
    answer = json.loads(out)
    assert (status, answer["code"], answer["cniVersion"]) == (1, 11, "0.4.0")
    assert "shop" in answer["msg"]


def test_without_noded_other_pods_start(host: Host) -> None:
    host.mark("other")
    status, out = host.call()
    assert (status, json.loads(out)) == (0, RESULT)


@pytest.mark.parametrize("namespace", ["kube-system", "nodemesh-system"])
def test_the_system_s_own_pods_never_wait(host: Host, namespace: str) -> None:
    host.mark(namespace)
    host.present()  # and nobody takes requests
    status, out = host.call(CNI_ARGS=f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=dns")
    assert (status, json.loads(out)) == (0, RESULT)


@pytest.mark.parametrize("marked", [True, False])
def test_a_noded_that_died_without_a_word_is_given_up(host: Host, marked: bool) -> None:
    host.present()
    if marked:
        host.mark("shop")
    status, out = host.call()
    assert status == (1 if marked else 0)
    assert json.loads(out).get("code") == (11 if marked else None)
    assert list(host.requests.iterdir()) == []


def test_a_noded_that_dies_while_it_works_on_a_pod_lets_it_fail(host: Host) -> None:
    with Noded(host, lambda _: None):
        status, out = host.call()
    assert (status, json.loads(out)["code"]) == (1, 11)


def test_del_tells_noded_and_does_not_wait(host: Host) -> None:
    host.present()
    began = time.monotonic()
    assert host.call("DEL", {"prevResult": None}) == (0, "")
    assert time.monotonic() - began < 5  # it would wait that long for ADD
    (request,) = host.requests.glob("*.request")
    assert "command=DEL\n" in request.read_text()
    assert "uid=u-1\n" in request.read_text()


TRICKY: list[dict[str, Any]] = [
    {"aa": '"prevResult": {"no": 1}', "b": [{"prevResult": {"no": 2}}]},
    {"a": {"prevResult": {"no": 1}}, "b": "}{][\\", "c": "prevResult", "d": '\\"'},
    {"name": "prevResult"},
    {"args": {"cni": {"prevResult": "x"}}, "e": "été ☃ \U0001f600", "n": 1.5e3, "t": True, "z": None},
]


@pytest.mark.parametrize("more", TRICKY)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_result_is_found_whatever_surrounds_it(host: Host, more: dict[str, Any], indent: int | None) -> None:
    result = {**RESULT, "strange": ["{", "}", "\\", '"}', {"prevResult": {}}], "é": '\\\\"{'}
    before = {"cniVersion": "1.0.0", **more}
    for config in ({**before, "prevResult": result}, {"prevResult": result, **before}):
        for ascii_only in (True, False):
            status, out = host.call(text=json.dumps(config, indent=indent, ensure_ascii=ascii_only))
            assert (status, json.loads(out)) == (0, result)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"prevResult": null}', '{"a": {"prevResult": {}}}', '{"prevResult": "x"}', "["]
)
def test_without_a_result_it_is_in_the_wrong_place_and_says_so(host: Host, text: str) -> None:
    status, out = host.call(text=text)
    assert (status, json.loads(out)["code"]) == (1, 7)


@pytest.mark.parametrize("name", ["", "../../etc/x", "a/b"])
def test_a_container_id_that_is_no_name_makes_no_file(host: Host, name: str) -> None:
    host.present()
    assert json.loads(host.call(CNI_CONTAINERID=name)[1])["code"] == 4
    assert host.call("DEL", CNI_CONTAINERID=name) == (0, "")
    assert list(host.requests.iterdir()) == []


@pytest.mark.parametrize("namespace", ["../x", "a'b", "$(id)", "a b", 'a"b'])
def test_a_namespace_that_is_no_name_is_refused(host: Host, namespace: str) -> None:
    status, out = host.call(CNI_ARGS=f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=x")
    assert (status, json.loads(out)["code"]) == (1, 4)


def test_an_unknown_command_is_an_error(host: Host) -> None:
    status, out = host.call("FROB")
    assert (status, json.loads(out)["code"]) == (1, 4)
    assert os.access(host.installer.bin_dir / NAME, os.X_OK)
