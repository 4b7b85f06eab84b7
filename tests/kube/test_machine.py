"""Where there can't be a cluster, `tools/kubebed` says why and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kubebed import machine, spec
from kubebed.errors import KubebedError, UnfitMachine

MOUNTS = """\
30 25 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:4 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
33 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
34 30 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
"""


def test_hierarchies_are_found_as_systemd_mounts_them() -> None:
    assert machine.hierarchies(MOUNTS) == {
        "name=systemd": Path("/sys/fs/cgroup/systemd"),
        "cpu,cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "memory": Path("/sys/fs/cgroup/memory"),
    }


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnfitMachine, match="root is needed: sudo"):
        machine.check()


@pytest.mark.root
def test_another_system_is_named(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n')
    with pytest.raises(UnfitMachine, match=r"Debian 12 is needed.*this is Debian GNU/Linux 13 \(trixie\)"):
        machine.check(release)


@pytest.mark.root
def test_missing_hierarchies_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "hierarchies", lambda: {"memory": Path("/sys/fs/cgroup/memory")})
    with pytest.raises(UnfitMachine) as caught:
        machine.check()
    assert "cpuset" in str(caught.value)
    assert "systemd.unified_cgroup_hierarchy=0" in str(caught.value)


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "a" * 21, "../x"])
def test_a_name_that_could_be_part_of_another_is_refused(name: str) -> None:
    with pytest.raises(KubebedError, match="can't be a cluster's name"):
        spec.make(name, 1, 2)


@pytest.mark.parametrize("nodes", [0, 10])
def test_a_number_of_nodes_that_has_no_addresses_is_refused(nodes: int) -> None:
    with pytest.raises(KubebedError, match="1 to 9 nodes"):
        spec.make("kube", 1, nodes)


def test_no_two_nodes_share_an_address_and_an_unknown_one_is_answered_with_those_there_are() -> None:
    made = spec.make("kube", 1, 9)
    for addresses in ({n.address for n in made.nodes}, {n.pods for n in made.nodes}, {n.name for n in made.nodes}):
        assert len(addresses) == 9
    with pytest.raises(KubebedError, match="it has node-a, node-b"):
        spec.make("kube", 1, 2).node("node-c")
