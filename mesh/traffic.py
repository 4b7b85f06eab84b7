"""How requests are routed and shaped: Gateway API routes and `TrafficPolicy`, in the mesh's own words.

Frozen; built by the controller (which resolves references and checks grants), read by the nodes. A Service is the
parent of a route (GAMMA, https://gateway-api.sigs.k8s.io/mesh/): a route in the service's own namespace holds for all
clients, one of another namespace for that namespace's clients only. Durations are seconds, percentages parts of 10,000.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Compare(enum.Enum):
    """How a value is matched. PREFIX is by whole path elements, as Gateway API has it, and for paths only."""

    EXACT = "Exact"
    PREFIX = "PathPrefix"
    REGEX = "RegularExpression"


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """A header (name in lower case) or query parameter (name as it is) whose value matches."""

    name: str
    value: str
    compare: Compare = Compare.EXACT


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """All that is stated must match. A gRPC method is a path: `/service/method`, or one half of it as a REGEX."""

    path: str = "/"
    compare: Compare = Compare.PREFIX
    method: str = ""
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """What `RequestHeaderModifier` and `ResponseHeaderModifier` do: names in lower case; remove, then set, then add."""

    set: tuple[tuple[str, ...], ...] = ()
    """Pairs of name and value."""
    add: tuple[tuple[str, ...], ...] = ()
    remove: tuple[str, ...] = ()


class PathEdit(enum.Enum):
    """What becomes of the path."""

    KEEP = ""
    FULL = "ReplaceFullPath"
    PREFIX = "ReplacePrefixMatch"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answer with a redirect; what is empty or 0 stays as in the request."""

    scheme: str = ""
    hostname: str = ""
    port: int = 0
    status: int = 302
    path_edit: PathEdit = PathEdit.KEEP
    path: str = ""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Change authority or path before the request goes to its backend."""

    hostname: str = ""
    path_edit: PathEdit = PathEdit.KEEP
    path: str = ""


@dataclass(frozen=True, slots=True)
class Cors:
    """Answer preflights, and add the headers to answers (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

    allow_origins: tuple[str, ...] = ()
    """Exact, `*`, or with one `*` for the left-most labels of the host."""
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age: int = 5


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a share of the requests goes. With `invalid` its share is answered with 500, as Gateway API demands."""

    service: str
    """`<namespace>/<name>`."""
    port: int
    weight: int = 1
    request_headers: HeaderEdit | None = None
    response_headers: HeaderEdit | None = None
    invalid: str = ""
    """Why it cannot be used: the reason of the route's `ResolvedRefs` condition."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Send a copy of a share of the requests; what it answers is dropped."""

    backend: Backend
    share: int = 10_000


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` after the first, on these statuses (and on connect failures and resets before any answer)."""

    attempts: int
    codes: tuple[int, ...] = ()
    backoff: float = 0.025


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One rule: what it matches, and what becomes of a request that it takes."""

    matches: tuple[RouteMatch, ...] = (RouteMatch(),)
    backends: tuple[Backend, ...] = ()
    name: str = ""
    request_headers: HeaderEdit | None = None
    response_headers: HeaderEdit | None = None
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    timeout: float = 0.0
    """For the whole exchange; 0: as the service's policy says; negative: none, whatever that says."""
    backend_timeout: float = 0.0
    """For each try, likewise."""
    retry: Retry | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """A service (`<namespace>/<name>`) that a route is attached to, at one of its ports or (0) at all."""

    service: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """An HTTPRoute or GRPCRoute."""

    kind: str
    name: str
    namespace: str
    parents: tuple[Parent, ...]
    rules: tuple[RouteRule, ...]
    created: int = 0
    """Unix seconds: of two that match equally well, the older wins, then the smaller `<namespace>/<name>`."""

    @property
    def key(self) -> str:
        """`<kind>/<namespace>/<name>`."""
        return f"{self.kind}/{self.namespace}/{self.name}"


class Balance(enum.Enum):
    """How an endpoint is chosen."""

    ROUND_ROBIN = "RoundRobin"
    LEAST_REQUEST = "LeastRequest"
    EWMA = "PeakEwma"
    RANDOM = "Random"
    RING_HASH = "RingHash"
    MAGLEV = "Maglev"


@dataclass(frozen=True, slots=True)
class HashOn:
    """What RING_HASH and MAGLEV hash: the first that the request has, else the client's address."""

    header: str = ""
    cookie: str = ""
    cookie_ttl: float = 0.0
    """With a cookie's name: the proxy sets it where the request has none (0: a session cookie)."""


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    """`spec.loadBalancing`."""

    policy: Balance = Balance.LEAST_REQUEST
    hash_on: HashOn | None = None
    slow_start: float = 0.0
    """A new endpoint's share grows to its full one in these seconds."""
    prefer_local: bool = False
    """Endpoints on the client's node, while any is healthy."""


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """`spec.circuitBreaker`: most at a time from one node to the service (0: no bound); over it, 503 with flag UO."""

    max_connections: int = 0
    max_requests: int = 0
    max_pending: int = 0
    max_requests_per_connection: int = 0


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """`spec.outlierDetection`, after Envoy's (0: that detector is off)."""

    consecutive_errors: int = 5
    """5xx, resets and connect failures in a row."""
    interval: float = 10.0
    base_ejection: float = 30.0
    max_ejection: float = 300.0
    max_percent: int = 1_000
    """Most of the endpoints that may be ejected, parts of 10,000; one always may."""
    success_rate_deviations: float = 0.0
    """Eject what is this many standard deviations below the mean success rate, of those with enough requests."""
    success_rate_requests: int = 100
    success_rate_hosts: int = 5


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """`spec.retryBudget`: retries within `ttl` may be at most `ratio` of the requests, and always `min_per_second`."""

    ratio: int = 2_000
    min_per_second: int = 10
    ttl: float = 10.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`spec.retries`: for requests whose route rule says nothing of its own."""

    attempts: int = 2
    codes: tuple[int, ...] = (503,)
    per_try_timeout: float = 0.0
    backoff: float = 0.025
    max_backoff: float = 0.25
    methods: tuple[str, ...] = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")
    """Idempotent ones by RFC 9110 section 9.2.2; others are retried only where the backend never saw the request."""
    least_backoff: float = 0.0
    """What a route's rule demands: Gateway API's back-off is a minimum."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`spec.fault`: for the share of requests that match, and of connections that are not HTTP unless `headers`."""

    delay: float = 0.0
    delay_share: int = 0
    abort: int = 0
    """HTTP status; what that stands for in gRPC, unless `grpc_status`. Of requests only."""
    abort_share: int = 0
    headers: tuple[ValueMatch, ...] = ()
    grpc_status: int = -1
    """For gRPC requests; -1: what `abort` stands for."""
    reset_share: int = 0
    """Of connections that are not HTTP."""
    bandwidth: int = 0
    """Bytes a second for each direction of a connection that is not HTTP; 0: no bound."""
    bandwidth_share: int = 0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`spec.rateLimits[]`: `requests` per `seconds`, with bursts up to `burst`; over it, 429 with flag RL."""

    name: str
    requests: int
    seconds: float = 1.0
    burst: int = 0
    """0: as many as `requests`."""
    shared: bool = False
    """One bucket for the service across all nodes; else one a node."""
    by_header: str = ""
    """A bucket for each value of this request header."""
    matches: tuple[RouteMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """Ours: what Gateway API lacks, for one service. Of several for one service the oldest holds, then by key."""

    name: str
    namespace: str
    service: str
    """`<namespace>/<name>`; always of the policy's own namespace."""
    created: int = 0
    load_balancing: LoadBalancing | None = None
    circuit_breaker: CircuitBreaker | None = None
    outlier_detection: OutlierDetection | None = None
    retry_budget: RetryBudget | None = None
    retries: RetryPolicy | None = None
    timeout: float = 0.0
    fault: Fault | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    versions: dict[str, int] = field(default_factory=dict)
    """`spec.versions`: weights by `Workload.version`; endpoints of others get nothing. Empty: all endpoints alike."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"
