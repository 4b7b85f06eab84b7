"""Connections leaving a local workload: captured, resolved, then into a tunnel or out in plaintext."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from mesh.resolve import Kind, Target, resolve
from noded.data.dial import Dialler
from noded.data.disturb import Delayed, SlowStream, SlowWaiting, choose
from noded.data.node import LocalWorkload, Node
from noded.data.outbound_stream import OutboundStream
from noded.data.socket_relay import Waiting
from noded.data.sockets import canonical
from noded.data.tracker import UNKNOWN, Flow

if TYPE_CHECKING:
    from noded.data.http.proxy import HttpProxy
    from noded.data.pool import Pool


class Outbound:
    """The outbound side of this worker."""

    def __init__(self, node: Node, pool: Pool, dialler: Dialler, http: HttpProxy) -> None:
        self._node, self._pool, self._dialler, self._http = node, pool, dialler, http

    def accepted(self, local: LocalWorkload, client: socket.socket, peer: tuple[str, int]) -> None:
        """A captured connection. `getsockname` of a socket that TPROXY handed over is its original destination."""
        node = self._node
        flow = Flow(node.tracker, local.uid, "outbound", canonical(peer[0]), peer[1])
        try:
            address, port = client.getsockname()[:2]
        except OSError:
            client.close()
            flow.finish("NR", "no original destination")
            return
        address = canonical(address)
        flow.destination, flow.port = address, port
        flow.identity = local.identity
        vip = node.snapshot.vip_at(address, port)
        if vip is not None and self._http.concerns(vip):
            self._http.outbound(local, flow, client, vip, self.opaque)
        else:
            self.opaque(local, flow, client)

    def opaque(self, local: LocalWorkload, flow: Flow, client: socket.socket) -> None:
        """Carry it as bytes that mean nothing to us."""
        node = self._node
        target = resolve(node.snapshot, flow.destination, flow.port, node.pick())
        if target.kind is Kind.HOLD:
            node.engine.spawn(self._held, local, flow, client, target)
        else:
            self._go(local, flow, client, target)

    async def _held(self, local: LocalWorkload, flow: Flow, client: socket.socket, target: Target) -> None:
        node = self._node
        node.tracker.count("held")
        waiting = flow.carrier = Waiting(node.engine, flow, client)
        found = [target]

        def resolved() -> bool:
            if not flow.finished:
                found[0] = resolve(node.snapshot, flow.destination, flow.port, node.pick())
            return flow.finished or found[0].kind is not Kind.HOLD

        try:
            known = await node.hold(resolved)
        except BaseException:
            waiting.abort("the worker is ending")
            raise
        if flow.finished:
            return
        if not known:
            node.tracker.count("reset_unknown")
            waiting.abort(f"{found[0].reason}; waited {node.hold_seconds:g} s", found[0].flags)
            return
        self._go(local, flow, client, found[0])

    def _go(self, local: LocalWorkload, flow: Flow, client: socket.socket, target: Target) -> None:
        node = self._node
        flow.target, flow.target_port = target.address, target.port
        party = node.party(target.workload) if target.workload else UNKNOWN
        service = target.service.hostname if target.service else ""
        flow.parties(local.party, party, service, "mutual_tls" if target.kind is Kind.TUNNEL else "none")
        if target.kind is Kind.REFUSE:
            client.close()
            flow.finish(target.flags, target.reason)
            return
        if target.service is not None:
            policy = node.snapshot.traffic_policy(target.service.key)
            if policy is not None and policy.fault is not None and (fault := choose(policy.fault)) is not None:
                go = partial(self._carry, local, flow, client, target, fault.bandwidth)
                Delayed(node, self._http.timers, flow, client, fault, go)
                return
        self._carry(local, flow, client, target)

    def _carry(self, local: LocalWorkload, flow: Flow, client: socket.socket, target: Target, limit: int = 0) -> None:
        """Into a tunnel or out in plaintext; `limit` is in bytes a second."""
        node, timers = self._node, self._http.timers
        if target.kind is Kind.TUNNEL:
            assert target.workload is not None
            peer = node.identity(target.workload)
            flow.peer_identity = peer
            args = self._pool, local, flow, client, target.address, target.port, node
            stream = SlowStream(*args, limit=limit, timers=timers) if limit else OutboundStream(*args)
            flow.carrier = stream
            self._pool.carry(local, peer, stream)
        else:
            slow = SlowWaiting(node.engine, flow, client, limit, timers) if limit else None
            waiting = flow.carrier = slow or Waiting(node.engine, flow, client)
            self._dialler.from_workload(local, target.address, target.port, waiting.connected)
