"""Who may be in the mesh: nodes by join token, workloads by their node, certificates only for those.

The rules, all checked here and nowhere else:
- A token is good until it expires or its uses are spent. It fixes what the node may enrol while the node exists.
- A name that has already joined can be taken again only with a token made for that node, or with the token it came
  with while it is not connected (a host that lost its keys with a reboot). Its earlier credentials end then.
- A node authenticates with a certificate whose serial is stored; forgetting the node deletes those.
- A workload is enrolled by one node at a time, within the node's scope, at addresses of the mesh that nothing else has.
- A certificate is signed for a workload enrolled on the asking node, or for the node itself.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from controller.ca import Authority, CsrError, Issued, key_hash, public_key_of
from controller.schema.names import canonical
from controller.store import Credential, Node, Store
from controller.tokens import Scope, hash_of
from mesh.identity import Identity, IdentityError, controller_identity, node_uri
from mesh.model import Enrolment
from mesh.names import is_label, is_subdomain

_log = logging.getLogger(__name__)
_NODE_LIFE = timedelta(days=7)
_MAX_WORKLOADS = 10_000
_MAX_ADDRESSES = 16
_MAX_LABELS = 64


class Refusal(Exception):
    """A node asked for what it may not have; the message goes to the node and into the log."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A workload and the node that enrolled it."""

    node: str
    workload: Enrolment


class Enroller:
    """The register of nodes and their workloads, kept in the store and mirrored in memory."""

    node_life = _NODE_LIFE

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        ranges: Iterable[str],
        service_ranges: Iterable[str],
        workload_life: timedelta,
        clock: Callable[[], float],
        connected: Callable[[str], bool],
        changed: Callable[[], None],
    ) -> None:
        self._store, self._authority = store, authority
        self._ranges = [ipaddress.ip_network(cidr) for cidr in ranges]
        self._service_ranges = [ipaddress.ip_network(cidr) for cidr in service_ranges]
        self._life, self._clock, self._connected, self._changed = workload_life, clock, connected, changed
        self.nodes = store.nodes()
        self.enrolled = {uid: Enrolled(node, workload) for uid, (node, workload) in store.enrolments().items()}
        """By uid."""
        self._by_address = {a: uid for uid, entry in self.enrolled.items() for a in entry.workload.addresses}
        self._by_node: dict[str, set[str]] = {name: set() for name in self.nodes}
        for uid, entry in self.enrolled.items():
            self._by_node[entry.node].add(uid)

    def uids(self, node: str) -> Collection[str]:
        """The workloads of a node."""
        return self._by_node.get(node, ())

    def scope(self, node: str) -> Scope:
        """What a node may enrol; nothing if it is not known."""
        known = self.nodes.get(node)
        return Scope(known.allow if known else ())

    async def admit(self, token: str, name: str, csr: bytes) -> Issued:
        """As `join`."""
        return self.join(token, name, csr)

    def join(self, secret: str, name: str, csr: bytes) -> Issued:
        """Let a node in by its token: its certificate. Raises `Refusal`."""
        now = self._clock()
        token = self._store.token_by_hash(hash_of(secret))
        if token is None:
            raise Refusal("the join token is not known: make one with 'meshctl token create'")
        if token.expires <= now:
            raise Refusal(f"join token {token.id} has expired: make a new one with 'meshctl token create'")
        if not is_subdomain(name):
            raise Refusal(f"node name {name[:80]!r} is not a lower-case DNS name: correct 'node' in noded.yaml")
        if token.node not in ("", name):
            raise Refusal(f"join token {token.id} is for node {token.node!r}, not {name!r}")
        key = _key(csr)
        digest = key_hash(key)
        known = self.nodes.get(name)
        # An answer that was lost on its way must not cost a use: same token, same name, same key is the same join.
        again = known is not None and (known.token_id, known.key_hash) == (token.id, digest)
        if token.uses_left == 0 and not again:
            raise Refusal(f"join token {token.id} has been used up: make a new one with 'meshctl token create'")
        if known is not None and not again and token.node != name:
            if known.token_id != token.id:
                raise Refusal(
                    f"a node {name!r} has joined before: 'meshctl node forget {name}' first, or make a token"
                    f" with '--node {name}'"
                )
            if self._connected(name):
                raise Refusal(f"a node {name!r} is connected: give this one another name in noded.yaml")
        issued = self._authority.issue(node_uri(self._authority.trust_domain, name), key, _NODE_LIFE, now)
        node = Node(name, token.allow, token.id, digest, now)
        self._store.admit_node(node, Credential(issued.serial, name, issued.not_after), consume=not again)
        self.nodes[name] = node
        self._by_node.setdefault(name, set())
        _log.info("node joined", extra={"node": name, "token": token.id, "allow": list(token.allow)})
        return issued

    def authenticate(self, node: str, serial: str) -> None:
        """Check that a node's verified certificate is one it may use; raise `Refusal`."""
        now = self._clock()
        if not any(c.serial == serial and c.expires > now for c in self._store.credentials(node)):
            raise Refusal(f"the credential of node {node!r} is not valid here (forgotten or replaced): join again")

    def certificate_expires(self, node: str) -> float | None:
        """When the newest credential of a node ends, Unix seconds."""
        return max((c.expires for c in self._store.credentials(node)), default=None)

    def forget(self, node: str) -> bool:
        """Remove a node, its credentials and its workloads; False if there is none."""
        found = self._store.forget_node(node)
        self.nodes.pop(node, None)
        for uid in self._by_node.pop(node, set()):
            self._drop(uid)
        if found:
            _log.info("node forgotten", extra={"node": node})
            self._changed()
        return found

    def replace(self, node: str, workloads: Iterable[Enrolment]) -> dict[str, str]:
        """Take a node's full list: others that it had are forgotten. Return why some were refused, by uid.

        Raises `Refusal` if the node is not known.
        """
        own = self._own(node)
        refused: dict[str, str] = {}
        wanted: dict[str, Enrolment] = {}
        taken: dict[str, str] = {}
        for raw in workloads:
            try:
                workload = self._checked(node, raw, len(wanted))
                for address in workload.addresses:
                    if (other := taken.get(address, raw.uid)) != raw.uid:
                        raise Refusal(f"address {address} is that of {other}")
            except Refusal as refusal:
                refused[raw.uid[:600]] = str(refusal)
                continue
            wanted[workload.uid] = workload
            taken |= dict.fromkeys(workload.addresses, workload.uid)
        gone = [uid for uid in own if uid not in wanted]
        new = [w for w in wanted.values() if (e := self.enrolled.get(w.uid)) is None or e.workload != w]
        if gone or new:
            self._store.write_enrolments(node, new, gone)
            for uid in (*gone, *(w.uid for w in new)):
                self._drop(uid)
            own -= set(gone)
            for workload in new:
                self._add(node, workload)
            self._changed()
        for uid, reason in refused.items():
            _log.warning("workload refused", extra={"node": node, "workload": uid, "reason": reason})
        return refused

    def enrol(self, node: str, raw: Enrolment) -> None:
        """Take one workload, new or changed. Raises `Refusal`."""
        workload = self._checked(node, raw, len(self._own(node) - {raw.uid}))
        for address in workload.addresses:
            if (other := self._by_address.get(address, workload.uid)) != workload.uid:
                raise Refusal(f"address {address} is that of {other}: remove that one first")
        known = self.enrolled.get(workload.uid)
        if known is not None and known.workload == workload:
            return
        self._store.write_enrolments(node, [workload], [])
        self._drop(workload.uid)
        self._add(node, workload)
        self._changed()

    async def kept(self, node: str, uid: str) -> None:
        """Kept in the store already."""

    def withdraw(self, node: str, uid: str) -> None:
        """A workload has left; one that the node doesn't have is not an error (it may ask twice)."""
        if uid in self.uids(node):
            self._store.write_enrolments(node, [], [uid])
            self._own(node).discard(uid)
            self._drop(uid)
            self._changed()

    def sign(self, node: str, uid: str, csr: bytes) -> Issued:
        """A certificate for an enrolled workload of this node, or with uid `""` for the node. Raises `Refusal`."""
        now = self._clock()
        self._own(node)
        if not uid:
            issued = self._authority.issue(node_uri(self._authority.trust_domain, node), _key(csr), _NODE_LIFE, now)
            self._store.add_credential(Credential(issued.serial, node, issued.not_after), now)
            return issued
        entry = self.enrolled.get(uid)
        if entry is None or entry.node != node:
            raise Refusal(f"workload {uid[:600]!r} is not enrolled on node {node!r}: enrol it first")
        workload = entry.workload
        if not self.scope(node).allows(workload.namespace, workload.service_account):  # the scope may have shrunk
            raise self._out_of_scope(node, workload)
        identity = Identity(self._authority.trust_domain, workload.namespace, workload.service_account)
        return self._authority.issue(identity.uri, _key(csr), self._life, now)

    def _own(self, node: str) -> set[str]:
        """Its workloads' uids. A node may be forgotten while something that it has asked is on the way."""
        if node not in self.nodes:
            raise Refusal(f"node {node!r} is not known (any more): join again")
        return self._by_node[node]

    def _checked(self, node: str, raw: Enrolment, others: int) -> Enrolment:
        """The enrolment in canonical form, if the node may have it next to `others` of its own."""
        if others >= _MAX_WORKLOADS:
            raise Refusal(f"node {node!r} has {_MAX_WORKLOADS} workloads, the most one node may have")
        if not (is_subdomain(raw.name) and is_label(raw.namespace) and is_subdomain(raw.service_account)):
            raise Refusal("name, namespace and service account must be lower-case DNS names")
        try:
            identity = Identity(self._authority.trust_domain, raw.namespace, raw.service_account)
        except IdentityError as error:
            raise Refusal(str(error)) from error
        if identity == controller_identity(identity.trust_domain):
            raise Refusal(f"{identity.principal} is the controller's own identity: use another service account")
        if len(raw.labels) > _MAX_LABELS or any(len(k) > 317 or len(v) > 63 for k, v in raw.labels.items()):
            raise Refusal(f"more than {_MAX_LABELS} labels, or one longer than 317 (key) or 63 (value) characters")
        if not self.scope(node).allows(raw.namespace, raw.service_account):
            raise self._out_of_scope(node, raw)
        known = self.enrolled.get(raw.uid)
        if known is not None and known.node != node:
            raise Refusal(
                f"{raw.uid} is enrolled on node {known.node!r}: 'nodectl remove' it there, or forget that node"
            )
        workload = replace(raw, addresses=self._addresses(raw.addresses))
        for address in workload.addresses:
            other = self._by_address.get(address)
            if other is not None and self.enrolled[other].node != node:
                raise Refusal(f"address {address} is that of {other} on node {self.enrolled[other].node!r}")
        return workload

    def _addresses(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not 0 < len(texts) <= _MAX_ADDRESSES:
            raise Refusal(f"a workload must have between 1 and {_MAX_ADDRESSES} addresses")
        found = []
        for text in texts:
            try:
                address = ipaddress.ip_address(canonical(text[:80]))
            except ValueError as error:
                raise Refusal(f"not a usable address: {error}") from None
            # A node that could claim any address could draw the mesh's traffic for it to itself.
            if self._ranges and not any(address in network for network in self._ranges):
                raise Refusal(
                    f"{address} is outside the mesh's ranges: add its range to 'meshRanges' in controller.yaml"
                )
            if any(address in network for network in self._service_ranges):
                raise Refusal(f"{address} is in the range of service addresses")
            found.append(str(address))
        return tuple(dict.fromkeys(found))

    def _out_of_scope(self, node: str, workload: Enrolment) -> Refusal:
        return Refusal(
            f"node {node!r} may not enrol {workload.namespace}/{workload.service_account}; its join token allows only"
            f" {self.scope(node)}"
        )

    def _add(self, node: str, workload: Enrolment) -> None:
        self.enrolled[workload.uid] = Enrolled(node, workload)
        self._by_node[node].add(workload.uid)
        self._by_address |= dict.fromkeys(workload.addresses, workload.uid)

    def _drop(self, uid: str) -> None:
        if (entry := self.enrolled.pop(uid, None)) is not None:
            for address in entry.workload.addresses:
                if self._by_address.get(address) == uid:
                    del self._by_address[address]


def _key(csr: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return public_key_of(csr)
    except CsrError as error:
        raise Refusal(str(error)) from error
