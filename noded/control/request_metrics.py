"""Istio's metrics of requests in the exposition format, series by series: there may be many, of three histograms each.

Source of names and labels: https://istio.io/latest/docs/reference/config/metrics/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from mesh.request_counts import BOUNDS, RequestKey
from noded.control import parties
from noded.control.request_telemetry import RequestTelemetry

_LE = [*(f"{bound:g}" if bound < 1e6 else str(int(bound)) for bound in BOUNDS), "+Inf"]


def text(telemetry: RequestTelemetry, cluster: str) -> Iterator[bytes]:
    """All families, in pieces. `cluster`: the mesh's."""
    series = [(_labels(key, cluster), counts) for key, counts in telemetry.sums()]
    yield _head("istio_requests_total", "counter", "Requests.")
    for labels, counts in series:
        yield f"istio_requests_total{{{labels}}} {counts.count}\n".encode()
    yield _head("istio_request_duration_milliseconds", "histogram", "From a request's head to its end.")
    for labels, counts in series:
        yield _histogram("istio_request_duration_milliseconds", labels, counts.durations, counts.microseconds / 1000)
    yield _head("istio_request_bytes", "histogram", "Sizes of requests' bodies.")
    for labels, counts in series:
        yield _histogram("istio_request_bytes", labels, counts.received_sizes, counts.received)
    yield _head("istio_response_bytes", "histogram", "Sizes of responses' bodies.")
    for labels, counts in series:
        yield _histogram("istio_response_bytes", labels, counts.sent_sizes, counts.sent)
    yield _head("nodemesh_telemetry_evicted_requests_total", "counter", "Series of requests that were dropped.")
    yield f"nodemesh_telemetry_evicted_requests_total {telemetry.evicted}\n".encode()
    yield _head(
        "nodemesh_telemetry_unreported_requests_total",
        "counter",
        "Series whose counts the controller never got.",
    )
    yield f"nodemesh_telemetry_unreported_requests_total {telemetry.unreported}\n".encode()


def _head(name: str, kind: str, documentation: str) -> bytes:
    return f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n".encode()


def _histogram(name: str, labels: str, buckets: Sequence[int], total: float) -> bytes:
    lines = [
        f'{name}_bucket{{{labels},le="{le}"}} {count}\n' for le, count in zip(_LE, accumulate(buckets), strict=True)
    ]
    return f"{''.join(lines)}{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {sum(buckets)}\n".encode()


def _labels(key: RequestKey, cluster: str) -> str:
    pairs = dict(zip(parties.LABELS, parties.values(key.edge, cluster), strict=True))
    pairs["request_protocol"] = key.protocol
    pairs["response_code"] = str(key.code)
    if key.protocol == "grpc":
        pairs["grpc_response_status"] = key.grpc
    pairs["response_flags"] = key.edge.flags
    pairs["connection_security_policy"] = key.edge.security
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
