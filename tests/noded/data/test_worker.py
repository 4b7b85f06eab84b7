"""A captured connection from pod to pod, through two real workers."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.model import Action, Endpoint, MtlsMode, PeerAuth, Policy, Rule, Service, ServicePort, Source
from tests.noded.data.lab import Lab, echo, lab, read_all, server

pytestmark = pytest.mark.root

VIP = "10.96.0.10"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Lab]:
    """`client` and `web` in the mesh, `outsider` not; service 10.96.0.10:80 is web:8080."""
    async with lab(tmp_path) as made:
        for name in ("client", "web", "outsider"):
            made.pod(name)
        web = made.pods["web"]
        made.services = (
            Service("web", "shop", (VIP,), (ServicePort("tcp", 80),), (Endpoint(web.address, web.uid, (8080,)),)),
        )
        await made.enrol(made.pods["client"])
        await made.enrol(web)
        await made.publish()
        yield made


async def test_a_request_crosses_the_mesh_and_the_server_sees_the_clients_address(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    with server(web, 8080, echo) as seen:

        def ask() -> Any:
            with client.connect(VIP, 80) as sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await trio.to_thread.run_sync(ask) == b"hello"
        assert seen[0][0] == client.address
    await trio.sleep(0.4)
    (inbound,) = web.access_log()
    assert inbound["peer_identity"] == client.identity
    assert (inbound["received"], inbound["sent"], inbound["flags"]) == (5, 5, "-")
    (outbound,) = client.access_log()
    assert outbound["service"] == "web.shop.svc.cluster.local"
    assert outbound["peer_identity"] == web.identity


async def test_ipv6_crosses_too(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    with server(web, 8080, echo, address="::") as seen:

        def ask() -> Any:
            with client.connect(web.address6, 8080) as sock:
                sock.sendall(b"six")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await trio.to_thread.run_sync(ask) == b"six"
        assert seen[0][0] == client.address6


async def test_many_megabytes_arrive_whole_both_ways_at_once(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    payload = os.urandom(1 << 20) * 48
    with server(web, 8080, echo):

        def send(sock: socket.socket) -> None:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)

        with await trio.to_thread.run_sync(client.connect, VIP, 80) as sock:
            received: list[bytes] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, send, sock)
                received.append(await trio.to_thread.run_sync(read_all, sock))
        assert hashlib.sha256(received[0]).digest() == hashlib.sha256(payload).digest()


async def test_a_stalled_reader_does_not_stop_another_connection_in_the_same_tunnel(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    with server(web, 8080, lambda c: c.sendall(bytes(64 << 20))), server(web, 8081, echo):
        stalled = await trio.to_thread.run_sync(client.connect, VIP, 80)
        await trio.sleep(0.5)

        def ask() -> Any:
            with client.connect(web.address, 8081) as sock:
                sock.sendall(b"still here")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await trio.to_thread.run_sync(ask) == b"still here"
        assert len(await trio.to_thread.run_sync(read_all, stalled)) == 64 << 20
        stalled.close()


async def test_a_server_may_speak_first_and_half_close_works_each_way(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"late words"
        done.append(True)

    done: list[bool] = []
    with server(web, 25, greet):

        def talk() -> Any:
            with client.connect(web.address, 25) as sock:
                greeting = read_all(sock)
                sock.sendall(b"late words")
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
                return greeting

        assert await trio.to_thread.run_sync(talk) == b"220 ready\r\n"
    await trio.sleep(0.3)
    assert done == [True]


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_on_one_side_is_a_reset_on_the_other(pair: Lab, who: str) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    outcome: list[str] = []

    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def observe(sock: socket.socket) -> None:
        try:
            outcome.append(repr(sock.recv(10)))
        except ConnectionResetError:
            outcome.append("reset")

    def handle(connection: socket.socket) -> None:
        connection.recv(1)
        (reset if who == "server" else observe)(connection)

    with server(web, 8080, handle):

        def talk() -> None:
            sock = client.connect(VIP, 80)
            sock.sendall(b"x")
            if who == "client":
                trio.from_thread.run(trio.sleep, 0.2)
                reset(sock)
            else:
                observe(sock)
                sock.close()

        await trio.to_thread.run_sync(talk)
        await trio.sleep(0.3)
    assert outcome == ["reset"]


async def test_nobody_listening_is_a_reset_with_the_reason_in_the_log(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]

    def ask() -> Any:
        with client.connect(VIP, 80) as sock:
            return sock.recv(1)

    with pytest.raises(ConnectionResetError):
        await trio.to_thread.run_sync(ask)
    await trio.sleep(0.4)
    assert web.access_log()[-1]["reason"].endswith("Connection refused")
    assert client.access_log()[-1]["flags"] == "UF"


async def test_a_deny_policy_resets_live_connections_and_new_ones(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    with server(web, 8080, echo):
        live = await trio.to_thread.run_sync(client.connect, VIP, 80)
        live.sendall(b"a")
        assert await trio.to_thread.run_sync(live.recv, 1) == b"a"
        rule = Rule((Source(principals=(client.identity.removeprefix("spiffe://"),)),))
        pair.policies = (Policy("no-client", "shop", Action.DENY, (rule,)),)
        await pair.publish()
        with pytest.raises(ConnectionResetError):
            await trio.to_thread.run_sync(live.recv, 1)
        live.close()

        def ask() -> Any:
            with client.connect(VIP, 80) as sock:
                return sock.recv(1)

        with pytest.raises(ConnectionResetError):
            await trio.to_thread.run_sync(ask)
    await trio.sleep(0.4)
    assert [line["policy"] for line in web.access_log()] == ["shop/no-client"] * 2
    assert [line["flags"] for line in web.access_log()] == ["RBAC"] * 2


async def test_live_connections_follow_each_change_of_a_policy(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    mine = (Rule((Source(principals=(client.identity.removeprefix("spiffe://"),)),)),)
    nobody, deny = Policy("deny", "shop", Action.DENY, mine, {"no": "such"}), Policy("deny", "shop", Action.DENY, mine)
    allow = Policy("allow", "shop", Action.ALLOW, mine)

    def answers(sock: socket.socket) -> bool:
        try:
            sock.sendall(b"a")
            return sock.recv(1) == b"a"
        except (ConnectionResetError, BrokenPipeError):
            return False

    live: socket.socket | None = None
    with server(web, 8080, echo):
        for change, removed, lives in (
            ((nobody,), (), True),
            ((allow,), (), True),
            ((deny,), (), False),  # the same one, which selects the workload now
            ((), ("p:shop/deny", "p:shop/none"), True),
            ((replace(deny, dry_run=True),), (), True),
            ((replace(deny, namespace="other"), replace(allow, rules=())), (), False),
        ):
            await pair.change(*change, removed=removed)
            if live is None:
                live = await trio.to_thread.run_sync(client.connect, VIP, 80)
            assert await trio.to_thread.run_sync(answers, live) is lives, change
            if not lives:
                live.close()
                live = None


async def test_plaintext_from_outside_is_let_in_until_mutual_tls_is_strict(pair: Lab) -> None:
    outsider, web = pair.pods["outsider"], pair.pods["web"]
    with server(web, 8080, echo) as seen:

        def ask() -> Any:
            with outsider.connect(web.address, 8080) as sock:
                sock.sendall(b"plain")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await trio.to_thread.run_sync(ask) == b"plain"
        assert seen[0][0] == outsider.address
        pair.peer_auths = (PeerAuth("default", "shop", MtlsMode.STRICT),)
        await pair.publish()
        with pytest.raises(ConnectionResetError):
            await trio.to_thread.run_sync(ask)


async def test_plaintext_goes_out_to_a_workload_outside_the_mesh(pair: Lab) -> None:
    client, outsider = pair.pods["client"], pair.pods["outsider"]
    with server(outsider, 9000, echo) as seen:

        def ask() -> Any:
            with client.connect(outsider.address, 9000) as sock:
                sock.sendall(b"plain")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await trio.to_thread.run_sync(ask) == b"plain"
        assert seen[0][0] == client.address


async def test_a_pod_reaches_itself_through_its_service(pair: Lab) -> None:
    web = pair.pods["web"]
    with server(web, 8080, echo) as seen:

        def ask() -> Any:
            with web.connect(VIP, 80) as sock:
                sock.sendall(b"me")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert await trio.to_thread.run_sync(ask) == b"me"
        assert seen[0][0] == web.address


async def test_a_server_with_another_identity_than_the_snapshots_is_refused(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    await pair.certify(web, "spiffe://cluster.local/ns/shop/sa/impostor")
    with server(web, 8080, echo):

        def ask() -> Any:
            with client.connect(VIP, 80) as sock:
                return sock.recv(1)

        with pytest.raises(ConnectionResetError):
            await trio.to_thread.run_sync(ask)
    await trio.sleep(0.4)
    assert "impostor" in client.access_log()[-1]["reason"]


async def test_five_hundred_connections_at_once_share_tunnels(pair: Lab) -> None:
    client, web = pair.pods["client"], pair.pods["web"]
    with server(web, 8080, echo, backlog=1024):

        def many() -> Any:
            socks = [client.connect(VIP, 80) for _ in range(500)]
            for sock in socks:
                sock.sendall(b"x")
            answers = sum(sock.recv(1) == b"x" for sock in socks)
            for sock in socks:
                sock.close()
            return answers

        assert await trio.to_thread.run_sync(many) == 500
        tunnels = await pair.query(client, "tunnels")
        assert 1 <= len(tunnels) <= 6
