"""Rules in the kernel: written at once, read back, repaired, removed; other software's left alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from redirect.capture import Capture, CaptureError, new_mark
from redirect.plan import CHAINS, PRIORITY, REROUTE_MARK, TABLE, usable_mark
from redirect.tables import TableError, lock
from tests.redirect.pods import Host, World, ip

pytestmark = pytest.mark.root
PROGRAMS = ("iptables-legacy", "ip6tables-legacy")
CHAIN = list(CHAINS)[1]


def state(host: Host) -> list[str]:
    """Everything that capture may touch, as the tools show it, without counters."""
    shown = [line for program in PROGRAMS for line in host.run(program, "-t", "mangle", "-S").splitlines()]
    for family in ("-4", "-6"):
        shown += ip("-n", host.name, family, "rule").splitlines()
        shown += ip("-n", host.name, family, "route", "show", "table", "all").splitlines()
    # the kernel adds those of the link-local address when it has made sure of it, a second or two after the link is up
    shown = [line for line in shown if not any(own in line for own in ("fe80::", "ff00::"))]
    shown += host.run("sysctl", "-a", "--pattern", "rp_filter|accept_local|route_localnet|src_valid").splitlines()
    return shown


def test_undo_leaves_nothing_behind(world: World) -> None:
    before = state(world.pod)
    world.capture.apply()
    assert state(world.pod) != before
    world.capture.undo()
    assert state(world.pod) == before


def test_undo_works_without_apply_and_twice_and_after_draining(world: World) -> None:
    before = state(world.pod)
    world.capture.undo()
    world.capture.apply()
    world.capture.undo_syn()
    world.capture.undo()
    world.capture.undo()
    assert state(world.pod) == before


def test_draining_what_was_never_applied_adds_nothing(world: World) -> None:
    before = state(world.pod)
    world.capture.undo_syn()
    assert state(world.pod) == before


def test_applying_again_changes_nothing_and_drift_is_none(world: World) -> None:
    world.capture.apply()
    once = state(world.pod)
    world.capture.apply()
    assert state(world.pod) == once
    assert world.capture.verify() == []


def test_a_new_mark_replaces_the_old_one_everywhere(world: World) -> None:
    world.capture.apply()
    renewed = Capture(world.pod.path, new_mark())
    assert any("another mark" in drift for drift in renewed.verify())
    renewed.apply()
    assert renewed.verify() == []
    assert f"{world.mark:#x}" not in "\n".join(state(world.pod))


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_an_older_version_left_is_replaced(world: World, program: str) -> None:
    for chain, hook in CHAINS.items():
        world.pod.run(program, "-t", "mangle", "-N", chain)
        world.pod.run(program, "-t", "mangle", "-A", chain, "-p", "udp", "-j", "DROP")
        for _ in range(2):
            world.pod.run(program, "-t", "mangle", "-A", hook, "-j", chain)
    ip("-n", world.pod.name, "rule", "add", "fwmark", "0x999", "lookup", str(TABLE), "priority", "77")
    ip("-n", world.pod.name, "route", "add", "local", "default", "dev", "lo", "table", str(TABLE), "metric", "99")
    assert any("0x999" in drift for drift in world.capture.verify())
    world.capture.apply()
    assert world.capture.verify() == []
    shown = "\n".join(state(world.pod))
    assert "0x999" not in shown
    assert "metric 99" not in shown
    assert shown.count("-j NODEMESH_OUTPUT") == len(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_softwares_rules_stay_and_ours_come_first(world: World, program: str) -> None:
    foreign = (
        ("-N", "SOMEBODY"),
        ("-A", "SOMEBODY", "-p", "tcp", "-m", "comment", "--comment", "theirs", "-j", "MARK", "--set-mark", "0x5"),
        ("-A", "OUTPUT", "-j", "SOMEBODY"),
        ("-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "SOMEBODY"),
    )
    for rule in foreign:
        world.pod.run(program, "-t", "mangle", *rule)
    before = state(world.pod)
    world.capture.apply()
    world.pod.run(program, "-t", "mangle", "-I", "OUTPUT", "1", "-j", "SOMEBODY")
    assert any("first rule doesn't jump" in drift for drift in world.capture.verify())
    world.capture.apply()
    assert world.capture.verify() == []
    world.pod.run(program, "-t", "mangle", "-D", "OUTPUT", "-j", "SOMEBODY")
    world.capture.undo()
    assert state(world.pod) == before


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (("-F", "NODEMESH_OUTPUT"), "NODEMESH_OUTPUT: `"),
        (("-D", "NODEMESH_POSTROUTING", "1"), "-j DROP` is missing"),
        (("-A", "NODEMESH_PREROUTING", "-p", "tcp", "-j", "ACCEPT"), "-j ACCEPT` is not ours"),
        (("-D", "PREROUTING", "1"), "PREROUTING: the first rule doesn't jump"),
        (("-R", "NODEMESH_PREROUTING", "1", "-p", "tcp", "-j", "RETURN"), "TPROXY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_damage_to_the_rules_is_reported_and_repaired(
    world: World, program: str, damage: tuple[str, ...], said: str
) -> None:
    world.capture.apply()
    world.pod.run(program, "-t", "mangle", *damage)
    family = "IPv4" if program == PROGRAMS[0] else "IPv6"
    drift = world.capture.verify()
    assert any(line.startswith(family) and said in line for line in drift), drift
    assert f"{world.mark:#x}" not in "\n".join(drift)
    world.capture.apply()
    assert world.capture.verify() == []


def test_rules_that_a_pod_s_root_wrote_in_no_readable_form_stop_nothing(world: World) -> None:
    def mangle(*words: str | bytes) -> bytes:
        program = ["ip", "netns", "exec", world.pod.name, PROGRAMS[0], "-t", "mangle", *words]
        return subprocess.run(program, check=True, capture_output=True).stdout

    chain = b"\xff\xfe"
    world.capture.apply()
    mangle("-N", chain)
    mangle("-A", "OUTPUT", "-j", chain)
    mangle("-A", CHAIN, "-j", chain)
    with pytest.raises(CaptureError, match="mangle table"):
        world.capture.verify()
    world.capture.undo_syn()
    world.capture.apply()
    assert world.capture.verify() == []
    world.capture.undo()
    assert b"NODEMESH" not in mangle("-S")


@pytest.mark.parametrize("end", [("!", "-s", "10.0.0.0/8"), ("-s", "10.0.0.0/255.0.255.0")])
def test_a_foreign_rule_with_ends_that_ours_never_have_is_drift(world: World, end: tuple[str, ...]) -> None:
    world.capture.apply()
    world.pod.run(PROGRAMS[0], "-t", "mangle", "-A", CHAIN, *end, "-j", "ACCEPT")
    assert any("is not ours" in line for line in world.capture.verify())


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_damage_to_the_routes_is_reported_and_repaired(world: World, family: str) -> None:
    world.capture.apply()
    name = "IPv4" if family == "-4" else "IPv6"
    ip("-n", world.pod.name, family, "rule", "del", "priority", str(PRIORITY))
    ip("-n", world.pod.name, family, "route", "flush", "table", str(TABLE))
    drift = world.capture.verify()
    assert f"{name} policy rule is missing: fwmark {REROUTE_MARK:#x} lookup {TABLE} priority {PRIORITY}" in drift
    assert len([line for line in drift if line.startswith(f"{name} route is missing")]) == 2
    world.capture.apply()
    assert world.capture.verify() == []


def test_a_namespace_with_ipv6_switched_off_is_captured_for_ipv4(world: World) -> None:
    for interface in ("all", "default", "lo", "eth0"):
        world.pod.sysctl(f"net.ipv6.conf.{interface}.disable_ipv6", 1)
    world.capture.apply()
    assert world.capture.verify() == []
    with world.proxy() as proxy, world.echo(world.peer) as echo, world.pod.open() as client:
        client.connect((world.peer.v4, echo.port))
        client.sendall(b"x")
        assert client.recv(1)
        assert len(proxy.accepted) == 1


def test_a_namespace_whose_loopback_is_down_is_refused_with_the_remedy(world: World) -> None:
    ip("-n", world.pod.name, "link", "set", "lo", "down")
    with pytest.raises(CaptureError, match="ip -n NAME link set lo up"):
        world.capture.apply()


def test_a_missing_namespace_is_named(world: World) -> None:
    with pytest.raises(CaptureError, match="/run/netns/nowhere"):
        Capture("/run/netns/nowhere", world.mark).apply()


def test_a_path_by_descriptor_serves(world: World) -> None:
    Capture(f"/proc/self/fd/{world.pod.fd}", world.mark).apply()
    assert world.capture.verify() == []


def test_drawn_marks_are_usable_and_differ() -> None:
    drawn = {new_mark() for _ in range(100)}
    assert len(drawn) == 100
    assert all(usable_mark(mark) for mark in drawn)
    with pytest.raises(CaptureError, match="mark"):
        Capture("/run/netns/any", 0)


def test_the_xtables_lock_is_made_if_missing_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "xtables.lock"
    with lock(str(path)):
        assert path.exists()
        other = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(other)
        with pytest.raises(TableError, match="another program"), lock(str(path), seconds=0.05):
            pass
    with lock(str(path), seconds=0):
        pass
