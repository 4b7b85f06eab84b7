"""The mesh's nouns: workloads, services, policies. Frozen; built by the controller, read by the nodes.

Addresses are strings in canonical form (`str(ipaddress.ip_address(x))`, no IPv4-mapped IPv6), so that they can be
compared with what `getsockname` returns. Ports are integers in 1..65535.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.paths import Normalization

HBONE_PORT = 15008
OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
PROXY_PORTS = frozenset({OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT})

_APP_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_VERSION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """What holds for the whole mesh."""

    trust_domain: str = "cluster.local"
    cluster: str = "Kubernetes"
    root_namespace: str = "nodemesh-system"
    ranges: tuple[str, ...] = ()
    """CIDRs that belong to the mesh: an address in one that the snapshot doesn't know is held, not passed through."""
    path_normalization: Normalization = Normalization.BASE
    """The form that paths of requests are given before a rule is matched."""
    providers: tuple[ExtAuthz, ...] = ()
    """Whom CUSTOM policies ask."""


@dataclass(frozen=True, slots=True)
class ExtAuthz:
    """A service that is asked about requests: Istio's `envoyExtAuthzHttp`.

    Headers are named exactly, as `prefix*` or `*suffix`, in lower case.
    """

    name: str
    service: str
    """`<namespace>/<name>`."""
    port: int
    path_prefix: str = ""
    timeout: float = 600.0
    """Seconds."""
    fail_open: bool = False
    status_on_error: int = 403
    include_headers: tuple[str, ...] = ()
    """Of the request, told beside method, path, and host."""
    add_headers: tuple[tuple[str, str], ...] = ()
    upstream_on_allow: tuple[str, ...] = ()
    """Of its answer, put into the request."""
    downstream_on_deny: tuple[str, ...] = ()
    """Of its answer, shown to the client; all, if there are none here."""
    downstream_on_allow: tuple[str, ...] = ()
    """Of its answer, put into the workload's."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod or anything enrolled like one, in the mesh (`meshed`) or merely known to it."""

    uid: str
    """`<namespace>/<name>`."""
    name: str
    namespace: str
    service_account: str
    node: str
    addresses: tuple[str, ...]
    meshed: bool
    app: str = ""
    """Istio's canonical service name (see `Enrolment.as_workload`)."""
    version: str = ""
    """Istio's canonical revision."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service."""

    name: str
    port: int
    app_protocol: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One backend of a service: an address and, for each of the service's ports in order, the target port (0: none)."""

    address: str
    workload: str
    """uid of the workload, or `""` for an address outside the mesh."""
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """A name, virtual addresses, ports, and the endpoints behind them."""

    name: str
    namespace: str
    addresses: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    endpoints: tuple[Endpoint, ...]

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"

    @property
    def hostname(self) -> str:
        """The name that metrics and logs show."""
        return f"{self.name}.{self.namespace}.svc.cluster.local"


class Action(enum.Enum):
    """What an authorization policy does on a match."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    """Decides nothing: what matches is marked in the log."""
    CUSTOM = "CUSTOM"
    """Requests that match are asked of a provider, before anything else is decided."""


@dataclass(frozen=True, slots=True)
class Source:
    """`rules[].from[].source`: every non-empty field must match; within a field any value may.

    Strings match exactly, by prefix (`a*`), suffix (`*a`) or presence (`*`), as in Istio.
    """

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    """`<namespace>/<name>`; a bare name was completed with the policy's namespace by the controller."""
    not_service_accounts: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    """`<issuer>/<subject>` of a request's JWT."""
    not_request_principals: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()

    @property
    def http_clauses(self) -> tuple[str, ...]:
        """Names of the clauses present that need a request."""
        return tuple(name for name, values in (
            ("requestPrincipals", self.request_principals), ("notRequestPrincipals", self.not_request_principals),
            ("remoteIpBlocks", self.remote_ip_blocks), ("notRemoteIpBlocks", self.not_remote_ip_blocks),
        ) if values)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """`rules[].to[].operation`. Ports are target ports."""

    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Also with templates: `{*}` for one segment, `{**}` for any number, at the end for all that follows."""
    not_paths: tuple[str, ...] = ()

    @property
    def http_clauses(self) -> tuple[str, ...]:
        """Names of the clauses present that need a request."""
        return tuple(name for name, values in (
            ("hosts", self.hosts), ("notHosts", self.not_hosts), ("methods", self.methods),
            ("notMethods", self.not_methods), ("paths", self.paths), ("notPaths", self.not_paths),
        ) if values)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """`rules[].when[]`: `key` is one of Istio's attribute names, e.g. `source.ip`, `destination.port`."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches if any source, any operation and all conditions match; an empty tuple matches anything."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """An `AuthorizationPolicy`. With no rules it matches nothing (so ALLOW with none denies everything)."""

    name: str
    namespace: str
    action: Action
    rules: tuple[Rule, ...]
    selector: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    provider: str = ""
    """Of CUSTOM, the name of an `ExtAuthz`."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"


class MtlsMode(enum.Enum):
    """`PeerAuthentication`'s mode; UNSET inherits."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class PeerAuth:
    """A `PeerAuthentication`: a workload's (selector) beats the namespace's, which beats the root one; oldest wins."""

    name: str
    namespace: str
    mode: MtlsMode
    selector: dict[str, str] = field(default_factory=dict)
    port_modes: dict[int, MtlsMode] = field(default_factory=dict)
    """By target port; only where `selector` is not empty."""
    created: int = 0
    """Unix seconds."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class JwtRule:
    """One of `RequestAuthentication`'s `jwtRules`: whose tokens a request may carry, and where."""

    issuer: str
    jwks: str
    """The issuer's keys (`mesh.jwks.write`), or `""`: then all of its tokens are refused."""
    problem: str = ""
    """Why there are no keys, or none newer."""
    audiences: tuple[str, ...] = ()
    """Any, if there are none here."""
    from_headers: tuple[tuple[str, str], ...] = ()
    """Name and prefix. With no place given at all, `Authorization: Bearer …` and the parameter `access_token`."""
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    output_payload_to_header: str = ""
    forward_original_token: bool = False
    output_claim_to_headers: tuple[tuple[str, str], ...] = ()
    """Header, and claim (`a.b` for one within another)."""


@dataclass(frozen=True, slots=True)
class RequestAuth:
    """A `RequestAuthentication`. Adds to the others that apply to the same workload."""

    name: str
    namespace: str
    rules: tuple[JwtRule, ...]
    selector: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A workload as its node declares it."""

    name: str
    namespace: str
    service_account: str
    labels: dict[str, str]
    addresses: tuple[str, ...]

    @property
    def uid(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"

    def as_workload(self, node: str, *, meshed: bool = True) -> Workload:
        """As the whole mesh knows it. App and version are the first of their labels, else the name and `latest`."""
        return Workload(
            self.uid,
            self.name,
            self.namespace,
            self.service_account,
            node,
            self.addresses,
            meshed,
            _first(self.labels, _APP_LABELS) or self.name,
            version_of(self.labels),
        )


def version_of(labels: Mapping[str, str]) -> str:
    """The version of a workload with these labels: Istio's canonical revision."""
    return _first(labels, _VERSION_LABELS) or "latest"


def _first(labels: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return next((labels[key] for key in keys if labels.get(key)), "")


@dataclass(frozen=True, slots=True)
class Party:
    """One side of an edge, as metrics and telemetry name it; fields are `""` or `"unknown"` where not known."""

    workload: str
    namespace: str
    principal: str
    app: str
    version: str


@dataclass(frozen=True, slots=True)
class EdgeKey:
    """Who talked to whom, seen by whom. One time series of the `istio_tcp_*` metrics."""

    reporter: str
    """`source` or `destination`."""
    source: Party
    destination: Party
    service: str
    """Destination service's host name, or `""`."""
    security: str
    """`mutual_tls` or `none`."""
    flags: str
    """Envoy response flags (`-`, `UF`, `UH`, `NR`, `RBAC`, …)."""


@dataclass(frozen=True, slots=True)
class EdgeCounts:
    """What happened on an edge since it was last reported. Bytes: `received` from the client, `sent` to it."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    denied: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """One edge's counts."""

    key: EdgeKey
    counts: EdgeCounts
