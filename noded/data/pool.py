"""Tunnels that this host's workloads have opened, and the opening of new ones.

A tunnel serves one (source workload, destination address, destination identity): nothing is shared between workloads,
so that what a peer sees in the certificate is always who is calling. One dialler a key: a burst of connections to a new
destination costs one handshake.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from typing import NamedTuple, Protocol

import trio

from mesh.h2.connection import Stream
from mesh.identity import Identity
from mesh.model import HBONE_PORT
from noded.data import tls
from noded.data.node import LocalWorkload, Node
from noded.data.tunnel import Tunnel

_MAX_WAITING = 4096
_SETTINGS_SECONDS = 10

log = logging.getLogger(__name__)


class Carried(Protocol):
    """What wants to be a stream of a tunnel."""

    address: str
    """Of the destination workload."""
    closed: bool

    def open_in(self, tunnel: Tunnel, /) -> None:
        """Open the stream in this tunnel, which has room."""

    def fail(self, flags: str, reason: str, /) -> None:
        """There is no tunnel."""


class Key(NamedTuple):
    """What a tunnel is good for. The source workload stands for source identity and address."""

    uid: str
    address: str
    peer: Identity


class _Entry:
    """The tunnels of one key, and the connections that wait for one."""

    __slots__ = ("dialling", "tunnels", "waiting")

    def __init__(self) -> None:
        self.tunnels: list[Tunnel] = []
        self.waiting: deque[Carried] = deque()
        self.dialling = False


class Pool:
    """Also the `Keeper` of its tunnels."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._entries: dict[Key, _Entry] = {}
        self._keys: dict[Tunnel, Key] = {}
        self._starting: dict[Tunnel, trio.Event] = {}

    def carry(self, local: LocalWorkload, peer: Identity, stream: Carried) -> None:
        """Open `stream` in a tunnel from `local` to the workload at `stream.address`, now or when there is one."""
        key = Key(local.uid, stream.address, peer)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
        for tunnel in entry.tunnels:
            if tunnel.connection.room > 0:
                stream.open_in(tunnel)
                return
        if len(entry.waiting) >= _MAX_WAITING:
            stream.fail("UO", f"over {_MAX_WAITING} connections wait for a tunnel to {stream.address}")
            return
        entry.waiting.append(stream)
        if not entry.dialling:
            entry.dialling = True
            self._node.engine.spawn(self._dial, local, key, entry)

    def tunnels(self) -> list[Tunnel]:
        """All that are open."""
        return list(self._keys)

    # -- opening ------------------------------------------------------------------------------------------------------

    async def _dial(self, local: LocalWorkload, key: Key, entry: _Entry) -> None:
        try:
            while entry.waiting:
                try:
                    tunnel = await self._open(local, key)
                except (OSError, tls.HandshakeFailed) as error:
                    self._node.tracker.count("handshake_failures")
                    why = getattr(error, "strerror", None) or str(error)  # without the number
                    log.info("no tunnel from %s to %s (%s): %s", key.uid, key.address, key.peer.uri, why)
                    self._fail_waiting(entry, f"no tunnel to {key.address}: {why}")
                    return
                self._serve(entry, tunnel)
        finally:
            entry.dialling = False
            self._fail_waiting(entry, "the worker is ending")
            if not entry.tunnels and self._entries.get(key) is entry:
                del self._entries[key]

    async def _open(self, local: LocalWorkload, key: Key) -> Tunnel:
        node = self._node
        if not await node.hold(lambda: local.contexts is not None or local.gone) or local.contexts is None:
            raise tls.HandshakeFailed(f"{key.uid} has no certificate yet")
        contexts = local.contexts
        sock = local.sockets.make(key.address)
        try:
            with trio.fail_after(node.connect_seconds):
                await _connect(sock, key.address)
            session = await tls.handshake(sock, contexts.client, server=False, seconds=node.connect_seconds)
            peer = tls.peer_identity(session.tls)
            if peer != key.peer:
                raise tls.HandshakeFailed(f"the server there is {peer.uri}")
        except trio.TooSlowError:
            sock.close()
            raise tls.HandshakeFailed(f"connecting took over {node.connect_seconds:g} s") from None
        except BaseException:
            sock.close()
            raise
        node.tracker.count("handshakes")
        tunnel = Tunnel(
            node.engine,
            node.buffers,
            node.budget,
            self,
            sock,
            session,
            client=True,
            local=local.identity,
            peer=peer,
            peer_address=key.address,
            uid=key.uid,
            expires=min(contexts.not_after, tls.peer_not_after(session.tls)),
        )
        await self._settled(tunnel)
        self._keys[tunnel] = key
        self._entries[key].tunnels.append(tunnel)
        return tunnel

    async def _settled(self, tunnel: Tunnel) -> None:
        """Wait for the peer's SETTINGS: only they tell that it has accepted our certificate."""
        event = self._starting[tunnel] = trio.Event()
        try:
            with trio.move_on_after(_SETTINGS_SECONDS):
                await event.wait()
            if tunnel.closed or tunnel.connection.room <= 0:
                # without room it would carry nobody, and whoever waits would have the next one dialled, and the next
                none = "it takes no streams" if tunnel.connection.ready else f"no SETTINGS within {_SETTINGS_SECONDS} s"
                reason = tunnel.reason or none
                raise tls.HandshakeFailed(f"the peer refused the tunnel: {reason}")
        except BaseException:
            tunnel.close("given up")
            raise
        finally:
            del self._starting[tunnel]

    def _serve(self, entry: _Entry, tunnel: Tunnel) -> None:
        while entry.waiting and tunnel.connection.room > 0:
            stream = entry.waiting.popleft()
            if not stream.closed:
                stream.open_in(tunnel)

    def _fail_waiting(self, entry: _Entry, reason: str) -> None:
        waiting, entry.waiting = entry.waiting, deque()
        for stream in waiting:
            stream.fail("UF", reason)

    # -- as the tunnels' keeper ---------------------------------------------------------------------------------------

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """See `Keeper`."""
        if (event := self._starting.get(tunnel)) is not None:
            self._node.engine.wake(event)

    def tunnel_request(self, tunnel: Tunnel) -> Stream:
        """See `Keeper`. The connection refuses streams that a server opens before this could be asked."""
        raise AssertionError("a server opened a stream")

    def tunnel_closed(self, tunnel: Tunnel) -> None:
        """See `Keeper`."""
        self.tunnel_ready(tunnel)
        key = self._keys.get(tunnel)
        if key is None:
            return
        if tunnel.closed:
            del self._keys[tunnel]
        entry = self._entries.get(key)
        if entry is None:  # this one was retired, and none could be opened in its place
            return
        if tunnel in entry.tunnels:
            entry.tunnels.remove(tunnel)
        if not entry.tunnels and not entry.dialling and not entry.waiting and tunnel.closed:
            del self._entries[key]


async def _connect(sock: socket.socket, address: str) -> None:
    try:
        sock.connect((address, HBONE_PORT))
    except BlockingIOError:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"connect to {address}:{HBONE_PORT}: {os.strerror(error)}") from None
