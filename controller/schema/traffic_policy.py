"""`TrafficPolicy` (nodemesh.dev/v1alpha1): what Gateway API lacks, for one Service of the policy's namespace."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from controller.schema.matches import HeaderMatch, HeaderName, HttpMatch, Method, between, once, text
from controller.schema.names import Label, LabelValue, Subdomain
from controller.schema.quantities import Duration, Percentage, Time, seconds, share
from controller.schema.strict import Strict, wrong

_COUNT = 2**31 - 1
_Count = Annotated[int, AfterValidator(between(1, _COUNT, "in range"))]
_OrNone = Annotated[int, AfterValidator(between(0, _COUNT, "in range"))]
_ErrorStatus = Annotated[int, AfterValidator(between(400, 599, "an error's status"))]
_Weight = Annotated[int, AfterValidator(between(0, 1_000_000, "a weight"))]
_MOST_VERSIONS = 16
_HASHING = ("RingHash", "Maglev")


class Target(Strict):
    """The Service that a policy is for."""

    group: Literal[""] | None = None
    """`""`, the core group."""
    kind: Literal["Service"] | None = None
    """`Service`."""
    name: Subdomain
    """Of a Service of the policy's own namespace."""


class HashCookie(Strict):
    """A cookie whose value is hashed."""

    name: Annotated[str, AfterValidator(text(256))]
    """Of the cookie; set in answers to requests that have none."""
    ttl: Time | None = None
    """Its life; a session cookie where it is left out."""


class HashOn(Strict):
    """What is hashed: the first of these that a request has, else the client's address."""

    header: HeaderName | None = None
    """The value of this request header."""
    cookie: HashCookie | None = None
    """The value of this cookie."""


class LoadBalancing(Strict):
    """How an endpoint is chosen."""

    policy: Literal["RoundRobin", "LeastRequest", "PeakEwma", "Random", "RingHash", "Maglev"] | None = None
    """LeastRequest where it is left out."""
    hash_on: HashOn | None = None
    """For RingHash and Maglev; the client's address where it is left out."""
    slow_start: Time | None = None
    """A new endpoint's share grows to its full one in this time."""
    prefer_local: bool | None = None
    """Endpoints on the client's node, while any is healthy."""

    @model_validator(mode="after")
    def _whole(self) -> LoadBalancing:
        if self.hash_on is not None and self.policy not in _HASHING:
            raise wrong(f"{self.policy or 'LeastRequest'} hashes nothing", "use RingHash or Maglev, or remove hashOn")
        return self


class CircuitBreaker(Strict):
    """Most at a time from one node; over it 503, with response flag UO. What is left out has no bound."""

    max_connections: _Count | None = None
    """Connections to the Service."""
    max_requests: _Count | None = None
    """Requests under way."""
    max_pending: _Count | None = None
    """Requests that wait for one of `maxConnections` to be free."""
    max_requests_per_connection: _Count | None = None
    """Then a connection is closed."""


def _deviations(number: float) -> float:
    if not 0.1 <= number <= 100:
        raise wrong(f"{number} is not a number of deviations", "use a number from 0.1 to 100, such as 1.9")
    return number


class SuccessRate(Strict):
    """Ejects endpoints that fail more than the others."""

    deviations: Annotated[float, AfterValidator(_deviations)]
    """How many standard deviations below the mean success rate."""
    min_requests: _Count | None = None
    """In an interval, for an endpoint to be judged; 100 where it is left out."""
    min_endpoints: _Count | None = None
    """With so many requests, for any to be judged; 5 where it is left out."""


class OutlierDetection(Strict):
    """Takes endpoints that fail out of the choice for a while."""

    consecutive_errors: _OrNone | None = None
    """5xx, resets and failed connections in a row; 0 is never; 5 where it is left out."""
    interval: Time | None = None
    """Between looks at success rates and returns; 10s where it is left out."""
    base_ejection: Time | None = None
    """How long, times how often it has been ejected; 30s where it is left out."""
    max_ejection: Time | None = None
    """How long at most; 300s where it is left out."""
    max_percent: Percentage = None
    """Of the endpoints, how many at most, but always one; 10% where it is left out."""
    success_rate: SuccessRate | None = None
    """Left out, success rates are not judged."""

    @model_validator(mode="after")
    def _whole(self) -> OutlierDetection:
        if seconds(self.max_ejection, 300) < seconds(self.base_ejection, 30):
            raise wrong("maxEjection is shorter than baseEjection", "make it at least as long (300s if left out)")
        return self


class RetryBudget(Strict):
    """Keeps retries from becoming a storm."""

    percent: Percentage = None
    """Retries may be this part of the requests; 20% where it is left out."""
    min_per_second: _OrNone | None = None
    """So many are always allowed; 10 where it is left out."""
    ttl: Time | None = None
    """Over how long requests are counted; 10s where it is left out."""


class Retries(Strict):
    """When to try again; for requests whose route rule says nothing of its own."""

    attempts: Annotated[int, AfterValidator(between(0, 100, "a number of retries"))] | None = None
    """Beyond the first; 2 where it is left out."""
    codes: Annotated[list[_ErrorStatus], Field(max_length=64)] | None = None
    """Upon these statuses; 503 where they are left out."""
    per_try_timeout: Duration | None = None
    """For each try."""
    backoff: Time | None = None
    """Before the first; it doubles, with jitter; 25ms where it is left out."""
    max_backoff: Time | None = None
    """Never longer; ten times backoff where it is left out."""
    methods: Annotated[list[Method], Field(max_length=9)] | None = None
    """Those that may be repeated; the idempotent ones where they are left out."""

    @model_validator(mode="after")
    def _whole(self) -> Retries:
        if self.max_backoff and seconds(self.max_backoff) < seconds(self.backoff, 0.025):
            raise wrong("maxBackoff is shorter than backoff", "make it at least as long")
        return self


class Delay(Strict):
    """Holds requests up, and connections that are not HTTP."""

    duration: Time
    """For how long."""
    percent: Percentage = None
    """Of them; all where it is left out."""


class Abort(Strict):
    """Answers requests with an error."""

    status: Annotated[int, AfterValidator(between(200, 599, "a status"))] | None = None
    """HTTP's; where it is left out, what grpcStatus stands for."""
    grpc_status: Annotated[int, AfterValidator(between(1, 16, "a status of gRPC that is an error"))] | None = None
    """For gRPC clients; where it is left out, what status stands for."""
    percent: Percentage = None
    """Of the requests; all where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> Abort:
        if self.status is None and self.grpc_status is None:
            raise wrong("an abort without a status", "add 'status' or 'grpcStatus'")
        return self


class Reset(Strict):
    """Resets connections that are not HTTP."""

    percent: Percentage = None
    """Of the connections; all where it is left out."""


class Bandwidth(Strict):
    """Slows down connections that are not HTTP."""

    bytes_per_second: _Count
    """For each direction of each connection."""
    percent: Percentage = None
    """Of the connections; all where it is left out."""


class Fault(Strict):
    """Faults to be injected, to see how clients take them."""

    delay: Delay | None = None
    """Hold up."""
    abort: Abort | None = None
    """Answer with an error."""
    reset: Reset | None = None
    """Reset connections that are not HTTP."""
    bandwidth: Bandwidth | None = None
    """Slow down connections that are not HTTP."""
    headers: Annotated[list[HeaderMatch], Field(max_length=16)] | None = None
    """Only requests with all of these headers; then no connections that are not HTTP."""

    @model_validator(mode="after")
    def _whole(self) -> Fault:
        if self.delay is None and self.abort is None and self.reset is None and self.bandwidth is None:
            raise wrong("a fault that does nothing", "add 'delay', 'abort', 'reset' or 'bandwidth'")
        if self.headers and (self.reset or self.bandwidth):
            raise wrong(
                "headers are of requests", "remove 'headers', or 'reset' and 'bandwidth', which are not for HTTP"
            )
        once((header.name.lower() for header in self.headers or ()), "header")
        return self


class RateLimit(Strict):
    """So many requests in a time; over it 429, with response flag RL."""

    name: Label
    """For logs and metrics; once in a policy."""
    requests: _Count
    """How many."""
    per: Time | None = None
    """In how long; 1s where it is left out."""
    burst: _Count | None = None
    """How many at once; as many as requests where it is left out."""
    scope: Literal["Node", "Mesh"] | None = None
    """One bucket a node, or one for the Service across all nodes; Node where it is left out."""
    by_header: HeaderName | None = None
    """A bucket for each value of this request header; with scope Node only."""
    matches: Annotated[list[HttpMatch], Field(max_length=16)] | None = None
    """Only requests that any of these match."""

    @model_validator(mode="after")
    def _whole(self) -> RateLimit:
        if self.by_header and self.scope == "Mesh":
            raise wrong("nodes do not share a bucket for each value of a header", "use scope Node, or remove byHeader")
        return self


def _versions(weights: dict[str, int]) -> dict[str, int]:
    if "" in weights:
        raise wrong("a version without a name", "that of a workload without a label for it is latest")
    if len(weights) > _MOST_VERSIONS:
        raise wrong(f"{len(weights)} versions", f"at most {_MOST_VERSIONS}")
    if not any(weights.values()):
        raise wrong("no version has a weight", "give one more than 0, or remove 'versions' to have no split")
    return weights


class TrafficPolicySpec(Strict):
    """How requests to a Service are balanced, bounded, retried, limited and disturbed. Of several the oldest holds."""

    target_ref: Target
    """The Service that it is for."""
    versions: Annotated[dict[LabelValue, _Weight], AfterValidator(_versions)] | None = None
    """Weights by the version of workloads, which their labels say; other versions get nothing. Left out, all alike."""
    load_balancing: LoadBalancing | None = None
    """How an endpoint is chosen."""
    circuit_breaker: CircuitBreaker | None = None
    """Most at a time."""
    outlier_detection: OutlierDetection | None = None
    """Endpoints that fail are left out for a while."""
    retries: Retries | None = None
    """When to try again."""
    retry_budget: RetryBudget | None = None
    """How many retries at most."""
    timeout: Duration | None = None
    """For an exchange, tries included, where its route rule has none."""
    fault: Fault | None = None
    """Faults to be injected."""
    rate_limits: Annotated[list[RateLimit], Field(max_length=16)] | None = None
    """All of these."""

    @model_validator(mode="after")
    def _whole(self) -> TrafficPolicySpec:
        once((limit.name for limit in self.rate_limits or ()), "rate limit")
        budget = self.retry_budget
        if budget is not None and share(budget.percent, 1) == 0 and budget.min_per_second == 0:
            raise wrong("a retry budget of nothing", "set retries.attempts to 0 to have none")
        return self
