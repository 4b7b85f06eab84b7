"""The controller's own Prometheus metrics, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from controller.ca import Authority
from controller.link import LinkServer
from controller.publish import Publisher
from controller.register import Register
from controller.telemetry import Telemetry

_PREFIX = "nodemesh_controller_"


class Metrics(Collector):
    """All of them; `text` is the exposition."""

    def __init__(
        self, authority: Authority, enroller: Register, publisher: Publisher, link: LinkServer, telemetry: Telemetry
    ) -> None:
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "nodes": ("Nodes that have joined.", lambda: len(enroller.nodes)),
            "nodes_connected": ("Nodes with a connection.", lambda: sum(map(link.connected, enroller.nodes))),
            "nodes_rejecting": ("Nodes that rejected what they were last sent.", link.rejecting),
            "revision": ("The current revision.", lambda: publisher.revision),
            "workloads": ("Workloads, enrolled and declared.", lambda: len(publisher.world.workloads)),
            "workloads_enrolled": ("Workloads that nodes enrolled.", lambda: len(enroller.enrolled)),
            "services": ("Services.", lambda: len(publisher.world.services)),
            "policies": ("Authorization policies.", lambda: len(publisher.world.policies)),
            "edges": ("Edges in memory.", lambda: len(telemetry)),
            "root_certificate_expiry_timestamp_seconds": (
                "When the root in use ends.",
                lambda: authority.roots[0].not_valid_after_utc.timestamp() if authority.roots else 0.0,
            ),
        }
        self._counters: dict[str, tuple[str, Callable[[], float]]] = {
            "publications": ("Times that the world was built.", lambda: publisher.rebuilds),
            "certificates_issued": ("Certificates signed.", lambda: authority.issued),
            "edges_rejected": ("Reported edges that were not believed.", lambda: telemetry.rejected),
            "edges_evicted": ("Edges dropped to make room.", lambda: telemetry.evicted),
            "requests_rejected": ("Reports of requests that were not believed.", lambda: telemetry.requests.rejected),
            "requests_evicted": ("Request outcomes dropped to make room.", lambda: telemetry.requests.evicted),
            "connections": ("Connections accepted from nodes.", lambda: link.accepted),
            "connections_refused": ("Of them, those that were refused.", lambda: link.refused),
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        """Prometheus' hook."""
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(_PREFIX + name, text, value=read())
        for name, (text, read) in self._counters.items():
            yield CounterMetricFamily(_PREFIX + name, text, value=read())

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
