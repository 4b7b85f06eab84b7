"""The protocol between a node and the controller: its messages, and their framing.

One TLS 1.3 connection from `noded` to the controller's port 15012. A frame is a 4-byte big-endian length, then one
msgpack message (see `mesh.codec`) of the union `FromNode` or `FromController`. A node without a certificate verifies
the controller against the root whose SHA-256 its join token carries and may send only `Join`; a node with one
(URI SAN `spiffe://<trust domain>/node/<name>`) sends `Hello` first. Everything it may ask for is bounded by what its
join token allowed.

    node                         controller
     | Hello(epoch, revision)  ->  |
     |  <-  Welcome, Update(full or since that revision)
     | Ack(revision) | Nack(revision, why)  ->  |      (a Nack leaves the node on its last good snapshot)
     | Enrol, Withdraw, Sign  ->  |                     answered by Enrolled, Signed or Refused with the same `request`
     |  <-  Assign                                      on Kubernetes: which pods of the node are to be in the mesh
     | Report  ->  |                                     every few seconds
     | LimitReports <-> LimitGrants                      while requests are made that a rate limit of the mesh is for
     | Ping <-> Pong                                     every 10 s; silence for 30 s ends the connection
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from mesh.codec import DecodeError, decode, encode
from mesh.model import EdgeReport, Enrolment, MeshConfig, PeerAuth, Policy, RequestAuth, Service, Workload
from mesh.ratelimit import share
from mesh.request_counts import RequestReport
from mesh.traffic import Route, TrafficPolicy

PROTOCOL = 1
MAX_FRAME = 64 * 1024 * 1024
MAX_FRAME_BEFORE_HELLO = 64 * 1024
PING_SECONDS, SILENCE_SECONDS = 10.0, 30.0
"""How often each side pings, and after how long without a sign of life it ends the connection."""
_LENGTH = struct.Struct(">I")
_POLICIES = frozenset(("p:", "a:", "q:"))


@dataclass(frozen=True, slots=True)
class Join:
    """A new node: its token, its name, and a CSR (PEM) for the node's own certificate.

    `token` is a join token's secret part or, on Kubernetes, the projected service-account token (a JWT) of noded's pod.
    """

    token: str
    node: str
    csr: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    """The node's certificate chain and the roots to trust (PEM). The node reconnects with them."""

    chain: bytes
    roots: bytes
    trust_domain: str


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of an authenticated node. `workloads` is its full list; the controller forgets others it had."""

    protocol: int
    software: str
    epoch: str
    revision: int
    workloads: tuple[Enrolment, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to `Hello`. `refused` maps uid to the reason why a workload that the node listed is not enrolled."""

    protocol: int
    software: str
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """What the node is to know. If `full`, it replaces everything; else it applies to revision `base` of `epoch`.

    `workloads`, `services`, `routes` and `traffic` hold those added or changed; `removed` holds `w:<uid>`,
    `s:<ns>/<name>`, `r:<kind>/<ns>/<name>` and `t:<ns>/<name>`. `policies`, `peer_auths` and `request_auths` are only
    those that the node's own workloads can need. Where `has_policies` they replace all of the node's; else they replace
    those of the same keys, and others go with `p:<ns>/<name>`, `a:<ns>/<name>` and `q:<ns>/<name>` in `removed`.
    """

    epoch: str
    revision: int
    base: int
    full: bool
    config: MeshConfig
    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    removed: tuple[str, ...] = ()
    has_policies: bool = False
    policies: tuple[Policy, ...] = ()
    peer_auths: tuple[PeerAuth, ...] = ()
    routes: tuple[Route, ...] = ()
    traffic: tuple[TrafficPolicy, ...] = ()
    request_auths: tuple[RequestAuth, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether it says anything new beside the revision and, maybe, `config`."""
        lists = (self.workloads, self.services, self.removed, self.routes, self.traffic)
        return self.full or self.has_policies or any(lists) or self.changes_policies

    @property
    def changes_policies(self) -> bool:
        """Whether it says anything of policies of any kind."""
        lists = (self.policies, self.peer_auths, self.request_auths)
        return self.has_policies or any(lists) or any(name[:2] in _POLICIES for name in self.removed)


@dataclass(frozen=True, slots=True)
class Ack:
    """The node has applied this revision, workers included."""

    revision: int


@dataclass(frozen=True, slots=True)
class Nack:
    """The node could not apply this revision and stays on the one before."""

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class Enrol:
    """The node has a new workload, or a changed one of the same uid."""

    request: int
    workload: Enrolment


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The workload is registered."""

    request: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The workload is gone from this node."""

    uid: str


@dataclass(frozen=True, slots=True)
class Sign:
    """Ask for a certificate for an enrolled workload's identity, or with uid `""` to renew the node's own."""

    request: int
    uid: str
    csr: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """Certificate chain (PEM, leaf first). Life: Unix seconds."""

    request: int
    chain: bytes
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request was not granted; asking again does not help until something changes."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class Trust:
    """The roots to trust (PEM, one or more), sent after `Welcome` and whenever they change."""

    roots: bytes


POD_UID = "nodemesh.dev/pod-uid"
"""Label that a node adds in `Enrol` to say which pod it means: a successor of the same name has another UID."""


STATIC_UID = re.compile("[0-9a-f]{32}")
"""What a node knows a static pod by: kubelet's hash of its file. Others have the UUID that the API server gave them.

The object that stands for it in the API says which hash. Whoever may create pods can make one that names another's, so
that a static pod is taken for what kubelet itself calls it, or has reported the addresses of, and for nothing else.
"""


def outside(pod: str, uid: str) -> str:
    """How `Assign.others` names a pod of UID `pod` (as its node knows it) and `uid` (`<namespace>/<name>`)."""
    return f"{pod}/{uid}" if STATIC_UID.fullmatch(pod) else pod


@dataclass(frozen=True, slots=True)
class Assignment:
    """A pod of this node that is to be in the mesh."""

    pod: str
    """The pod's own UID, as its node knows it: a successor of the same namespace and name has another."""
    name: str
    namespace: str
    service_account: str
    labels: dict[str, str]
    addresses: tuple[str, ...]
    """Empty until the pod has one."""


@dataclass(frozen=True, slots=True)
class Assign:
    """What the node is to enrol, on Kubernetes: all of it, each time it changes. Others of its pods leave the mesh.

    `namespaces` are those whose pods are in the mesh by default; where noded is away, the CNI plug-in lets no pod of
    them start. `others` names the node's pods that stay outside (see `outside`); the CNI plug-in waits for none.
    """

    pods: tuple[Assignment, ...]
    namespaces: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Counts per edge since the last report."""

    edges: tuple[EdgeReport, ...]
    requests: tuple[RequestReport, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitReports:
    """What is asked of rate limits that hold for the mesh, by limit (see `mesh.ratelimit`); answered by `LimitGrants`.

    All limits' reports that are due go in one message, a few a second while there are requests and none without.
    """

    reports: dict[str, share.Report]
    left: tuple[str, ...] = ()
    """Whoever sends this has nothing to do with these for now, its last report of each included."""


@dataclass(frozen=True, slots=True)
class LimitGrants:
    """Tokens of such limits."""

    grants: dict[str, share.Grant]


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """Yes."""


FromNode = Join | Hello | Ack | Nack | Enrol | Withdraw | Sign | Report | LimitReports | Ping | Pong
FromController = Joined | Welcome | Update | Assign | Enrolled | Signed | Refused | Trust | LimitGrants | Ping | Pong


def frame(message: object, union: object) -> bytes:
    """One message as bytes for the wire; `union` is `FromNode` or `FromController`."""
    body = encode(message, union)
    if len(body) > MAX_FRAME:
        raise ValueError(f"{type(message).__name__} of {len(body)} bytes exceeds the frame limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Cuts a byte stream into messages of `union`. Raises `DecodeError` on the first bad one; discard it then."""

    def __init__(self, union: object, limit: int = MAX_FRAME) -> None:
        self._union = union
        self.limit = limit
        """Largest frame body accepted, bytes; raise it after the peer has authenticated."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[object]:
        """Return the messages that `data` completes, in order."""
        buffer = self._buffer
        buffer += data
        messages: list[object] = []
        at = 0
        while len(buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > self.limit:
                raise DecodeError(f"frame of {length} bytes exceeds the limit of {self.limit}")
            if len(buffer) - at - 4 < length:
                break
            messages.append(decode(self._union, bytes(buffer[at + 4 : at + 4 + length])))
            at += 4 + length
        del buffer[:at]
        return messages
