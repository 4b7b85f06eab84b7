"""Connections arriving at a local workload in plaintext: captured, and let in where policy allows."""

from __future__ import annotations

import socket

from mesh.authz import Denial, Peer
from mesh.model import PROXY_PORTS, Party
from noded.data.dial import Dialler
from noded.data.http.proxy import HttpProxy
from noded.data.node import LocalWorkload, Node
from noded.data.socket_relay import Waiting
from noded.data.sockets import canonical
from noded.data.tracker import UNKNOWN, Flow


class Passthrough:
    """The inbound side of this worker for what comes in no tunnel."""

    def __init__(self, node: Node, dialler: Dialler, http: HttpProxy) -> None:
        self._node, self._dialler, self._http = node, dialler, http

    def accepted(self, local: LocalWorkload, client: socket.socket, peer: tuple[str, int]) -> None:
        """A captured connection from outside the mesh, or from a mesh that does not know yet that this is in it."""
        flow = Flow(self._node.tracker, local.uid, "passthrough", canonical(peer[0]), peer[1])
        try:
            address, port = client.getsockname()[:2]
        except OSError:
            client.close()
            flow.finish("NR", "no original destination")
            return
        flow.destination, flow.port = flow.target, flow.target_port = canonical(address), port
        if port in PROXY_PORTS:
            client.close()
            flow.finish("NR", "one of the proxy's own ports: it would loop")
        elif not self._node.snapshot.ready:
            self._node.engine.spawn(self._held, local, flow, client)
        else:
            self._go(local, flow, client)

    async def _held(self, local: LocalWorkload, flow: Flow, client: socket.socket) -> None:
        self._node.tracker.count("held")
        try:
            ready = await self._node.hold(lambda: self._node.snapshot.ready)
        except BaseException:
            client.close()
            flow.finish("NR", "the worker is ending")
            raise
        if ready:
            self._go(local, flow, client)
        else:
            client.close()
            flow.finish("NR", f"no snapshot of the mesh yet; waited {self._node.hold_seconds:g} s")

    def _go(self, local: LocalWorkload, flow: Flow, client: socket.socket) -> None:
        service = self._node.serves(flow.target, flow.target_port)
        flow.parties(self._source(flow.client), local.party, service, "none")
        if self._http.reads(local, flow.target, flow.target_port):
            self._http.look(local, flow, client, self._let_in)
        else:
            self._let_in(local, flow, client)

    def _let_in(self, local: LocalWorkload, flow: Flow, client: socket.socket) -> None:
        """Decide on the connection as bytes that mean nothing to us."""
        verdict = local.authorizer.check(Peer(None, flow.client, flow.destination, flow.port))
        flow.decided(verdict)
        if isinstance(verdict, Denial):
            client.close()
            flow.finish("RBAC", verdict.text)
            return
        waiting = flow.carrier = Waiting(self._node.engine, flow, client)
        self._dialler.to_workload(verdict, local, flow.destination, flow.port, flow.client, waiting.connected)

    def _source(self, address: str) -> Party:
        """Who the snapshot says has this address; no identity is claimed for it."""
        workload = self._node.snapshot.workload_at(address)
        if workload is None:
            return UNKNOWN
        known = self._node.party(workload)
        return Party(known.workload, known.namespace, "unknown", known.app, known.version)
