"""Prometheus metrics: Istio's names and labels for TCP, so that its dashboards work, and `nodemesh_*` for what is ours.

Source of the names: https://istio.io/latest/docs/reference/config/metrics/.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.model import EdgeKey
from noded.control import parties, request_metrics
from noded.control.telemetry import GAUGES, Telemetry

LABELS = [*parties.LABELS, "request_protocol", "response_flags", "connection_security_policy"]
_TCP = (
    ("connections_opened", "opened", "Connections opened."),
    ("connections_closed", "closed", "Connections closed."),
    ("connections_failed", "failed", "Connections that could not be made or were not allowed."),
    ("sent_bytes", "sent", "Bytes sent to the client."),
    ("received_bytes", "received", "Bytes received from the client."),
)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the daemon says of itself at one moment."""

    version: str
    node: str
    cluster: str
    """The mesh's."""
    workloads: dict[str, int]
    """By state."""
    revision: int
    snapshot_at: float
    """Unix seconds when the snapshot in force was applied; 0: none yet."""
    connected: bool
    restarts: dict[int, int]
    """By worker."""
    certificates: dict[str, float]
    """By uid (`""`: the node): when it expires, Unix seconds."""


class MeshCollector(Collector):
    """Everything that `GET /metrics` shows."""

    def __init__(self, telemetry: Telemetry, gauges: Gauges) -> None:
        self._telemetry, self._gauges = telemetry, gauges

    def collect(self) -> Iterator[Metric]:
        """Families in a fixed order."""
        yield from self._tcp()
        yield from self._own()
        yield from self._totals()

    def _tcp(self) -> Iterator[Metric]:
        edges = [(labels(key, self._gauges.cluster), counts) for key, counts in self._telemetry.edges()]
        for name, field, text in _TCP:
            family = CounterMetricFamily(f"istio_tcp_{name}", text, labels=LABELS)
            for values, counts in edges:
                family.add_metric(values, getattr(counts, field))
            yield family

    def _own(self) -> Iterator[Metric]:
        now = self._gauges
        info = GaugeMetricFamily("nodemesh_build_info", "Version and node.", labels=["component", "version", "node"])
        info.add_metric(["noded", now.version, now.node], 1)
        yield info
        yield _by_label("nodemesh_workloads", "Local workloads by state.", "state", now.workloads)
        yield GaugeMetricFamily("nodemesh_snapshot_revision", "Revision in force.", value=now.revision)
        age = time.time() - now.snapshot_at if now.snapshot_at else float("nan")
        yield GaugeMetricFamily("nodemesh_snapshot_age_seconds", "Since the snapshot was applied.", value=age)
        yield GaugeMetricFamily(
            "nodemesh_controller_connected", "Whether the controller is connected.", value=float(now.connected)
        )
        yield _by_label(
            "nodemesh_certificate_expiry_timestamp_seconds", "When it expires.", "workload", now.certificates
        )
        restarts = CounterMetricFamily("nodemesh_worker_restarts", "Workers replaced.", labels=["worker"])
        for index, count in now.restarts.items():
            restarts.add_metric([str(index)], count)
        yield restarts
        yield CounterMetricFamily(
            "nodemesh_telemetry_evicted_edges", "Edges whose series were dropped.", value=self._telemetry.evicted
        )
        yield CounterMetricFamily(
            "nodemesh_telemetry_unreported_edges",
            "Edges whose counts the controller never got.",
            value=self._telemetry.unreported,
        )

    def _totals(self) -> Iterator[Metric]:
        for name, value in sorted(self._telemetry.totals().items()):
            if name in GAUGES:
                yield GaugeMetricFamily(f"nodemesh_{name}", "Now, over all workers.", value=value)
            else:
                yield CounterMetricFamily(f"nodemesh_{name}", "Over all workers.", value=value)


def pieces(telemetry: Telemetry, gauges: Gauges) -> Iterator[bytes]:
    """The exposition format, version 0.0.4, bit by bit: of requests there may be a lot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MeshCollector(telemetry, gauges))
    yield generate_latest(registry)
    yield from request_metrics.text(telemetry.requests, gauges.cluster)


def text(telemetry: Telemetry, gauges: Gauges) -> bytes:
    """All of it."""
    return b"".join(pieces(telemetry, gauges))


def labels(key: EdgeKey, cluster: str) -> list[str]:
    """The values of `LABELS` for one edge."""
    return [*parties.values(key, cluster), "tcp", key.flags or "-", key.security]


def _by_label(name: str, documentation: str, label: str, values: dict[str, int] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
