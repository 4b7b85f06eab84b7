"""What a request leaves behind: a line of the access log, and counts for the metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mesh.hbone import format_address
from mesh.http1 import BadMessage
from mesh.request_counts import RequestReport
from noded.data.http import log_line
from noded.data.http.log_line import grpc_status, json_line, text_line
from noded.data.http.recent import Recent
from noded.data.http.tally import Outcome, RequestEdge, RequestTally
from noded.data.http.tap import Taps
from noded.data.node import Node
from noded.data.tracker import UNKNOWN

if TYPE_CHECKING:
    from mesh.balance import Host
    from mesh.traffic import Route
    from noded.data.http.exchange import Exchange
    from noded.data.http.inbound import InboundExchange, InboundSession
    from noded.data.http.outbound import OutboundExchange
    from noded.data.http.session import OutboundSession, Session

MAX_OUTCOMES = 4096
"""Tallies between two reports; requests beyond are counted in one sum only."""
_FAILED = 400
"""Statuses from here on say so."""
_FINE = (None, "0")
"""Statuses of gRPC that do not; None is of any other request."""
_BEFORE = ("-", "DPE", "RBAC", "RL", "UAEX")
"""Flags with which the proxy answers requests that the workload never saw: `-` of tokens."""


class Seen:
    """Of this worker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._edges: dict[object, RequestEdge] = {}
        self._by_flow: dict[int, RequestEdge] = {}
        self._outcomes = 0
        self._requests = 0
        self._ids = f"{node.tracker.index}-r"
        self._text = node.tracker.text
        self._line = text_line if node.tracker.text else json_line
        self.tracing = node.tracing
        self.recent = Recent()
        self.taps = Taps(lines=node.tracker.logging and not node.tracker.text)
        self._recent, self._watched = self.taps.recent, self.taps.watched

    def outbound(self, session: OutboundSession, exchange: OutboundExchange) -> None:
        """A local workload's request of a service is over."""
        host, destination = exchange.host, exchange.destination
        key = session.local.uid, destination or session.service, host
        edge = self._edges.get(key)
        if edge is None:
            service = destination.service.hostname if destination is not None else ""
            edge = self._edges[key] = self._edge(session, service, host)
        response = exchange.response
        route = exchange.matched.route if exchange.matched is not None else None
        outcome = response.status if response is not None else 0, exchange.flags, grpc_status(exchange), id(route)
        tally = edge.outcomes.get(outcome)
        if tally is None:
            upstream = format_address(host.address, host.port) if host is not None else ""
            tally = self._tally(edge, outcome, route, upstream, destination.port if destination is not None else 0)
        self._requests += 1
        if outcome[0] >= _FAILED or exchange.flags != "-" or outcome[2] not in _FINE:
            self.recent.outbound(f"{self._ids}{self._requests}", session, exchange, outcome[0], outcome[2])
        self._count(session, exchange, edge, tally)

    def inbound(self, session: InboundSession, exchange: InboundExchange) -> None:
        """Somebody's request of a local workload is over."""
        flow = session.flow
        edge = self._by_flow.get(flow.number)
        if edge is None:
            source, destination, service, security = flow.sides
            key = source, destination, service, security, flow.target
            edge = self._edges.get(key)
            if edge is None:
                edge = self._edges[key] = RequestEdge(False, source, destination, service, security)
            self._by_flow[flow.number] = edge
        response = exchange.response
        status, flags, port = response.status if response is not None else 0, exchange.flags, flow.target_port
        outcome = status, flags, grpc_status(exchange), port if exchange.answered_at else -port
        tally = edge.outcomes.get(outcome)
        if tally is None:
            upstream = format_address(flow.target, port) if exchange.answered_at or flags not in _BEFORE else ""
            tally = self._tally(edge, outcome, None, upstream, port)
        self._requests += 1
        if status >= _FAILED or flags != "-" or outcome[2] not in _FINE:
            self.recent.inbound(f"{self._ids}{self._requests}", session, exchange, outcome[0], outcome[2])
        self._count(session, exchange, edge, tally)

    def refused(self, session: Session, error: BadMessage) -> None:
        """A client sent what is no request."""
        tracker = self._node.tracker
        if tracker.logging:
            tracker.log(log_line.refused(tracker, session, error, text=self._text))
        if self._recent is not None or self._watched:
            line = log_line.refused(tracker, session, error, text=False)
            if self._recent is not None:
                self._recent.append(line)
            for tap in self._watched.values():
                tap.offer(session.flow.uid, "", "", error.status, line)

    def _edge(self, session: OutboundSession, service: str, host: Host | None) -> RequestEdge:
        node = self._node
        workload = node.snapshot.workloads.get(host.uid) if host is not None else None
        party = node.party(workload) if workload is not None else UNKNOWN
        security = "mutual_tls" if workload is not None and workload.meshed else "none"
        return RequestEdge(True, session.local.party, party, service, security)

    def _tally(self, edge: RequestEdge, key: Outcome, route: Route | None, upstream: str, port: int) -> RequestTally:
        tally = RequestTally(route, upstream, port)
        if self._outcomes < MAX_OUTCOMES:
            self._outcomes += 1
            edge.outcomes[key] = tally
        else:
            self._node.tracker.count("requests_unattributed")
        return tally

    def _count(self, session: Session, exchange: Exchange, edge: RequestEdge, tally: RequestTally) -> None:
        seconds = time.monotonic() - exchange.started
        tally.add(seconds, exchange.received, exchange.sent)
        if exchange.span is not None and self.tracing is not None:
            self.tracing.end(exchange.span, session, exchange, edge, tally, seconds)
        tracker = self._node.tracker
        if tracker.logging:
            line = self._line(tracker, session, exchange, edge, tally, seconds, f"{self._ids}{self._requests}")
            tracker.log(line)
            if self._recent is not None:
                self._recent.append(line)
        if self._watched:
            self._show(session, exchange, edge, tally, seconds)

    def _show(
        self, session: Session, exchange: Exchange, edge: RequestEdge, tally: RequestTally, seconds: float
    ) -> None:
        """To those who watch."""
        request, response = exchange.request, exchange.response
        method, path = request.method.decode("latin-1"), (exchange.asked or request.path).decode("latin-1")
        code = response.status if response is not None else 0
        name = f"{self._ids}{self._requests}"
        line = json_line(self._node.tracker, session, exchange, edge, tally, seconds, name)
        for tap in self._watched.values():
            tap.offer(session.flow.uid, method, path, code, line)

    def report(self) -> Iterator[RequestReport]:
        """What was counted since the last call, worked out as it is asked for."""
        edges, self._edges, self._by_flow, self._outcomes = self._edges, {}, {}, 0
        return (report for edge in edges.values() for report in edge.reports())
