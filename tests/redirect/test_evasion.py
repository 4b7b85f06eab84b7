"""What a process in a pod may try to get a connection out around the proxy. All of it as root with CAP_NET_RAW.

An attempt may end in capture or in failure; what it must never do is put a TCP packet of its own on the wire.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

import pytest

from redirect import plan
from tests.redirect.pods import (
    FAMILIES,
    HBONE,
    INBOUND,
    OUTBOUND,
    SECONDS,
    SO_MARK,
    Tap,
    World,
    exchange,
    ip,
    read_line,
    set_mark,
    transparent,
)

pytestmark = pytest.mark.root
each_family = pytest.mark.parametrize("family", FAMILIES, ids=("IPv4", "IPv6"))

SO_BINDTODEVICE = 25
SO_RCVMARK = 75
ETH_P_ALL = 0x0003
IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000

Trick = Callable[[World, socket.socket], None]


def marked(value: int) -> Trick:
    return lambda world, sock: set_mark(sock, value)


def nearly_the_mark(bit: int) -> Trick:
    return lambda world, sock: set_mark(sock, world.mark ^ (1 << bit))


def to_device(device: str) -> Trick:
    return lambda world, sock: sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())


def both(*tricks: Trick) -> Trick:
    def play(world: World, sock: socket.socket) -> None:
        for trick in tricks:
            trick(world, sock)

    return play


def foreign_source(world: World, sock: socket.socket) -> None:
    transparent(sock)
    sock.bind(("10.99.0.77" if sock.family == socket.AF_INET else "fd99::77", 0))


def the_peers_address(world: World, sock: socket.socket) -> None:
    transparent(sock)
    sock.bind((world.peer.address(sock.family), 0))


def loopback_source(world: World, sock: socket.socket) -> None:
    transparent(sock)
    sock.bind(("127.0.0.1" if sock.family == socket.AF_INET else "::1", 0))


def a_port_of_the_proxy(world: World, sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((world.pod.address(sock.family), HBONE))


TRICKS: dict[str, Trick] = {
    "no trick": lambda world, sock: None,
    **{
        f"mark {value:#x}": marked(value)
        for value in (plan.RELAYED, plan.OUTBOUND, plan.INBOUND, plan.REROUTE_MARK, 1, 0x539, 0xFFF, 0xFFFFFFFF)
    },
    **{f"mark wrong in bit {bit}": nearly_the_mark(bit) for bit in (0, 11, 12, 31)},
    "device eth0": to_device("eth0"),
    "device lo": to_device("lo"),
    "device eth0 and the mark that reroutes": both(to_device("eth0"), marked(plan.REROUTE_MARK)),
    "the mark that reroutes, then device eth0": both(marked(plan.REROUTE_MARK), to_device("eth0")),
    "device lo and the mark that reroutes": both(to_device("lo"), marked(plan.REROUTE_MARK)),
    "device eth0 and mark of relayed": both(to_device("eth0"), marked(plan.RELAYED)),
    "foreign source": foreign_source,
    "foreign source, device eth0": both(foreign_source, to_device("eth0")),
    "foreign source and the mark that reroutes": both(foreign_source, marked(plan.REROUTE_MARK)),
    "the peer's own address as source": the_peers_address,
    "loopback source": loopback_source,
    "source port of the proxy": a_port_of_the_proxy,
}


def attempt(sock: socket.socket, target: tuple[str, int], seconds: float = 0.3) -> bool:
    """Try to get data to the target; whether an answer came. What leaves, leaves with the first packet."""
    sock.settimeout(seconds)
    try:
        sock.connect(target)
        exchange(sock)
    except (OSError, AssertionError):
        return False
    return True


@each_family
@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_a_connection_does_not_leave_around_the_proxy(world: World, family: int, trick: Trick) -> None:
    with world.proxy(), world.echo(world.peer, family) as echo, world.pod.open(family) as sock:
        world.capture.apply()
        trick(world, sock)
        attempt(sock, (world.peer.address(family), echo.port))
        own = sock.getsockname()[1]
        assert not world.tap.from_port(own)
        assert own not in [port for _host, port in echo.seen]


@each_family
def test_a_socket_bound_to_its_device_is_captured_like_any_other(world: World, family: int) -> None:
    with world.proxy() as proxy, world.echo(world.peer, family) as echo, world.pod.open(family) as sock:
        world.capture.apply()
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0")
        assert attempt(sock, (world.peer.address(family), echo.port), SECONDS)
        assert [seen.port for seen in proxy.accepted] == [OUTBOUND]


@each_family
def test_an_app_bound_to_its_device_is_reached_through_the_proxy(world: World, family: int) -> None:
    listening = world.pod.listen(world.pod.address(family))
    listening.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0")
    with world.proxy() as proxy, contextlib.closing(listening), world.peer.open(family) as client:
        world.capture.apply()
        client.connect((world.pod.address(family), listening.getsockname()[1]))
        app, address = listening.accept()
        with app:
            assert address[0] == world.peer.address(family)
            app.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        assert [seen.port for seen in proxy.accepted] == [INBOUND]


@each_family
def test_marking_a_captured_connection_afterwards_does_not_free_it(world: World, family: int) -> None:
    for value in (plan.REROUTE_MARK, plan.RELAYED, world.mark ^ 1):
        with world.proxy(), world.echo(world.peer, family) as echo, world.pod.open(family) as sock:
            world.capture.apply()
            sock.connect((world.peer.address(family), echo.port))
            set_mark(sock, value)
            exchange(sock)
            assert not world.tap.from_port(sock.getsockname()[1])


@each_family
@pytest.mark.parametrize("applied", [False, True], ids=("without capture", "with capture"))
def test_packet_sockets_do_not_show_the_proxys_mark(world: World, family: int, applied: bool) -> None:
    with world.proxy(), world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        if applied:
            world.capture.apply()
        with contextlib.ExitStack() as stack:
            taps = []
            for device in ("lo", "eth0"):
                tap = stack.enter_context(world.pod.open(socket.AF_PACKET, socket.SOCK_RAW))
                tap.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
                tap.bind((device, ETH_P_ALL))
                tap.setblocking(False)
                taps.append(tap)
            for echo, source, target in (
                (there, world.pod.address(family), world.peer.address(family)),
                (here, world.peer.address(family), world.pod.address(family)),
            ):
                with world.pod.open(family) as sock:
                    set_mark(sock, world.mark)
                    transparent(sock)
                    sock.bind((source, 0))
                    if applied or echo is there:
                        sock.connect((target, echo.port))
                        exchange(sock)
            seen = [marks_seen(tap) for tap in taps]
        assert seen[1], "the tap must see the proxy's packets"
        assert (world.mark in seen[0] | seen[1]) is not applied


def marks_seen(tap: socket.socket) -> set[int]:
    marks = set()
    with contextlib.suppress(BlockingIOError):
        while True:
            _data, ancillary, _flags, _address = tap.recvmsg(100, socket.CMSG_SPACE(4))
            marks |= {struct.unpack("=I", data)[0] for _level, kind, data in ancillary if kind == SO_MARK}
    return marks


@each_family
def test_an_interface_that_came_after_enrolment_leads_nowhere(world: World, family: int) -> None:
    ip("-n", world.pod.name, "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", world.peer.name)
    with world.proxy(), Tap(world.peer) as tap, world.pod.open(family) as sock:
        world.capture.apply()
        for host, ours, theirs in ((world.pod, "10.98.0.1", "fd98::1"), (world.peer, "10.98.0.2", "fd98::2")):
            ip("-n", host.name, "address", "add", f"{ours}/24", "dev", "eth1")
            ip("-n", host.name, "address", "add", f"{theirs}/64", "dev", "eth1", "nodad")
            ip("-n", host.name, "link", "set", "eth1", "up")
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth1")
        target = "10.98.0.2" if family == socket.AF_INET else "fd98::2"
        with world.echo(world.peer, family, target) as echo:
            assert not attempt(sock, (target, echo.port))
            assert echo.seen == []
            assert any("route is missing" in drift for drift in world.capture.verify())
            world.capture.apply()
            with world.pod.open(family) as again:
                again.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth1")
                assert attempt(again, (target, echo.port), SECONDS)
                assert again.getsockname()[1] not in [port for _host, port in echo.seen]
        assert not tap.from_port(sock.getsockname()[1])


def test_a_link_local_connection_does_not_leave_around_the_proxy(world: World) -> None:
    for host, address in ((world.pod, "fe80::1"), (world.peer, "fe80::2")):
        ip("-n", host.name, "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    index = int(world.pod.run("cat", "/sys/class/net/eth0/ifindex"))
    with world.proxy(), world.peer.open(socket.AF_INET6) as server, world.pod.open(socket.AF_INET6) as sock:
        server.bind(("::", 0))
        server.listen()
        world.capture.apply()
        sock.settimeout(0.4)
        with contextlib.suppress(OSError):
            sock.connect(("fe80::2", server.getsockname()[1], 0, index))
        assert not world.tap.from_port(sock.getsockname()[1])


def without_tracking(world: World, family: int, chain: str) -> None:
    program = "iptables-legacy" if family == socket.AF_INET else "ip6tables-legacy"
    world.pod.run(program, "-t", "raw", "-A", chain, "-p", "tcp", "-j", "CT", "--notrack")


@each_family
def test_a_connection_that_conntrack_does_not_see_goes_nowhere(world: World, family: int) -> None:
    """Some other software's NOTRACK: there is no connection to mark, so there must be none at all."""
    without_tracking(world, family, "OUTPUT")
    without_tracking(world, family, "PREROUTING")
    with world.proxy(), world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        with world.pod.open(family) as sock, world.peer.open(family) as visitor:
            assert not attempt(sock, (world.peer.address(family), there.port))
            assert not world.tap.from_port(sock.getsockname()[1])
            assert not attempt(visitor, (world.pod.address(family), here.port))
        assert there.seen == here.seen == []


@each_family
def test_losing_the_routes_lets_nothing_of_a_captured_connection_out(world: World, family: int) -> None:
    with world.proxy(), world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        with world.pod.open(family) as outward, world.peer.open(family) as inward:
            outward.connect((world.peer.address(family), there.port))
            inward.connect((world.pod.address(family), here.port))
            for client in (outward, inward):
                read_line(client)
            version = "-4" if family == socket.AF_INET else "-6"
            ip("-n", world.pod.name, version, "route", "flush", "table", str(plan.TABLE))
            outward.sendall(b"secret question")
            inward.sendall(b"secret answer")  # the app echoes it, towards the peer's address
            inward.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                inward.recv(100)
            assert not world.tap.from_port(outward.getsockname()[1])
        (_peer, relayed_port), *_ = here.seen
        assert not [packet for packet in world.tap.packets() if packet[1] == relayed_port]


def test_a_forged_syn_does_not_end_a_connection_from_before_enrolment(world: World) -> None:
    with world.proxy() as proxy, world.echo(world.pod) as echo, world.peer.open() as client:
        client.connect((world.pod.v4, echo.port))
        read_line(client)
        world.capture.apply()
        client.sendall(b"a")  # conntrack learns of the connection
        assert client.recv(1) == b"a"
        with world.peer.open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as forger:
            forger.sendto(raw_segment(client.getsockname(), (world.pod.v4, echo.port), 0x02), (world.pod.v4, 0))
        client.sendall(b"b")
        assert client.recv(1) == b"b"
        assert proxy.accepted == []


@each_family
def test_fast_open_and_multipath_are_captured(world: World, family: int) -> None:
    with world.proxy() as proxy, world.echo(world.peer, family) as echo:
        world.capture.apply()
        target = (world.peer.address(family), echo.port)
        with world.pod.open(family) as sock:
            sock.settimeout(None)  # with a timeout it doesn't block, and the SYN's data is asked for again
            sock.sendto(b"x", MSG_FASTOPEN, target)
            sock.settimeout(SECONDS)
            assert sock.recv(1)
            assert not world.tap.from_port(sock.getsockname()[1])
        try:
            multipath = world.pod.open(family, protocol=IPPROTO_MPTCP)
        except OSError:
            return  # a kernel without it has nothing to capture
        with multipath as sock:
            sock.connect(target)
            exchange(sock)
            assert not world.tap.from_port(sock.getsockname()[1])
        assert [seen.port for seen in proxy.accepted] == [OUTBOUND, OUTBOUND]


def raw_segment(source: tuple[str, int], target: tuple[str, int], flags: int) -> bytes:
    """A TCP segment with a right checksum and no data."""
    segment = struct.pack("!HHIIBBHHH", source[1], target[1], 1000, 0, 5 << 4, flags, 1000, 0, 0)
    pseudo = socket.inet_aton(source[0]) + socket.inet_aton(target[0]) + struct.pack("!BBH", 0, 6, len(segment))
    total = sum(struct.unpack(f"!{len(pseudo + segment) // 2}H", pseudo + segment))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]


@pytest.mark.parametrize("flags", [0x02, 0x02 | 0xC0, 0x02 | 0x08, 0x02 | 0x20], ids=("SYN", "ECN", "PSH", "URG"))
@pytest.mark.parametrize("trick", ["no trick", "mark 0x112", "device eth0", "mark wrong in bit 0"])
def test_a_raw_syn_does_not_leave(world: World, flags: int, trick: str) -> None:
    with world.proxy(), world.pod.open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        world.capture.apply()
        TRICKS[trick](world, sock)
        with contextlib.suppress(PermissionError):  # what sendto says of a packet that netfilter dropped
            sock.sendto(raw_segment((world.pod.v4, 4444), (world.peer.v4, 9), flags), (world.peer.v4, 0))
        assert not world.tap.from_port(4444)


@each_family
def test_a_connection_from_the_wire_cannot_name_the_outbound_listener(world: World, family: int) -> None:
    """A host outside that routes a foreign destination to the pod gets nothing relayed by the outbound side."""
    foreign = "10.96.0.1" if family == socket.AF_INET else "fd96::1"
    ip("-n", world.peer.name, "route", "add", foreign, "via", world.pod.address(family))
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        world.pod.sysctl(name, 1)
    with world.proxy() as proxy, world.peer.open(family) as sock:
        world.capture.apply()
        assert not attempt(sock, (foreign, 80))
        assert OUTBOUND not in [seen.port for seen in proxy.accepted]
        assert not [packet for packet in world.tap.packets() if packet[1] == 80]
