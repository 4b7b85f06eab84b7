"""Peers that take more than their share of a workload's tunnels."""

from __future__ import annotations

import socket

import pytest

from mesh.model import HBONE_PORT
from noded.data import inbound
from tests.noded.data.loopback import Mesh, mesh, until


def call(made: Mesh, source: str) -> socket.socket:
    """A TCP connection to the web's tunnel port on which nothing is said."""
    sock = socket.socket()
    sock.settimeout(20)
    sock.bind((source, 0))
    sock.connect((made.web.address, HBONE_PORT))
    made.open.append(sock)
    return sock


def refused(made: Mesh) -> int:
    return made.web.node.tracker.totals.get("tunnels_refused", 0)


async def test_a_peer_that_begins_many_handshakes_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "_MAX_HANDSHAKES", 8)
    monkeypatch.setattr(inbound, "_MAX_HANDSHAKES_EACH", 4)
    async with mesh() as made:
        idle = [call(made, "127.66.6.6") for _ in range(20)]
        await until(lambda: refused(made) == 16)
        await made.joined(made.serve())
        for sock in idle:
            sock.close()
        await until(lambda: not made.web.local.handshakes)
        assert refused(made) == 16


async def test_a_peer_has_no_more_than_its_share_of_tunnels_and_may_replace_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbound, "_MAX_TUNNELS_EACH", 1)
    async with mesh() as made:
        await made.joined(made.serve())
        peer = next(iter(made.web.local.tunnels)).peer_address
        call(made, peer)
        await until(lambda: refused(made) == 1)
        call(made, "127.66.6.6")
        await until(lambda: made.web.local.handshakes["127.66.6.6"] == 1)
        for tunnel in list(made.web.local.tunnels):
            tunnel.close("made room")
        assert not made.web.local.peers
        call(made, peer)
        await until(lambda: made.web.local.handshakes[peer] == 1)
        assert refused(made) == 1
