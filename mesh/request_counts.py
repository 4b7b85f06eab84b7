"""How requests are counted on their way from a worker to Prometheus and to the controller."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mesh.model import EdgeKey

BOUNDS = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
)  # fmt: skip
"""Upper bounds of the histograms, ms or bytes: Envoy's for both
(https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/metrics/v3/stats.proto), which are Istio's."""
BUCKETS = len(BOUNDS) + 1


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Requests of one edge with one outcome."""

    edge: EdgeKey
    protocol: str
    """`http` or `grpc`."""
    code: int
    """0: the client left before there was an answer."""
    grpc: str = ""
    """`grpc-status`, of a gRPC request that got one."""
    route: str = ""
    """`<kind>/<namespace>/<name>` of the route that took them, as the source's node knows it."""


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What became of them since they were last reported. Each histogram is by bucket, not cumulative, or empty.

    Bytes are of bodies: `received` from the client, `sent` to it.
    """

    count: int = 0
    microseconds: int = 0
    received: int = 0
    sent: int = 0
    durations: tuple[int, ...] = ()
    received_sizes: tuple[int, ...] = ()
    sent_sizes: tuple[int, ...] = ()

    def __add__(self, other: RequestCounts) -> RequestCounts:
        return RequestCounts(
            self.count + other.count,
            self.microseconds + other.microseconds,
            self.received + other.received,
            self.sent + other.sent,
            _add(self.durations, other.durations),
            _add(self.received_sizes, other.received_sizes),
            _add(self.sent_sizes, other.sent_sizes),
        )

    def without_sizes(self) -> RequestCounts:
        """As the controller gets them."""
        return replace(self, received_sizes=(), sent_sizes=())


@dataclass(frozen=True, slots=True)
class RequestReport:
    """One key's counts."""

    key: RequestKey
    counts: RequestCounts


def bucket(value: float) -> int:
    """Where in a histogram a value is counted."""
    return bisect_left(BOUNDS, value)


def quantile(histogram: Sequence[int], share: float) -> float | None:
    """The value that this share of those counted does not exceed, as Prometheus' `histogram_quantile` estimates it.

    None if nothing was counted; the highest bound if it is above that.
    """
    total = sum(histogram)
    if not total:
        return None
    rank, below = share * total, 0
    for index, count in enumerate(histogram):
        if count and below + count >= rank:
            if index == len(BOUNDS):
                break
            low = BOUNDS[index - 1] if index else 0.0
            return low + (BOUNDS[index] - low) * (rank - below) / count
        below += count
    return float(BOUNDS[-1])


def _add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if not a or not b:
        return a or b
    return tuple(x + y for x, y in zip(a, b, strict=True))


_GRPC_FAILURES = frozenset({"", "2", "4", "12", "13", "14", "15"})


def failed(protocol: str, code: int, grpc: str) -> bool:
    """Whether such a request counts against its service: a 5xx, or a gRPC status that is a server's fault, or none.

    Which are: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/. A client that left (0) is no fault of the server.
    """
    if protocol == "grpc" and code == 200:
        return grpc in _GRPC_FAILURES
    return code >= 500
