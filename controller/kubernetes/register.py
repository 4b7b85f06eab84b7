"""Who may be in the mesh on Kubernetes: nodes by their noded's token, pods by the API server's word.

A node's word is never enough: the pod must exist, run on that node, and have the service account that is named. That it
is enrolled stands in an annotation of the pod, with the pod's own UID, so that all replicas know and no successor of
the same name inherits it. Between a node's word and the annotation's return by the watch, the claim is kept here; a
node hears that a pod is enrolled when the annotation is written, since the nodes of other replicas would go on sending
it plaintext.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from controller.ca import Authority, CsrError, Issued, public_key_of
from controller.enrol import Enrolled, Refusal
from controller.kubernetes import token_review
from controller.kubernetes.client import Client, ClusterError, Refused
from controller.kubernetes.cluster import Cluster
from controller.kubernetes.objects import ENROLLED, MAX_LABELS, Pod
from controller.schema.names import canonical
from controller.store import Node
from controller.tokens import Scope
from mesh.identity import Identity, node_uri
from mesh.model import Enrolment
from mesh.sync import POD_UID

_log = logging.getLogger(__name__)
_NODE_LIFE = timedelta(hours=24)
"""Short, as nothing revokes it but the node's removal from the cluster; noded can always join again."""
_MAX_ADDRESSES = 16
_AT_ONCE = 8
_PAUSE = 1.0
_KEPT_SECONDS = 8.0
"""How long an annotation may take. A node waits 15 s for the answer, of which the update may take some."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a node said of a pod and the annotation doesn't say yet."""

    pod: str
    """Its UID."""
    enrolled: bool
    addresses: tuple[str, ...] = ()
    settled: trio.Event = field(default_factory=trio.Event, compare=False)
    """Set when the annotation is written, or the claim is not made any more."""


class PodRegister:
    """The register. `run` must be running, to write annotations."""

    node_life = _NODE_LIFE

    def __init__(
        self,
        client: Client,
        authority: Authority,
        *,
        workload_life: timedelta,
        root_namespace: str,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._client, self._authority = client, authority
        self._life, self._root_namespace, self._clock, self._changed = workload_life, root_namespace, clock, changed
        self._claims: dict[str, Claim] = {}
        self._unwritten: dict[str, str] = {}
        """Keys of claims that are to be written, and why they are not yet."""
        self._writing: set[str] = set()
        self._wake = trio.Event()
        self._reviewing = trio.CapacityLimiter(_AT_ONCE)
        """Anybody can show a token, and each costs the API server a request."""
        self.cluster: Cluster
        """Set before use: the mirrors tell the register of changes, and it reads them."""

    # What the world and the API ask

    def enrolment(self, pod: Pod) -> tuple[bool, tuple[str, ...]]:
        """Whether a pod is in the mesh, and its addresses."""
        claim = self._claims.get(pod.key)
        if claim is None or claim.pod != pod.uid:
            return pod.enrolled, pod.addresses
        return claim.enrolled, pod.addresses or claim.addresses

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The cluster's that noded runs on."""
        return {
            node.name: Node(node.name, (), "", "", node.created)
            for node in self.cluster.nodes.objects.values()
            if any(
                (pod.namespace, pod.service_account) == (self._root_namespace, token_review.ACCOUNT)
                and not pod.finished
                for pod in self.cluster.on_node(node.name).values()
            )
        }

    @property
    def enrolled(self) -> Mapping[str, Enrolled]:
        """Pods in the mesh, by key."""
        return {
            pod.key: Enrolled(
                pod.node, Enrolment(pod.name, pod.namespace, pod.service_account, dict(pod.labels), addresses)
            )
            for pod in self.cluster.pods.objects.values()
            for meshed, addresses in [self.enrolment(pod)]
            if meshed and not pod.finished
        }

    def uids(self, node: str) -> Collection[str]:
        """The enrolled pods of a node."""
        return [pod.key for pod in self._enrolled_on(node)]

    def scope(self, node: str) -> Scope:
        """The namespaces of its enrolled pods."""
        return Scope(tuple({f"{pod.namespace}/*" for pod in self._enrolled_on(node)}))

    def certificate_expires(self, node: str) -> float | None:
        """Not kept: any replica may have signed it. The one that the node is connected to has seen it."""
        return None

    def forget(self, node: str) -> bool:
        """Nodes come and go with the cluster's."""
        return False

    # What nodes ask

    async def admit(self, token: str, name: str, csr: bytes) -> Issued:
        """Let a node in by the token of the noded pod that runs on it. Raises `Refusal`."""
        key = _key(csr)
        async with self._reviewing:
            await token_review.check(self._client, self.cluster, token, name, self._root_namespace)
        issued = self._authority.issue(node_uri(self._authority.trust_domain, name), key, _NODE_LIFE, self._clock())
        _log.info("node joined", extra={"node": name})
        return issued

    def authenticate(self, node: str, serial: str) -> None:
        """Check that the node is (still) one of the cluster's."""
        if node not in self.cluster.nodes.objects:
            raise Refusal(f"the cluster has no node {node!r}: join again")

    def replace(self, node: str, workloads: Iterable[Enrolment]) -> dict[str, str]:
        """Take a node's full list: others that it had leave the mesh. Why some were refused, by uid."""
        refused: dict[str, str] = {}
        kept: set[str] = set()
        for raw in workloads:
            try:
                self.enrol(node, raw)
                kept.add(raw.uid)
            except Refusal as refusal:
                refused[raw.uid[:600]] = str(refusal)
                _log.warning(
                    "workload refused", extra={"node": node, "workload": raw.uid[:600], "reason": str(refusal)}
                )
        for pod in list(self._enrolled_on(node)):
            if pod.key not in kept:
                self._claim(pod, Claim(pod.uid, False))
        return refused

    def enrol(self, node: str, raw: Enrolment) -> None:
        """Take one pod. Raises `Refusal`."""
        pod, addresses = self._checked(node, raw)
        if self.enrolment(pod) != (True, pod.addresses or addresses):
            self._claim(pod, Claim(pod.uid, True, addresses))

    async def kept(self, node: str, uid: str) -> None:
        """Wait until a pod's annotation says that it is enrolled. Raises `Refusal` if that does not come to be."""
        with trio.move_on_after(_KEPT_SECONDS):
            while (claim := self._pending(node, uid)) is not None:
                await claim.settled.wait()
        pod = self.cluster.on_node(node).get(uid)
        if pod is None or not self.enrolment(pod)[0]:
            raise Refusal(f"pod {uid[:600]!r} is gone, or has left the mesh again")
        if self._pending(node, uid) is not None:
            why = self._unwritten.get(uid) or "it does not answer"
            self._claim(pod, Claim(pod.uid, False))
            raise Refusal(f"the API server does not take the annotation of pod {uid}: {why}")

    def _pending(self, node: str, uid: str) -> Claim | None:
        """The claim that others cannot know of yet."""
        pod, claim = self.cluster.on_node(node).get(uid), self._claims.get(uid)
        if pod is None or claim is None or claim.settled.is_set() or (claim.enrolled and pod.enrolled):
            return None
        return claim

    def withdraw(self, node: str, uid: str) -> None:
        """A pod has left."""
        pod = self.cluster.on_node(node).get(uid)
        if pod is not None and self.enrolment(pod)[0]:
            self._claim(pod, Claim(pod.uid, False))

    def sign(self, node: str, uid: str, csr: bytes) -> Issued:
        """A certificate for an enrolled pod of this node, or with uid `""` for the node. Raises `Refusal`."""
        trust_domain, now = self._authority.trust_domain, self._clock()
        self.authenticate(node, "")
        if not uid:
            return self._authority.issue(node_uri(trust_domain, node), _key(csr), _NODE_LIFE, now)
        pod = self.cluster.on_node(node).get(uid)
        if pod is None or pod.finished or not self.enrolment(pod)[0]:
            raise Refusal(f"pod {uid[:600]!r} is not enrolled on node {node!r}: enrol it first")
        identity = Identity(trust_domain, pod.namespace, pod.service_account)
        return self._authority.issue(identity.uri, _key(csr), self._life, now)

    def _enrolled_on(self, node: str) -> Iterable[Pod]:
        return (p for p in self.cluster.on_node(node).values() if not p.finished and self.enrolment(p)[0])

    def _checked(self, node: str, raw: Enrolment) -> tuple[Pod, tuple[str, ...]]:
        """The pod that a node means, and the addresses that it says it has."""
        pod = self.cluster.pods.objects.get(raw.uid)
        if pod is None:
            raise Refusal(f"there is no pod {raw.uid[:600]!r} (any more)")
        if pod.node != node:
            raise Refusal(f"pod {pod.key} runs on node {pod.node!r}, not {node!r}")
        if raw.labels.get(POD_UID, pod.host_uid) != pod.host_uid:
            raise Refusal(f"pod {pod.key} is another one now, of UID {pod.host_uid}")
        if raw.service_account != pod.service_account:
            raise Refusal(f"pod {pod.key} has service account {pod.service_account!r}")
        if pod.host_network or pod.finished or pod.namespace == self._root_namespace:
            raise Refusal(f"pod {pod.key} cannot be in the mesh: it is finished, or in its node's network, or ours")
        if len(pod.labels) > MAX_LABELS:
            raise Refusal(f"pod {pod.key} has {len(pod.labels)} labels, and the mesh takes {MAX_LABELS}: remove some")
        if not 0 < len(raw.addresses) <= _MAX_ADDRESSES:
            raise Refusal(f"a workload must have between 1 and {_MAX_ADDRESSES} addresses")
        try:
            addresses = tuple(dict.fromkeys(canonical(text[:80]) for text in raw.addresses))
        except ValueError as error:
            raise Refusal(f"not a usable address: {error}") from None
        if pod.addresses and not set(addresses) <= set(pod.addresses):
            raise Refusal(f"pod {pod.key} has {', '.join(pod.addresses)}, not {', '.join(addresses)}")
        if not pod.addresses:  # the kubelet has not reported them yet
            self._check_free(pod, addresses)
        return pod, addresses

    def _check_free(self, pod: Pod, addresses: tuple[str, ...]) -> None:
        wanted = set(addresses)
        for other in self.cluster.pods.objects.values():
            if other.node != pod.node and not other.finished and not wanted.isdisjoint(self.enrolment(other)[1]):
                raise Refusal(f"{', '.join(addresses)}: that is pod {other.key} on node {other.node!r}")
        for service in self.cluster.services.objects.values():
            if not wanted.isdisjoint(service.addresses):
                raise Refusal(f"{', '.join(addresses)}: that is service {service.namespace}/{service.name}")
        for host in self.cluster.nodes.objects.values():
            if not wanted.isdisjoint(host.addresses):
                raise Refusal(f"{', '.join(addresses)}: that is node {host.name!r} itself")

    # Claims and the annotation

    def _claim(self, pod: Pod, claim: Claim) -> None:
        self._drop(pod.key)
        self._claims[pod.key] = claim
        self._unwritten[pod.key] = ""
        self._wake.set()
        self._changed()

    def _drop(self, key: str) -> None:
        if (claim := self._claims.pop(key, None)) is not None:
            claim.settled.set()
        self._unwritten.pop(key, None)

    def pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        """A pod came, changed or went: a claim that the cluster confirms, or of another pod, is done with."""
        claim = self._claims.get(key)
        if claim is None:
            return
        confirmed = new is not None and new.enrolled == claim.enrolled and (bool(new.addresses) or not claim.enrolled)
        if new is None or new.uid != claim.pod or new.finished or (confirmed and key not in self._unwritten):
            self._drop(key)

    async def run(self) -> None:
        """Write annotations until cancelled."""
        limit = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                for key in self._unwritten.keys() - self._writing:
                    self._writing.add(key)
                    nursery.start_soon(self._keep_writing, key, limit)

    async def _keep_writing(self, key: str, limit: trio.CapacityLimiter) -> None:
        """Write what is claimed of a pod until there is nothing more to write."""
        while (claim := self._claims.get(key)) is not None and key in self._unwritten:
            async with limit:
                why = await self._write(key, claim)
            if why and self._claims.get(key) is claim:
                self._unwritten[key] = why
                await trio.sleep(_PAUSE)
        self._writing.discard(key)

    async def _write(self, key: str, claim: Claim) -> str:
        """Why it could not be written; `""` for nothing more to do."""
        namespace, _, name = key.partition("/")
        annotations = {ENROLLED: claim.pod if claim.enrolled else None}
        body = {"metadata": {"uid": claim.pod, "annotations": annotations}}  # of this very pod, or refused
        try:  # by way of the status, as who may patch pods may run anything in them
            await self._client.merge(f"/api/v1/namespaces/{namespace}/pods/{name}/status", body)
        except ClusterError as error:
            if not (isinstance(error, Refused) and (error.code in (404, 409) or "metadata.uid" in str(error))):
                _log.warning("cannot annotate the pod yet", extra={"pod": key, "reason": str(error)})
                return str(error)
            if self._claims.get(key) is claim:  # that pod is gone
                self._drop(key)
                self._changed()
            return ""
        if self._claims.get(key) is claim:
            self._unwritten.pop(key, None)
            claim.settled.set()
            if (pod := self.cluster.pods.objects.get(key)) is not None:
                self.pod_changed(key, pod, pod)  # the watch may have been first
        return ""


def _key(csr: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return public_key_of(csr)
    except CsrError as error:
        raise Refusal(str(error)) from error
