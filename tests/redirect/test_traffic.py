"""Captured traffic end to end: real sockets, a stand-in proxy, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.redirect.pods import (
    FAMILIES,
    HBONE,
    INBOUND,
    OUTBOUND,
    SECONDS,
    Accepted,
    Host,
    World,
    exchange,
    read_all,
    read_line,
    set_mark,
    transparent,
)

pytestmark = pytest.mark.root
each_family = pytest.mark.parametrize("family", FAMILIES, ids=("IPv4", "IPv6"))


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def pings(host: Host, address: str) -> bool:
    """Whether an ICMP echo request is answered."""
    if ":" in address:  # the kernel fills in the checksum
        family, protocol, header, reply = socket.AF_INET6, socket.IPPROTO_ICMPV6, bytes((128, 0, 0, 0)), 129
    else:
        family, protocol, header, reply = socket.AF_INET, socket.IPPROTO_ICMP, bytes((8, 0, 0xF7, 0xFF)), 0
    with host.open(family, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(header + bytes(4), (address, 0))
        while True:
            packet = sock.recv(1000)
            if packet[0 if family == socket.AF_INET6 else 20] == reply:
                return True


def refused(sock: socket.socket, target: tuple[str, int]) -> bool:
    try:
        sock.connect(target)
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@each_family
def test_before_enrolment_packets_go_out_as_they_are(world: World, family: int) -> None:
    with world.echo(world.peer, family) as echo, world.pod.open(family) as client:
        client.connect((world.peer.address(family), echo.port))
        own = client.getsockname()[1]
        assert exchange(client) == (world.pod.address(family), own)
        assert world.tap.from_port(own), "the tap must be able to see a leak"


@each_family
def test_an_outbound_connection_reaches_the_proxy_and_nothing_of_it_leaves(world: World, family: int) -> None:
    with world.proxy() as proxy, world.echo(world.peer, family) as echo, world.pod.open(family) as client:
        world.capture.apply()
        target = (world.peer.address(family), echo.port)
        client.connect(target)
        own = client.getsockname()[1]
        host, port = exchange(client)
        assert proxy.accepted == [Accepted(OUTBOUND, (world.pod.address(family), own), target)]
        assert host == world.pod.address(family)
        assert port != own
        assert world.tap.from_port(port)
        assert not world.tap.from_port(own)


@each_family
def test_the_app_sees_the_clients_address_on_an_inbound_connection(world: World, family: int) -> None:
    with world.proxy() as proxy, world.echo(world.pod, family) as echo, world.peer.open(family) as client:
        world.capture.apply()
        target = (world.pod.address(family), echo.port)
        client.connect(target)
        own = client.getsockname()[1]
        host, port = exchange(client)
        assert proxy.accepted == [Accepted(INBOUND, (world.peer.address(family), own), target)]
        assert (host, port) == (world.peer.address(family), own ^ 1)


@each_family
def test_much_data_passes_both_ways(world: World, family: int) -> None:
    block = bytes(range(256)) * 16384
    with world.proxy(), world.echo(world.peer, family) as echo, world.pod.open(family) as client:
        world.capture.apply()
        client.connect((world.peer.address(family), echo.port))
        read_line(client)

        def send() -> None:
            client.sendall(block)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert read_all(client) == block + b"end"
        sender.join(SECONDS)


@each_family
def test_sysctls_that_concern_sources_and_marks_do_not_disturb_capture(world: World, family: int) -> None:
    """Strict reverse-path filter, and marks considered by it, reflected in resets and inherited by accepted sockets."""
    for setting in ("rp_filter", "src_valid_mark"):
        for interface in ("all", "default", "lo", "eth0"):
            world.pod.sysctl(f"net.ipv4.conf.{interface}.{setting}", 1)
    for setting in ("ipv4.fwmark_reflect", "ipv4.tcp_fwmark_accept", "ipv6.fwmark_reflect"):
        world.pod.sysctl(f"net.{setting}", 1)
    with world.proxy() as proxy, world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        with world.pod.open(family) as client:
            client.connect((world.peer.address(family), there.port))
            exchange(client)
        with world.peer.open(family) as client:
            client.connect((world.pod.address(family), here.port))
            assert exchange(client)[0] == world.peer.address(family)
        assert [seen.port for seen in proxy.accepted] == [OUTBOUND, INBOUND]
        with pytest.raises(ConnectionRefusedError):
            dial_app(world, family, closed_port(world, family))


def dial_app(world: World, family: int, port: int) -> socket.socket:
    """What the proxy does for a tunnel: a connection to the app from the peer's address."""
    sock = world.pod.open(family)
    set_mark(sock, world.mark)
    transparent(sock)
    sock.bind((world.peer.address(family), 0))
    try:
        sock.connect((world.pod.address(family), port))
    except OSError:
        sock.close()
        raise
    return sock


def closed_port(world: World, family: int) -> int:
    with world.pod.listen(world.pod.address(family)) as sock:
        return int(sock.getsockname()[1])


@each_family
def test_a_closed_port_of_the_app_refuses_the_proxy_at_once(world: World, family: int) -> None:
    world.capture.apply()
    with pytest.raises(ConnectionRefusedError):
        dial_app(world, family, closed_port(world, family))
    assert not world.tap.packets(), "the refusal must stay in the pod"


@each_family
def test_the_proxy_reaches_its_own_pod_from_the_pods_address(world: World, family: int) -> None:
    """A pod that calls itself through its service: the tunnel, and what comes out of it, stay in the namespace."""
    with world.proxy() as proxy, world.echo(world.pod, family) as echo:
        world.capture.apply()
        for port in (echo.port, HBONE):
            with world.pod.open(family) as sock:
                set_mark(sock, world.mark)
                sock.bind((world.pod.address(family), 0))
                if port == HBONE:
                    assert refused(sock, (world.pod.address(family), port))
                else:
                    sock.connect((world.pod.address(family), port))
                    exchange(sock)
        assert [seen.port for seen in proxy.accepted] == [HBONE]
        assert not world.tap.packets()


@each_family
def test_applying_again_under_load_loses_no_connection_and_lets_none_out(world: World, family: int) -> None:
    with world.proxy() as proxy, world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        ports: list[int] = []
        stop = threading.Event()

        def connect(client_host: Host, target: tuple[str, int]) -> None:
            while not stop.is_set():
                with client_host.open(family) as client:
                    client.connect(target)
                    exchange(client)
                    ports.append(client.getsockname()[1])

        with ThreadPoolExecutor(4) as pool:
            try:
                loads = [
                    pool.submit(connect, host, (server.address(family), echo.port))
                    for host, server, echo in ((world.pod, world.peer, there), (world.peer, world.pod, here)) * 2
                ]
                for _ in range(25):
                    world.capture.apply()
            finally:
                stop.set()
            for load in loads:
                load.result()
        assert sorted(ports) == sorted(seen.client[1] for seen in proxy.accepted)


@each_family
def test_loopback_and_the_pods_own_address_are_not_captured(world: World, family: int) -> None:
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with world.proxy() as proxy:
        world.capture.apply()
        for address in (loopback, world.pod.address(family)):
            with world.echo(world.pod, family, address) as echo, world.pod.open(family) as client:
                client.connect((address, echo.port))
                assert exchange(client) == (address, client.getsockname()[1])
        assert proxy.accepted == []


@each_family
def test_udp_and_icmp_are_not_captured(world: World, family: int) -> None:
    with world.proxy() as proxy, world.peer.open(family, socket.SOCK_DGRAM) as server:
        world.capture.apply()
        server.bind((world.peer.address(family), 0))
        with world.pod.open(family, socket.SOCK_DGRAM) as client:
            client.connect(server.getsockname())
            client.send(b"question")
            data, source = server.recvfrom(100)
            assert (data, source[:2]) == (b"question", client.getsockname()[:2])
            server.sendto(b"answer", source)
            assert client.recv(100) == b"answer"
        assert pings(world.pod, world.peer.address(family))
        assert pings(world.peer, world.pod.address(family))
        assert proxy.accepted == []


@each_family
@pytest.mark.parametrize("port", [OUTBOUND, INBOUND])
def test_a_connection_to_a_port_of_the_proxy_shows_that_port_as_its_destination(
    world: World, family: int, port: int
) -> None:
    """So that noded can refuse it: it would loop."""
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with world.proxy() as proxy:
        world.capture.apply()
        for client_host, address, accepted_on in (
            (world.pod, loopback, port),
            (world.pod, world.pod.address(family), port),
            (world.pod, world.peer.address(family), OUTBOUND),
            (world.peer, world.pod.address(family), INBOUND),
        ):
            with client_host.open(family) as client:
                assert refused(client, (address, port))
            assert (proxy.accepted[-1].port, proxy.accepted[-1].original) == (accepted_on, (address, port))


@each_family
def test_a_tunnel_from_another_host_arrives_at_the_tunnel_listener(world: World, family: int) -> None:
    with world.proxy() as proxy, world.peer.open(family) as client:
        world.capture.apply()
        client.bind((world.peer.address(family), 0))
        own = (world.peer.address(family), client.getsockname()[1])
        assert refused(client, (world.pod.address(family), HBONE))
        assert proxy.accepted == [Accepted(HBONE, own, (world.pod.address(family), HBONE))]


@each_family
def test_connections_from_before_enrolment_go_on_through_apply_and_undo(world: World, family: int) -> None:
    with (
        world.proxy() as proxy,
        world.echo(world.peer, family) as there,
        world.echo(world.pod, family) as here,
        world.pod.open(family) as outward,
        world.peer.open(family) as inward,
    ):
        outward.connect((world.peer.address(family), there.port))
        inward.connect((world.pod.address(family), here.port))
        for client in (outward, inward):
            read_line(client)
        for change in (world.capture.apply, world.capture.apply, world.capture.undo_syn, world.capture.undo):
            change()
            for client in (outward, inward):
                client.sendall(b"still here")
                assert client.recv(10, socket.MSG_WAITALL) == b"still here"
        assert proxy.accepted == []


@each_family
@pytest.mark.parametrize("direction", [OUTBOUND, INBOUND])
def test_a_burst_beyond_the_backlog_loses_no_connection(world: World, family: int, direction: int) -> None:
    """With SYN cookies the kernel keeps nothing of the SYN: the ACK that ends the handshake must meet TPROXY too."""
    world.pod.sysctl("net.ipv4.tcp_syncookies", 2)  # for every connection, not only under pressure
    client_host, server_host = (world.pod, world.peer) if direction == OUTBOUND else (world.peer, world.pod)
    with world.proxy(backlog=8) as proxy, world.echo(server_host, family) as echo, contextlib.ExitStack() as stack:
        world.capture.apply()
        clients = [stack.enter_context(client_host.open(family)) for _ in range(200)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex((server_host.address(family), echo.port))
        for client in clients:
            client.settimeout(20)
            exchange(client)
        assert [seen.port for seen in proxy.accepted] == [direction] * len(clients)
    cookies = world.pod.run("cat", "/proc/net/netstat")
    names, values = (line.split() for line in cookies.splitlines() if line.startswith("TcpExt:"))
    assert int(values[names.index("SyncookiesRecv")]) >= len(clients)


@each_family
def test_without_listeners_a_connection_gets_no_answer_and_none_of_it_leaves(world: World, family: int) -> None:
    with world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        with world.pod.open(family) as client, world.peer.open(family) as visitor:
            for sock, target in (
                (client, (world.peer.address(family), there.port)),
                (visitor, (world.pod.address(family), here.port)),
            ):
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    sock.connect(target)
            assert not world.tap.from_port(client.getsockname()[1])
            assert there.seen == here.seen == []
        with world.proxy(), world.pod.open(family) as client:
            client.connect((world.peer.address(family), there.port))
            exchange(client)


@each_family
def test_when_the_proxy_dies_its_connections_end_and_new_ones_work_once_it_is_back(world: World, family: int) -> None:
    with world.echo(world.peer, family) as echo, world.pod.open(family) as client:
        world.capture.apply()
        proxy = world.proxy()
        client.connect((world.peer.address(family), echo.port))
        read_line(client)
        proxy.close()
        assert ended(client)
        assert not world.tap.from_port(client.getsockname()[1])
        with world.proxy(), world.pod.open(family) as again:
            again.connect((world.peer.address(family), echo.port))
            exchange(again)


@each_family
def test_draining_leaves_live_connections_captured_and_new_ones_alone(world: World, family: int) -> None:
    with world.proxy() as proxy, world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        with world.pod.open(family) as outward, world.peer.open(family) as inward:
            outward.connect((world.peer.address(family), there.port))
            inward.connect((world.pod.address(family), here.port))
            for client in (outward, inward):
                read_line(client)
            world.capture.undo_syn()
            with world.pod.open(family) as later, world.peer.open(family) as visitor:
                later.connect((world.peer.address(family), there.port))
                assert exchange(later)[1] == later.getsockname()[1]
                visitor.connect((world.pod.address(family), here.port))
                assert exchange(visitor)[1] == visitor.getsockname()[1]
            for client in (outward, inward):
                client.sendall(b"still here")
                assert client.recv(10, socket.MSG_WAITALL) == b"still here"
            assert not world.tap.from_port(outward.getsockname()[1])
            assert len(proxy.accepted) == 2


@each_family
def test_a_new_mark_leaves_the_connections_of_the_old_one_alone(world: World, family: int) -> None:
    from redirect.capture import Capture, new_mark

    with world.proxy(), world.echo(world.peer, family) as there, world.echo(world.pod, family) as here:
        world.capture.apply()
        with world.pod.open(family) as outward, world.peer.open(family) as inward:
            outward.connect((world.peer.address(family), there.port))
            inward.connect((world.pod.address(family), here.port))
            for client in (outward, inward):
                read_line(client)
            renewed = Capture(world.pod.path, new_mark())
            renewed.apply()
            assert renewed.verify() == []
            for client in (outward, inward):
                client.sendall(b"still here")
                assert client.recv(10, socket.MSG_WAITALL) == b"still here"
