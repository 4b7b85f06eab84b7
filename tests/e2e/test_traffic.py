"""What programs in the mesh see of it: nothing but each other."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import selectors
import socket
import struct
import threading
import time

import pytest

from tests.e2e.pods import PORT, Bed, Pods, echo, eventually, read_all, reset, talks

FAMILIES = ("v4", "v6")
GIB = 1 << 30


def address(pod: Pods, family: str) -> str:
    return str(getattr(pod, family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["client", "near"])
@pytest.mark.parametrize("target", ["web", "near"])
def test_the_server_sees_the_clients_own_address(bed: Bed, source: str, target: str, family: str) -> None:
    with bed[target].serve(echo) as server, bed[source].connect(address(bed[target], family)) as conn:
        assert talks(conn)
    assert server.peers == [address(bed[source], family)]


def test_a_connection_between_enrolled_workloads_goes_through_a_tunnel_under_both_identities(bed: Bed) -> None:
    for target in ("web", "near"):  # another host, and the same one
        with bed[target].serve(echo), bed["client"].connect(bed[target].v4) as conn:
            assert talks(conn)
            rows = bed.connections(target)
            assert [(c["via"], c["source_identity"]) for c in rows if c["direction"] == "inbound"] == [
                ("tunnel", "spiffe://cluster.local/ns/shop/sa/client")
            ]
            ends = {(t["local_identity"], t["peer_identity"]) for t in bed.api(target, "/tunnels")}
            assert (
                f"spiffe://cluster.local/ns/shop/sa/{target}",
                "spiffe://cluster.local/ns/shop/sa/client",
            ) in ends


def test_a_service_address_leads_to_its_endpoint_wherever_the_endpoint_is(bed: Bed) -> None:
    for name in ("web", "near", "outsider"):
        with bed[name].serve(echo) as server:
            assert bed["client"].reaches(bed.service(name), 80)
        assert server.peers == [bed["client"].v4]


def test_a_workload_outside_the_mesh_reaches_a_service_too(bed: Bed) -> None:
    with bed["web"].serve(echo) as server:
        assert bed["outsider"].reaches(bed.service("web"), 80)
    assert server.peers == [bed["outsider"].v4]


def test_a_pod_can_call_itself_directly_and_through_its_service(bed: Bed) -> None:
    near = bed["near"]
    with near.serve(echo):
        assert near.reaches(near.v4)
        assert near.reaches(bed.service("near"), 80)
        assert near.reaches("127.0.0.1")


def test_a_client_that_has_sent_all_it_has_still_gets_the_answer(bed: Bed) -> None:
    def count(conn: socket.socket) -> None:
        conn.sendall(str(len(read_all(conn))).encode())

    with bed["web"].serve(count), bed["client"].connect(bed["web"].v4) as conn:
        conn.sendall(b"x" * 300_000)
        conn.shutdown(socket.SHUT_WR)
        assert read_all(conn) == b"300000"


def test_a_server_that_has_said_all_it_has_still_hears_the_client(bed: Bed) -> None:
    heard: list[bytes] = []

    def bye(conn: socket.socket) -> None:
        conn.sendall(b"bye")
        conn.shutdown(socket.SHUT_WR)
        heard.append(read_all(conn))

    with bed["web"].serve(bye), bed["client"].connect(bed["web"].v4) as conn:
        assert read_all(conn) == b"bye"
        conn.sendall(b"one more thing")
        conn.shutdown(socket.SHUT_WR)
        eventually(lambda: heard == [b"one more thing"])


def test_a_server_that_speaks_first_is_heard_before_the_client_says_anything(bed: Bed) -> None:
    def greet(conn: socket.socket) -> None:
        conn.sendall(b"220 ready")
        echo(conn)

    with bed["web"].serve(greet), bed["client"].connect(bed["web"].v4) as conn:
        assert conn.recv(100) == b"220 ready"
        assert talks(conn)


def test_a_reset_by_the_server_reaches_the_client_as_a_reset(bed: Bed) -> None:
    def refuse(conn: socket.socket) -> None:
        conn.recv(1)
        reset(conn)

    with bed["web"].serve(refuse), bed["client"].connect(bed["web"].v4) as conn:
        conn.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            conn.recv(1)


def test_a_reset_by_the_client_reaches_the_server_as_a_reset(bed: Bed) -> None:
    with bed["web"].serve(echo) as server:
        conn = bed["client"].connect(bed["web"].v4)
        assert talks(conn)
        reset(conn)
        eventually(lambda: server.ended)
    assert [error.errno for error in server.errors] == [errno.ECONNRESET]


def test_a_port_where_nobody_listens_gives_no_data_and_no_clean_end(bed: Bed) -> None:
    with pytest.raises(ConnectionError), bed["client"].connect(bed["web"].v4, 8081) as conn:
        conn.recv(1)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_proxys_own_ports_are_refused(bed: Bed, port: int) -> None:
    with pytest.raises(ConnectionError), bed["client"].connect(bed["web"].v4, port) as conn:
        conn.recv(1)


def test_a_gibibyte_goes_through_unharmed_each_way(bed: Bed) -> None:
    block = os.urandom(1 << 20)
    sums: list[str] = []

    def pour(conn: socket.socket) -> None:
        for _ in range(GIB // len(block)):
            conn.sendall(block)
        conn.shutdown(socket.SHUT_WR)

    def drink(conn: socket.socket) -> str:
        digest = hashlib.blake2b()
        buffer = memoryview(bytearray(1 << 20))
        while count := conn.recv_into(buffer):
            digest.update(buffer[:count])
        return digest.hexdigest()

    def upload(conn: socket.socket) -> None:
        sums.append(drink(conn))

    expected = hashlib.blake2b()
    for _ in range(GIB // len(block)):
        expected.update(block)
    with bed["web"].serve(upload), bed["client"].connect(bed["web"].v4) as conn:
        pour(conn)
        eventually(lambda: sums, 60)
    with bed["web"].serve(pour), bed["client"].connect(bed["web"].v4) as conn:
        sums.append(drink(conn))
    assert sums == [expected.hexdigest()] * 2


def test_a_reader_that_does_not_read_stops_its_own_sender_and_nobody_else(bed: Bed) -> None:
    release = threading.Event()

    def stall(conn: socket.socket) -> None:
        release.wait(60)
        read_all(conn)

    with bed["web"].serve(stall), bed["web"].serve(echo, 8082), bed["client"].connect(bed["web"].v4) as stalled:
        stalled.setblocking(False)
        sent, idle_since = 0, time.monotonic()
        while time.monotonic() - idle_since < 1:
            try:
                sent += stalled.send(b"x" * 65536)
                idle_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
            assert sent < 256 << 20, "the proxies took everything in: nothing holds the sender back"
        assert bed["client"].reaches(bed["web"].v4, 8082)
        release.set()


def test_bursts_beyond_the_backlog_lose_no_connection(bed: Bed) -> None:
    wanted = 1500
    with bed["web"].serve(echo) as server, contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(wanted):
            conn = stack.enter_context(bed["client"].open(socket.AF_INET))
            conn.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                conn.connect((bed["web"].v4, PORT))
            selector.register(conn, selectors.EVENT_WRITE)
        answered, deadline = 0, time.monotonic() + 60
        while answered < wanted and time.monotonic() < deadline:
            for key, events in selector.select(1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if events & selectors.EVENT_WRITE:
                    sock.send(b"x")
                    selector.modify(sock, selectors.EVENT_READ)
                else:
                    assert sock.recv(1) == b"x"
                    selector.unregister(sock)
                    answered += 1
        assert answered == wanted
        assert len(server.peers) == wanted
    eventually(lambda: bed.connections("client") == bed.connections("web") == [])


def test_udp_goes_untouched(bed: Bed) -> None:
    with (
        bed["web"].open(socket.AF_INET, socket.SOCK_DGRAM) as server,
        bed["client"].open(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 5353))
        client.sendto(b"question", (bed["web"].v4, 5353))
        data, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        assert (data, peer[0], client.recvfrom(100)[0]) == (b"question", bed["client"].v4, b"answer")


def test_icmp_goes_untouched(bed: Bed) -> None:
    request = struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 1 - 1, 1, 1)  # echo request, id 1, sequence 1
    with bed["client"].open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        client.sendto(request, (bed["web"].v4, 0))
        reply, (peer, _) = client.recvfrom(100)
    assert (peer, reply[20]) == (bed["web"].v4, 0)  # echo reply


def test_loopback_stays_out_of_the_mesh(bed: Bed) -> None:
    with bed["client"].serve(echo), bed["client"].connect("127.0.0.1") as conn:
        assert talks(conn)
        assert not [c for c in bed.connections("client") if "127.0.0.1" in c["destination"]]


def test_a_destination_outside_the_mesh_is_reached_in_plaintext(bed: Bed) -> None:
    with bed.fabric.serve(echo) as server, bed["client"].connect("172.30.0.253") as conn:
        assert talks(conn)
        (row,) = bed.connections("client")
    assert (row["via"], server.peers) == ("plaintext", [bed["client"].v4])


def test_an_address_of_the_mesh_that_nobody_has_is_reset_after_a_while(bed: Bed) -> None:
    with pytest.raises(ConnectionError), bed["client"].connect("10.77.200.200") as conn:
        conn.recv(1)


def test_each_connection_leaves_one_line_in_the_access_log(bed: Bed) -> None:
    before = len(bed.log("client"))
    with bed["web"].serve(echo), bed["client"].connect(bed.service("web"), 80) as conn:
        conn.sendall(b"x" * 1000)
        received = 0
        while received < 1000:
            received += len(conn.recv(1000))
    port_pair = f'"{bed["client"].v4}:'
    lines = eventually(
        lambda: [line for line in bed.log("client")[before:].splitlines() if port_pair in line and "web" in line]
    )
    assert len(lines) == 1
    assert "1000" in lines[0]
