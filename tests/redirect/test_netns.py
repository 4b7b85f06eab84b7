"""Entering namespaces, and the thread and the start-up check that depend on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import iptc
import pytest
import trio
import trio.testing

from redirect import environment, thread
from redirect.netns import NamespaceError, addresses, inside, listener, open_netns
from tests.redirect.pods import World, ip

pytestmark = pytest.mark.root


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def leave_with_an_error(seen: list[str]) -> None:
    seen.append(here())
    raise ZeroDivisionError


@pytest.mark.parametrize("path", ["/run/netns/nowhere", "/etc/hostname", "/", "/proc/self/ns/mnt"])
def test_what_is_no_network_namespace_is_refused(path: str) -> None:
    with pytest.raises(NamespaceError, match=path):
        open_netns(path)


def test_inside_comes_back_also_from_an_error(world: World) -> None:
    home = here()
    seen: list[str] = []
    with pytest.raises(ZeroDivisionError), inside(world.pod.fd):
        leave_with_an_error(seen)
    assert here() == home
    assert seen != [home]
    with pytest.raises(NamespaceError), inside(-1):
        pass
    assert here() == home


def test_inside_moves_only_the_thread_that_asked(world: World) -> None:
    home, seen, moved = here(), list[str](), threading.Event()

    def look() -> None:
        moved.wait(5)
        seen.append(here())

    other = threading.Thread(target=look)
    other.start()  # before: a thread begins in the namespace of the one that starts it
    with inside(world.pod.fd):
        moved.set()
        other.join()
    assert seen == [home]


def test_addresses_are_the_global_ones_ipv4_first(world: World) -> None:
    ip("-n", world.pod.name, "address", "add", "10.99.0.50/24", "dev", "eth0")
    assert addresses(world.pod.fd) == ("10.99.0.1", "10.99.0.50", "fd99::1")


def test_two_workers_listen_on_one_port_and_a_stranger_cannot(world: World) -> None:
    with listener(world.pod.fd, 15001) as first, listener(world.pod.fd, 15001) as second:
        assert first.getsockname()[:2] == second.getsockname()[:2] == ("::", 15001)
        assert not first.getblocking()
        with world.pod.open() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("0.0.0.0", 15001))


def test_an_occupied_port_is_an_error(world: World) -> None:
    with world.pod.listen("0.0.0.0", 15006), pytest.raises(OSError, match="in use"):
        listener(world.pod.fd, 15006)


def test_a_listener_without_ipv6_in_the_kernel_is_ipv4(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, kind: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, kind, *rest)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with listener(world.pod.fd, 15008) as sock:
        assert sock.getsockname() == ("0.0.0.0", 15008)


def test_the_workers_import_carries_no_rule_library() -> None:
    code = (
        "import sys, redirect.netns; print([m for m in ('iptc', 'pyroute2', 'redirect.capture') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_this_host_is_fit_and_the_check_leaves_no_namespace() -> None:
    home, before = here(), len(os.listdir("/proc/self/fd"))
    environment.check()
    assert here() == home
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("family", "extension", "said"),
    [("IPv4", "TPROXY", "xt_TPROXY"), ("IPv6", "conntrack", "xt_conntrack"), ("IPv4", "connmark", "xt_connmark")],
)
def test_a_kernel_that_refuses_an_extension_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, family: str, extension: str, said: str
) -> None:
    from redirect import plan, tables

    encode = tables._encode

    def refuse(asked: plan.Family, rule: plan.Rule) -> object:
        if asked.value == family and extension in (rule.target, *(match.name for match in rule.matches)):
            raise iptc.IPTCError("can't commit: No chain/target/match by that name")
        return encode(asked, rule)

    monkeypatch.setattr(tables, "_encode", refuse)
    with pytest.raises(environment.UnfitHostError, match=f"refuses a rule for {family}.*{said}"):
        environment.check()


async def test_rule_work_runs_in_order_on_one_thread_that_is_not_trios() -> None:
    order: list[int] = []
    threads: set[int] = set()

    def work(number: int) -> int:
        order.append(number)
        threads.add(threading.get_ident())
        return number

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(thread.run, work, number)
            await trio.lowlevel.checkpoint()
    assert sorted(order) == list(range(20))
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1


async def test_an_error_of_rule_work_reaches_who_asked() -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(divmod, 7, 2) == (3, 1)


async def test_cancelled_rule_work_is_finished_if_begun_and_dropped_if_not() -> None:
    gate, begun, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        gate.wait(5)
        done.append("begun")

    async def cancelled(function: Callable[[], None]) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await thread.run(function)

    scopes: list[trio.CancelScope] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled, slow)
        await trio.to_thread.run_sync(begun.wait)
        nursery.start_soon(cancelled, lambda: done.append("never"))
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        gate.set()
    assert done == ["begun"]
    await thread.run(lambda: None)
    assert done == ["begun"]
