"""HBONE with a peer nobody here wrote: Envoy tunnels to our inbound side, and our outbound side tunnels to Envoy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bench import envoy
from bench.certificates import Authority
from mesh.model import Action, Policy, Rule, Source
from redirect.capture import Capture, new_mark

from .pods import Pod, cabled, echo_upper, greet, serving
from .worker import captured_by_worker, identity, workload

pytestmark = pytest.mark.root

BULK = 3_000_000
"""Bytes: more than every window on the way."""


@pytest.fixture
def pods() -> Iterator[tuple[Pod, Pod]]:
    with cabled() as pair:
        yield pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.contextmanager
def envoy_client(pod: Pod, authority: Authority, folder: Path, *, name: str = "client") -> Iterator[envoy.Envoy]:
    """Envoy in the client's pod, with the certificate of `name`, behind capture rules like ours."""
    mark = new_mark()
    Capture(pod.path, mark).apply()
    config = envoy.client(
        authority.issue(f"envoy-{name}", identity(name)), mark=mark, accepts=[identity("server")], log=folder / "access"
    )
    with envoy.Envoy("client", config, netns=pod.name, folder=folder) as running:
        yield running


@contextlib.contextmanager
def envoy_server(
    pod: Pod, authority: Authority, folder: Path, *, name: str = "server", accepts: str = "client"
) -> Iterator[envoy.Envoy]:
    """Envoy in the server's pod, with the certificate of `name`, accepting `accepts` alone."""
    mark = new_mark()
    Capture(pod.path, mark).apply()
    config = envoy.server(
        authority.issue(f"envoy-{name}", identity(name)), mark=mark, accepts=[identity(accepts)], log=folder / "access"
    )
    with envoy.Envoy("server", config, netns=pod.name, folder=folder) as running:
        yield running


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def exchange(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send `data` and end; everything that comes back."""
    answer = b""

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            answer = await read_all(stream)
    return answer


async def assert_refused(pod: Pod, address: str) -> None:
    """A connection from `pod` must end with a reset or at once, and carry nothing."""
    stream = await pod.connect(address)
    async with stream:
        with trio.fail_after(60):
            try:
                await stream.send_all(b"secret")
                assert await read_all(stream) == b""
            except trio.BrokenResourceError:
                pass


async def access_log(folder: Path, lines: int = 1) -> list[dict[str, object]]:
    """Envoy's access log when it has this many lines; it writes them late."""
    with trio.fail_after(60):
        while True:
            file = folder / "access"
            found = file.read_text().splitlines() if file.exists() else []
            if len(found) >= lines:
                return [json.loads(line) for line in found]
            await trio.sleep(0.1)


# Envoy -> our inbound


async def test_envoy_tunnels_to_our_inbound_and_is_known_by_its_certificate(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("server", identity("server"))
    async with (
        serving(server, echo_upper) as served,
        captured_by_worker(server, "server", ours, mesh) as worker,
    ):
        with envoy_client(client, authority, tmp_path):
            stream = await client.connect(server.address)
            async with stream:
                await stream.send_all(b"hello")
                with trio.fail_after(60):
                    assert await stream.receive_some(10) == b"HELLO"
                (connection,) = await worker.ask("connections")
                (tunnel,) = await worker.ask("tunnels")
                data = b"payload " * (BULK // 8)
                assert await exchange(stream, data) == data.upper()
    assert served.clients == [client.address]
    assert connection["direction"] == "inbound"
    assert connection["source_identity"] == identity("client")
    assert connection["destination_identity"] == identity("server")
    assert connection["destination"] == f"{server.address}:8080"
    assert (tunnel["direction"], tunnel["peer_identity"]) == ("server", identity("client"))


async def test_a_server_that_speaks_first_is_heard_through_envoy(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("server", identity("server"))
    async with serving(server, greet), captured_by_worker(server, "server", ours, mesh):
        with envoy_client(client, authority, tmp_path):
            stream = await client.connect(server.address)
            async with stream:
                with trio.fail_after(60):
                    assert await stream.receive_some(100) == b"220 ready\r\n"
                assert await exchange(stream, b"HELO") == b"250 HELO"


async def test_many_connections_of_envoy_share_a_tunnel_and_keep_their_bytes_apart(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("server", identity("server"))
    answers: dict[int, bytes] = {}

    async def one(number: int) -> None:
        stream = await client.connect(server.address)
        async with stream:
            answers[number] = await exchange(stream, b"n%d " % number * 5000)

    async with (
        serving(server, echo_upper),
        captured_by_worker(server, "server", ours, mesh) as worker,
    ):
        with envoy_client(client, authority, tmp_path):
            await one(0)  # Envoy makes a tunnel for each of those that come before it knows the destination
            async with trio.open_nursery() as nursery:
                for number in range(1, 60):
                    nursery.start_soon(one, number)
            tunnels = await worker.ask("tunnels")
    assert answers == {number: b"N%d " % number * 5000 for number in range(60)}
    assert len(tunnels) == 1


async def test_envoy_with_an_identity_the_policy_denies_carries_nothing_and_is_counted(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    only_client = Policy(
        "only-client",
        "shop",
        Action.ALLOW,
        (Rule(sources=(Source(principals=(identity("client").removeprefix("spiffe://"),)),)),),
    )
    ours = authority.issue("server", identity("server"))
    async with (
        serving(server, echo_upper) as served,
        captured_by_worker(server, "server", ours, mesh, [only_client]) as worker,
    ):
        with envoy_client(client, authority, tmp_path, name="intruder"):
            await assert_refused(client, server.address)
            edge = await worker.edge()
    assert served.clients == []
    assert (edge.key.source.principal, edge.key.flags, edge.counts.denied) == (identity("intruder"), "RBAC", 1)


async def test_envoy_with_a_certificate_of_another_root_gets_no_tunnel(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger")
    forged = stranger.issue("envoy-client", identity("client"))
    stranger.roots.write_bytes(authority.roots.read_bytes())  # it would accept us: the refusal has to be ours
    mark = new_mark()
    Capture(client.path, mark).apply()
    config = envoy.client(forged, mark=mark, accepts=[identity("server")])
    ours = authority.issue("server", identity("server"))
    async with (
        serving(server, echo_upper) as served,
        captured_by_worker(server, "server", ours, mesh) as worker,
    ):
        with envoy.Envoy("client", config, netns=client.name, folder=tmp_path):
            await assert_refused(client, server.address)
            assert await worker.ask("tunnels") == []
    assert served.clients == []


# our outbound -> Envoy


async def test_our_outbound_tunnels_to_envoy_which_sees_our_identity(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("client", identity("client"))
    async with serving(server, echo_upper) as served:
        with envoy_server(server, authority, tmp_path):
            async with captured_by_worker(client, "client", ours, mesh) as worker:
                stream = await client.connect(server.address)
                async with stream:
                    await stream.send_all(b"hello")
                    with trio.fail_after(60):
                        assert await stream.receive_some(10) == b"HELLO"
                    (connection,) = await worker.ask("connections")
                    data = b"payload " * (BULK // 8)
                    assert await exchange(stream, data) == data.upper()
                (logged,) = await access_log(tmp_path)
    assert served.clients == [client.address]
    assert (connection["direction"], connection["via"]) == ("outbound", "tunnel")
    assert connection["destination_identity"] == identity("server")
    assert logged["peer"] == identity("client")
    assert logged["authority"] == f"{server.address}:8080"
    assert logged["forwarded"] == f'for="{connection["source"]}"'
    assert "k8s.namespace.name=shop" in str(logged["baggage"]).split(",")
    assert logged["received"] == logged["sent"] == len(b"hello") + len(data)


async def test_a_server_behind_envoy_that_speaks_first_is_heard(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("client", identity("client"))
    async with serving(server, greet):
        with envoy_server(server, authority, tmp_path):
            async with captured_by_worker(client, "client", ours, mesh):
                stream = await client.connect(server.address)
                async with stream:
                    with trio.fail_after(60):
                        assert await stream.receive_some(100) == b"220 ready\r\n"
                    assert await exchange(stream, b"HELO") == b"250 HELO"


async def test_an_envoy_with_another_identity_than_the_snapshots_is_refused_before_a_byte_is_sent(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("client", identity("client"))
    async with serving(server, echo_upper) as served:
        with envoy_server(server, authority, tmp_path, name="impostor") as running:
            async with captured_by_worker(client, "client", ours, mesh) as worker:
                await assert_refused(client, server.address)
                assert await worker.ask("tunnels") == []
            stats = running.stats()
    assert served.clients == []
    assert stats.get("http.inbound.downstream_rq_total", 0) == 0


async def test_an_envoy_that_does_not_accept_our_identity_gets_no_connection_and_the_client_a_reset(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("client", identity("client"))
    async with serving(server, echo_upper) as served:
        with envoy_server(server, authority, tmp_path, accepts="somebody-else") as running:
            async with captured_by_worker(client, "client", ours, mesh):
                await assert_refused(client, server.address)
            stats = running.stats()
    assert served.clients == []
    assert stats["listener.0.0.0.0_15008.ssl.fail_verify_san"] >= 1


async def test_when_nothing_listens_behind_envoy_the_client_is_reset(
    pods: tuple[Pod, Pod], authority: Authority, tmp_path: Path
) -> None:
    client, server = pods
    mesh = [workload("client", client), workload("server", server)]
    ours = authority.issue("client", identity("client"))
    with envoy_server(server, authority, tmp_path):
        async with captured_by_worker(client, "client", ours, mesh):
            await assert_refused(client, server.address)
            (logged,) = await access_log(tmp_path)
    assert "UF" in str(logged["flags"])
