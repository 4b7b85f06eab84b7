"""What one worker knows: the snapshot, the local workloads, and the machinery that their connections share."""

from __future__ import annotations

import logging
import random
import socket
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import trio

from mesh import hbone
from mesh.authz import Authorizer, Denial, Peer
from mesh.authz.selection import effective_mtls
from mesh.h2.connection import Budget
from mesh.identity import Identity
from mesh.model import MeshConfig, Party, Workload
from mesh.request_auth import TokenRules
from mesh.snapshot import PoliciesOf, Snapshot
from noded.buckets import Buckets
from noded.data import tls
from noded.data.engine import Engine
from noded.data.http.tracing import Tracing
from noded.data.sockets import SocketMaker
from noded.data.tracker import Tracker
from noded.data.tunnel import Buffers
from noded.link import Certificate, Configure
from noded.source_ports import SourcePorts

if TYPE_CHECKING:
    from noded.data.tunnel import Tunnel

log = logging.getLogger(__name__)


class LocalWorkload:
    """A workload of this host as its worker sees it. Owns its listeners and its namespace's descriptor."""

    def __init__(
        self,
        workload: Workload,
        labels: dict[str, str],
        config: MeshConfig,
        netns: int,
        mark: int,
        listeners: list[int],
    ) -> None:
        self.workload, self.labels = workload, labels
        self.uid = workload.uid
        self.sockets = SocketMaker(netns, mark)
        self.listeners = [socket.socket(fileno=fd) for fd in listeners]
        self.contexts: tls.Contexts | None = None
        self.tunnels: set[Tunnel] = set()
        """Those that others opened to it."""
        self.handshakes: Counter[str] = Counter()
        """How many tunnels are being set up towards it, by the peer's address, and how many `peers` have."""
        self.peers: Counter[str] = Counter()
        self.gone = False
        self._policies: tuple[PoliciesOf, str] | None = None
        self.configure(config)

    def configure(self, config: MeshConfig) -> None:
        """Work out what depends on the mesh's configuration."""
        self.identity = Identity(config.trust_domain, self.workload.namespace, self.workload.service_account)
        self.baggage = hbone.baggage(self.workload, config.cluster)
        self.party = party_of(self.workload, config)

    def authorize_with(self, snapshot: Snapshot) -> bool:
        """Take over the policies that apply to it; whether they are others than they were."""
        root, labels = snapshot.config.root_namespace, self.labels
        found = snapshot.policies_of(self.workload.namespace, labels)
        if self._policies == (found, root):
            return False
        self._policies = found, root
        who: dict[str, Any] = {"namespace": self.workload.namespace, "labels": labels, "root_namespace": root}
        self.authorizer = Authorizer(found.policies, effective_mtls(chain(*found.peer_auths), **who))
        self.token_rules = TokenRules.of(chain(*found.request_auths), **who)
        """None where requests' tokens are nothing to the mesh."""
        return True

    def certificate(self, message: Certificate) -> None:
        """Use a new certificate from the next handshake on."""
        self.contexts = tls.contexts(message.chain, message.key, message.roots, message.not_after)


def party_of(workload: Workload, config: MeshConfig) -> Party:
    """A workload as metrics name it."""
    principal = Identity(config.trust_domain, workload.namespace, workload.service_account).uri
    return Party(
        workload.name,
        workload.namespace,
        principal if workload.meshed else "unknown",
        workload.app or workload.name,
        workload.version or "latest",
    )


class Node:
    """Shared by every step of a connection's life. Changed only by the worker, between turns of the engine."""

    def __init__(self, configure: Configure, source_ports: SourcePorts, buckets: Buckets, engine: Engine) -> None:
        self.engine, self.workers = engine, configure.workers
        self.buckets = buckets
        """Of the rate limits that hold for the node."""
        text = configure.access_log_format == "text"
        traced = configure.trace_sampling >= 0 or configure.request_ids
        self.tracing = Tracing(configure.trace_sampling) if traced else None
        self.tracker = Tracker(source_ports, access_log=configure.access_log, text=text, index=configure.index)
        self.buffers = Buffers()
        self.budget = Budget()
        self.hold_seconds = configure.hold_seconds
        self.connect_seconds = configure.connect_seconds
        self.snapshot = Snapshot.empty()
        self.workloads: dict[str, LocalWorkload] = {}
        self._changed = trio.Event()
        self._pick = random.getrandbits(16)
        self._parties: dict[str, Party] = {}

    def pick(self) -> int:
        """For choosing among endpoints in turn."""
        self._pick += 1
        return self._pick

    def changed(self) -> None:
        """Something that held connections may be waiting for has come."""
        self._changed.set()
        self._changed = trio.Event()

    async def hold(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready()`, at most `hold_seconds`; False if it did not come to be."""
        with trio.move_on_after(self.hold_seconds):
            while not ready():
                await self._changed.wait()
            return True
        return False

    def adopt(self, snapshot: Snapshot) -> None:
        """Use a new snapshot; close live connections that its policies deny."""
        config_before, self.snapshot = self.snapshot.config, snapshot
        self._parties.clear()
        if snapshot.config != config_before:
            for local in self.workloads.values():
                local.configure(snapshot.config)
        changed = [local for local in self.workloads.values() if local.authorize_with(snapshot)]
        self.changed()
        for local in changed:
            self.recheck(local)

    def recheck(self, local: LocalWorkload) -> None:
        """After a policy change: close live connections to `local` that are denied now."""
        for flow in self.tracker.of(local.uid):
            if flow.direction == "outbound" or flow.carrier is None or not flow.target:
                continue
            if flow.requests is not None:
                flow.requests.recheck()
                continue
            verdict = local.authorizer.check(Peer(flow.peer_identity, flow.client, flow.target, flow.target_port))
            flow.decided(verdict)
            if isinstance(verdict, Denial):
                flow.carrier.abort(verdict.text, "RBAC")

    def party(self, workload: Workload) -> Party:
        """A workload of the snapshot as metrics name it."""
        found = self._parties.get(workload.uid)
        if found is None:
            found = self._parties[workload.uid] = party_of(workload, self.snapshot.config)
        return found

    def serves(self, address: str, port: int) -> str:
        """The host name of the service that a workload's port belongs to, where that is known; else `""`."""
        service = self.snapshot.served_by(address, port)
        return service.hostname if service is not None else ""

    def identity(self, workload: Workload) -> Identity:
        """Who a workload of the snapshot is."""
        return Identity(self.snapshot.config.trust_domain, workload.namespace, workload.service_account)
