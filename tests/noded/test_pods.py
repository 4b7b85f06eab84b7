"""Which pod a process belongs to."""

import os
from pathlib import Path

import pytest

from noded.control.pods import Sandbox, pod_of, sandboxes, visible

UID = "6f1c2d3e-0a1b-4c2d-8e3f-123456789abc"
OTHER = "00000000-1111-2222-3333-444444444444"
SYSTEMD = UID.replace("-", "_")
CONTAINER = "a" * 64


@pytest.mark.parametrize(
    "cgroup",
    [
        f"12:cpuset:/\n11:cpu:/kubepods/burstable/pod{UID}/{CONTAINER}\n0::/\n",
        f"11:memory:/kube-n1/kubepods/pod{UID}/{CONTAINER}",
        f"4:pids:/kubepods/besteffort/pod{UID}/crio-{CONTAINER}",
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope",
        f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/crio-{CONTAINER}.scope",
        f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/crio-{CONTAINER}.scope/container",
        f"0::/../../kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope",
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SYSTEMD}.slice:cri-containerd:{CONTAINER}"
        f"\n1:name=systemd:/kubepods/pod{UID}/{CONTAINER}",
        f"0::/kubepods/pod{UID}",
    ],
)
def test_the_pod_is_found_in_every_layout(cgroup: str) -> None:
    assert pod_of(cgroup) == UID


@pytest.mark.parametrize(
    "cgroup",
    ["0::/", "0::/system.slice/kubelet.service", "0::/user.slice", "", f"0::/kubepods/{UID}", f"0::/pod{UID[:-1]}/x",
     f"0::/kubepods/pod{UID}0/x", f"0::/kubepods/pod{UID.replace('-', '_', 1)}/x", f"0::/xpod{UID}/y"],
)  # fmt: skip
def test_other_processes_belong_to_none(cgroup: str) -> None:
    assert pod_of(cgroup) is None


def test_a_static_pod_is_known_by_the_hash_of_its_file() -> None:
    name = UID.replace("-", "")
    assert pod_of(f"11:cpu:/kubepods/besteffort/pod{name}/{CONTAINER}") == name
    assert pod_of(f"0::/kubepods.slice/kubepods-pod{name}.slice/cri-containerd-{CONTAINER}.scope") == name
    assert pod_of(f"0::/kubepods/pod{name}0/x") is None


def test_a_container_that_names_its_own_folders_after_another_pod_stays_in_its_own() -> None:
    assert pod_of(f"0::/kubepods/pod{UID}/{CONTAINER}/kubepods/pod{OTHER}/{CONTAINER}") == UID
    assert pod_of(f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri.scope/pod{OTHER}") == UID


def process(proc: Path, pid: int, cgroup: str, started: int, name: str = "pause", state: str = "S") -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_text(cgroup)
    fields = " ".join(["0"] * 18)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {fields} {started} 0 0\n")


def test_the_oldest_process_stands_for_the_pod(tmp_path: Path) -> None:
    process(tmp_path, 900, f"0::/kubepods/pod{UID}/a", started=500)
    process(tmp_path, 31, f"0::/kubepods/pod{UID}/b", started=600)  # numbers wrap around
    process(tmp_path, 7, f"0::/kubepods/pod{UID}/b", started=100, state="Z")
    process(tmp_path, 40, f"0::/kubepods/pod{OTHER}/c", started=700, name="a) S 1 (b")
    process(tmp_path, 1, "0::/init.scope", started=1)
    (tmp_path / "meminfo").touch()
    (tmp_path / "50").mkdir()  # ended while we looked
    assert sandboxes(tmp_path) == {UID: Sandbox(900, 500), OTHER: Sandbox(40, 700)}
    assert Sandbox(900, 500).netns(tmp_path) == f"{tmp_path}/900/ns/net"


def test_this_host_s_processes_can_be_read() -> None:
    found = sandboxes()
    assert all(sandbox.pid != os.getpid() for sandbox in found.values())


def test_a_runtimes_namespace_is_found_where_the_host_has_it(tmp_path: Path) -> None:
    host = tmp_path / "1/root"
    (host / "run/netns").mkdir(parents=True)
    (host / "run/netns/cni-4711").touch()
    (host / "var").mkdir()
    (host / "var/run").symlink_to("/run")  # as Debian has it: seen from here it leads to our own /run
    for given in ("/run/netns/cni-4711", "/var/run/netns/cni-4711"):
        assert visible(given, tmp_path) == f"{host}/run/netns/cni-4711"
    own = tmp_path / "own"
    own.touch()
    assert visible(str(own), tmp_path) == str(own)
