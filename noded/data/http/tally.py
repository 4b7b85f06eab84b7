"""Counts of the requests that ended since the last report."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from mesh.model import EdgeKey, Party
from mesh.request_counts import BOUNDS, BUCKETS, RequestCounts, RequestKey, RequestReport

if TYPE_CHECKING:
    from mesh.traffic import Route


Outcome = tuple[int, str, str | None, int]
"""Status, flags, gRPC status (None: not gRPC), and what else tells outcomes apart: outbound, the id of the route, which
the tally keeps alive; inbound, the port."""


class RequestTally:
    """Requests of one edge with one outcome."""

    __slots__ = (
        "count",
        "durations",
        "line",
        "port",
        "received",
        "received_sizes",
        "route",
        "seconds",
        "sent",
        "sent_sizes",
        "upstream",
    )

    def __init__(self, route: Route | None, upstream: str, port: int) -> None:
        self.route = route
        self.upstream, self.port = upstream, port
        """The endpoint that answered, `""` if none did; the port of the service, or of the workload."""
        self.line = ""
        """What is the same in the log for all of them (`log_line`)."""
        self.count = 0
        self.seconds = 0.0
        self.received = self.sent = 0
        self.durations = [0] * BUCKETS
        self.received_sizes, self.sent_sizes = [0] * BUCKETS, [0] * BUCKETS

    def add(self, seconds: float, received: int, sent: int) -> None:
        """One more."""
        self.count += 1
        self.seconds += seconds
        self.durations[bisect_left(BOUNDS, seconds * 1000)] += 1
        self.received += received
        self.received_sizes[bisect_left(BOUNDS, received) if received else 0] += 1
        self.sent += sent
        self.sent_sizes[bisect_left(BOUNDS, sent) if sent else 0] += 1

    def counts(self) -> RequestCounts:
        """As they are reported."""
        return RequestCounts(
            self.count,
            round(self.seconds * 1e6),
            self.received,
            self.sent,
            tuple(self.durations),
            tuple(self.received_sizes),
            tuple(self.sent_sizes),
        )


class RequestEdge:
    """From one workload to another, through one service, as one side sees it."""

    __slots__ = ("destination", "outbound", "outcomes", "security", "service", "source")

    def __init__(self, outbound: bool, source: Party, destination: Party, service: str, security: str) -> None:
        self.outbound, self.source, self.destination = outbound, source, destination
        self.service, self.security = service, security
        self.outcomes: dict[Outcome, RequestTally] = {}

    def reports(self) -> list[RequestReport]:
        """What was counted."""
        reporter = "source" if self.outbound else "destination"
        found = []
        for (code, flags, grpc, _), tally in self.outcomes.items():
            edge = EdgeKey(reporter, self.source, self.destination, self.service, self.security, flags)
            route = tally.route.key if tally.route is not None else ""
            key = RequestKey(edge, "http" if grpc is None else "grpc", code, grpc or "", route)
            found.append(RequestReport(key, tally.counts()))
        return found
