"""The controller's parts on Kubernetes, put together: what is read, who leads, what the leader does.

Every replica reads, signs and serves nodes. The leader makes the CA if there is none, publishes its roots, writes
status conditions, and keeps the buckets of rate limits.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import NoReturn

import trio

from controller.ca import Authority
from controller.config import Address, Config
from controller.forwarding import Forwarder
from controller.issuer_keys import IssuerKeys
from controller.kubernetes import kubeconfig
from controller.kubernetes.access import Access
from controller.kubernetes.assigner import Assigner
from controller.kubernetes.client import Client, ClusterError
from controller.kubernetes.cluster import Cluster
from controller.kubernetes.leadership import Leadership
from controller.kubernetes.mirror import Mirror
from controller.kubernetes.objects import Pod
from controller.kubernetes.progress import Progress
from controller.kubernetes.register import PodRegister
from controller.kubernetes.resources import ClusterResources
from controller.kubernetes.route_status import RouteStatusWriter
from controller.kubernetes.secret import SECRET, SecretCa, material, publish_roots
from controller.kubernetes.sharing import Sharing
from controller.kubernetes.status import StatusWriter
from controller.kubernetes.world import Builder
from controller.limits import SharedLimits
from controller.link import ServerTls
from controller.publish import Publisher
from controller.rotation import Rotation
from controller.session import NodeStatus
from controller.translate import World
from controller.trust import CaError, Conflict, Material, new_material
from mesh.sync import Assign

_log = logging.getLogger(__name__)
_AGAIN_SECONDS, _LOOK_SECONDS = 2.0, 30.0


class ClusterHome:
    """See the module. `changed` is called for each change that may concern the world. `run` it to bring it to life."""

    store = None

    def __init__(
        self,
        config: Config,
        authority: Authority,
        *,
        clock: Callable[[], float],
        changed: Callable[[], None],
        root_namespace: str,
    ) -> None:
        access = kubeconfig.load([config.kubeconfig]) if config.kubeconfig else Access.in_cluster()
        self.client = Client(access)
        self._config, self.authority, self._clock, self._changed = config, authority, clock, changed
        self._root_namespace = root_namespace
        self.register = PodRegister(
            self.client,
            authority,
            workload_life=timedelta(hours=config.workload_certificate_hours),
            root_namespace=root_namespace,
            clock=clock,
            changed=changed,
        )
        self._assigner = Assigner(root_namespace)
        self.cluster = Cluster(
            self.client,
            changed=changed,
            pod_changed=self._pod_changed,
            namespaces_changed=self._assigner.namespaces_changed,
        )
        self.register.cluster = self._assigner.cluster = self.cluster
        self.resources = ClusterResources(self.cluster, self.client)
        self.assigned: Callable[[str, Assign | None], Awaitable[Assign]] = self._assigner.next
        self.ca = SecretCa(self.client, root_namespace)
        secrets_path = f"/api/v1/namespaces/{root_namespace}/secrets"
        self._secret: Mirror[Material | CaError] = Mirror(
            self.client, [secrets_path], material, self._on_secret, fields=f"metadata.name={SECRET}"
        )
        self._ca_changed = trio.Event()
        self.keys = IssuerKeys(self._keys_changed)
        self._builder = Builder(self.keys)
        me = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{secrets.token_hex(4)}"
        self.leadership = Leadership(self.client, root_namespace, me, clock=clock)
        self._forwarder = Forwarder(self.leader)
        self.forward = self._forwarder.forward

    def world(self) -> World:
        """The world now."""
        cluster = self.cluster
        return self._builder.build(
            cluster.pods.objects,
            cluster.services.objects,
            cluster.slices.objects.values(),
            cluster.resources(),
            self.register.enrolment,
            cluster.nodes.objects.values(),
        )

    def ranges(self) -> tuple[str, ...]:
        """The mesh's ranges: as configured, else those of all nodes' pods."""
        if self._config.mesh_ranges:
            return tuple(self._config.mesh_ranges)
        known = {ip_network(text) for node in self.cluster.nodes.objects.values() for text in node.pod_ranges}
        four = collapse_addresses(n for n in known if isinstance(n, IPv4Network))
        six = collapse_addresses(n for n in known if isinstance(n, IPv6Network))
        return tuple(map(str, (*four, *six)))

    def leader(self) -> Address | None:
        """Where the leader is, unless it is this replica, or not known."""
        if self.leadership.leader in ("", self.leadership.me):
            return None
        pod = self.cluster.pods.objects.get(f"{self._root_namespace}/{self.leadership.leader.rpartition('_')[0]}")
        return Address(pod.addresses[0], self._config.listen.port) if pod is not None and pod.addresses else None

    def close(self) -> None:
        """Nothing is held beyond `run`."""

    async def run(
        self,
        publisher: Publisher,
        nodes: Callable[[], Mapping[str, NodeStatus]],
        rotation: Rotation,
        limits: SharedLimits,
        tls: ServerTls,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until cancelled; reports when everything was read and there is a CA."""
        pod = self.leadership.me.rpartition("_")[0]
        progress = Progress(self.client, self._root_namespace, pod, self.cluster, publisher, nodes)
        writer = StatusWriter(self.client, self.cluster, publisher, progress, self._clock)

        routes = RouteStatusWriter(self.client, self.cluster, publisher, self._clock)

        async def lead() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_ca)
                nursery.start_soon(writer.run)
                nursery.start_soon(routes.run)
                nursery.start_soon(limits.keep)

        async with self.client, trio.open_nursery() as nursery:
            for mirror in (*self.cluster.mirrors, self._secret, progress.replicas):
                nursery.start_soon(mirror.run)
            nursery.start_soon(self.register.run)
            nursery.start_soon(self.leadership.run, lead)
            await self.cluster.synced()
            await progress.replicas.synced.wait()
            while not self.authority.generation:
                await self._ca_changed.wait()
            self._changed()
            await publisher.settled()
            await nursery.start(progress.run)  # before there are nodes, lest a predecessor's word is taken for ours
            nursery.start_soon(self._forwarder.run, tls.client_context, tls.is_controller, limits.answered)
            nursery.start_soon(Sharing(self.client, self._root_namespace, self.leadership.me, rotation).run)
            task_status.started()

    def _keys_changed(self) -> None:
        self._changed()
        self.cluster.look_again()

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        self.register.pod_changed(key, old, new)
        self._assigner.pod_changed(old, new)

    def _on_secret(self, _key: str, _old: object, new: Material | CaError | None) -> None:
        """Take over what the Secret holds; if that is of no use, or the Secret is gone, go on as before."""
        try:
            if isinstance(new, CaError):
                raise new
            if new is not None and self.authority.adopt(new, self.ca.where, self._clock()):
                _log.info("CA taken over", extra={"roots": len(self.authority.roots)})
                self._changed()
        except CaError as error:
            _log.error("the CA cannot be used", extra={"reason": str(error)})
        self._ca_changed.set()
        self._ca_changed = trio.Event()

    async def _keep_ca(self) -> NoReturn:
        """As leader: see that there is a CA, and that its roots are published, also when somebody has removed them."""
        await self._secret.synced.wait()
        while True:
            changed = self._ca_changed
            try:
                if not self._secret.objects:
                    await self._make_ca()
                elif self.authority.generation:
                    await publish_roots(self.client, self._root_namespace, self.authority.bundle)
            except (ClusterError, Conflict, CaError) as error:
                _log.warning("cannot keep the CA", extra={"reason": str(error)})
            else:
                with trio.move_on_after(_AGAIN_SECONDS if not self._secret.objects else _LOOK_SECONDS):
                    await changed.wait()
                continue
            await trio.sleep(_AGAIN_SECONDS)

    async def _make_ca(self) -> None:
        if self.authority.generation:
            _log.warning("the CA's Secret is gone: putting it back")
            await self.ca.save(self.authority.material, None)
        else:
            await self.ca.save(new_material(self.authority.trust_domain, self._clock()), None)
