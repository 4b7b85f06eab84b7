import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from noded.control.capture import PORTS, Namespaces
from noded.control.failure import Conflict, Invalid
from redirect.netns import inside

pytestmark = pytest.mark.root
NAME = f"nm-control-{os.getpid()}"
PATH = f"/run/netns/{NAME}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def netns() -> Iterator[int]:
    ip("netns", "add", NAME)
    fd = -1
    try:
        ip("-n", NAME, "link", "set", "lo", "up")
        ip("-n", NAME, "address", "add", "10.77.0.1/32", "dev", "lo")
        fd = Namespaces().open(PATH)
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)
        if os.path.exists(PATH):
            ip("netns", "delete", NAME)


def test_a_successor_at_the_same_path_is_another_namespace(netns: int) -> None:
    namespaces = Namespaces()
    known = namespaces.identify(netns)
    assert namespaces.identify(netns) == known
    assert not namespaces.vanished(PATH, known)
    ip("netns", "delete", NAME)
    assert namespaces.vanished(PATH, known)
    ip("netns", "add", NAME)
    successor = namespaces.open(PATH)
    try:
        assert namespaces.vanished(PATH, known)
        assert namespaces.identify(successor) != known
    finally:
        os.close(successor)


def test_a_namespace_is_told_from_one_that_got_its_inode() -> None:
    """The kernel gives inodes of dead namespaces out again, so they alone would mix up two workloads."""
    namespaces, seen = Namespaces(), set()
    for _ in range(5):
        ip("netns", "add", NAME)
        try:
            fd = namespaces.open(PATH)
            seen.add(namespaces.identify(fd).cookie)
            os.close(fd)
        finally:
            ip("netns", "delete", NAME)
    assert len(seen) == 5


def test_the_daemon_s_own_namespace_is_refused() -> None:
    with pytest.raises(Invalid, match="noded itself runs in"):
        Namespaces().open("/proc/self/ns/net")


def test_what_is_no_namespace_is_refused() -> None:
    with pytest.raises(Invalid, match="not a network namespace"):
        Namespaces().open("/etc/hosts")


def test_a_port_that_the_workload_uses_is_named(netns: int) -> None:
    namespaces = Namespaces()
    rows = namespaces.listeners(netns, 2)
    try:
        assert [[sock.getsockname()[1] for sock in row] for row in rows] == [list(PORTS)] * 2
    finally:
        for sock in (sock for row in rows for sock in row):
            sock.close()
    with inside(netns):
        taken = socket.create_server(("0.0.0.0", PORTS[1]))
    with taken, pytest.raises(Conflict, match=f"no listener on port {PORTS[1]}"):
        namespaces.listeners(netns, 1)


async def test_rules_are_shown_without_the_mark_that_would_get_past_them(netns: int) -> None:
    namespaces = Namespaces()
    mark = namespaces.new_mark()
    await namespaces.apply(netns, mark)
    try:
        assert await namespaces.verify(netns, mark) == []
        rules = await namespaces.rules(netns, mark)
        assert any("TPROXY" in rule for rule in rules)
        assert not any(f"{mark:x}" in rule for rule in rules)
    finally:
        await namespaces.undo(netns, mark)
