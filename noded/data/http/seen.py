"""What a request leaves behind: a line of the access log, and counts for the metrics."""

from __future__ import annotations

import time
from bisect import bisect_left
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

from mesh.hbone import format_address
from mesh.http1 import BadMessage
from mesh.model import Party
from noded.data.node import Node
from noded.data.tracker import UNKNOWN

if TYPE_CHECKING:
    from mesh.balance import Host
    from noded.data.http.exchange import Exchange
    from noded.data.http.inbound import InboundExchange, InboundSession
    from noded.data.http.outbound import OutboundExchange
    from noded.data.http.session import OutboundSession, Session

DURATIONS = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000)
"""Upper bounds of the histogram of durations, ms: Istio's."""


class RequestTally:
    """Requests of one edge with one outcome since the last report."""

    __slots__ = ("count", "durations", "received", "seconds", "sent")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.received = self.sent = 0
        self.durations = [0] * (len(DURATIONS) + 1)
        """By bucket, not cumulative."""


class RequestEdge:
    """From one workload to another, through one service, as one side sees it."""

    __slots__ = ("destination", "outbound", "outcomes", "security", "service", "source")

    def __init__(self, outbound: bool, source: Party, destination: Party, service: str, security: str) -> None:
        self.outbound, self.source, self.destination = outbound, source, destination
        self.service, self.security = service, security
        self.outcomes: dict[tuple[int, str, str], RequestTally] = {}
        """By status, flags, and protocol."""


class Seen:
    """Of this worker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._edges: dict[tuple[str, str, Host | None], RequestEdge] = {}

    def outbound(self, session: OutboundSession, exchange: OutboundExchange) -> None:
        """A local workload's request of a service is over."""
        host, destination = exchange.host, exchange.destination
        service = destination.service if destination is not None else None
        key = session.local.uid, service.key if service else session.service, host
        edge = self._edges.get(key)
        if edge is None:
            edge = self._edges[key] = self._edge(session, service.hostname if service else "", host)
        self._count(edge, exchange)
        self._log(session, exchange, edge, f"{host.address}:{host.port}" if host else "")

    def inbound(self, session: InboundSession, exchange: InboundExchange) -> None:
        """Somebody's request of a local workload is over."""
        flow = session.flow
        key = flow.uid, f"{flow.client} {flow.peer_identity}", None
        edge = self._edges.get(key)
        if edge is None:
            source, destination, service, security = flow.sides
            edge = self._edges[key] = RequestEdge(False, source, destination, service, security)
        self._count(edge, exchange)
        self._log(session, exchange, edge, format_address(flow.target, flow.target_port))

    def refused(self, session: Session, error: BadMessage) -> None:
        """A client sent what is no request."""
        tracker, flow = self._node.tracker, session.flow
        if tracker.logging:
            tracker.log(
                f'{{"time":"{tracker.stamp()}","type":"request","direction":"{flow.direction}"'
                f',"workload":{quoted(flow.uid)},"source":"{format_address(flow.client, flow.client_port)}"'
                f',"response_code":{error.status},"response_flags":"DPE","reason":{quoted(error.reason)}}}'
            )

    def _edge(self, session: OutboundSession, service: str, host: Host | None) -> RequestEdge:
        node = self._node
        workload = node.snapshot.workloads.get(host.uid) if host is not None else None
        party = node.party(workload) if workload is not None else UNKNOWN
        security = "mutual_tls" if workload is not None and workload.meshed else "none"
        return RequestEdge(True, session.local.party, party, service, security)

    def _count(self, edge: RequestEdge, exchange: Exchange) -> None:
        status = exchange.response.status if exchange.response is not None else 0
        key = status, exchange.flags, "http"
        tally = edge.outcomes.get(key)
        if tally is None:
            tally = edge.outcomes[key] = RequestTally()
        seconds = time.monotonic() - exchange.started
        tally.count += 1
        tally.seconds += seconds
        tally.durations[bisect_left(DURATIONS, seconds * 1000)] += 1
        tally.received += exchange.received
        tally.sent += exchange.sent

    def report(self) -> list[RequestEdge]:
        """What was counted since the last call."""
        edges, self._edges = self._edges, {}
        return list(edges.values())

    def _log(self, session: Session, exchange: Exchange, edge: RequestEdge, upstream: str) -> None:
        tracker = self._node.tracker
        if not tracker.logging:
            return
        request, flow, response = exchange.request, session.flow, exchange.response
        now = time.monotonic()
        status = response.status if response is not None else 0
        waited = f"{(exchange.answered_at - exchange.started) * 1000:.1f}" if exchange.answered_at else "0"
        tracker.log(
            f'{{"time":"{tracker.stamp()}","type":"request","direction":"{flow.direction}"'
            f',"workload":{quoted(flow.uid)},"source":"{format_address(flow.client, flow.client_port)}"'
            f',"service":{quoted(edge.service)},"upstream_host":"{upstream}","security":"{edge.security}"'
            f',"method":{quoted(request.method.decode("latin-1"))},"authority":{quoted(request.authority.decode("latin-1"))}'
            f',"path":{quoted(request.path.decode("latin-1"))},"protocol":"HTTP/1.1","response_code":{status}'
            f',"response_flags":"{exchange.flags}","reason":{quoted(exchange.reason)}'
            f',"bytes_received":{exchange.received},"bytes_sent":{exchange.sent}'
            f',"duration_ms":{(now - exchange.started) * 1000:.1f},"upstream_ms":{waited}}}'
        )
