"""What a request leaves behind: a line of the access log, and counts for the metrics."""

from __future__ import annotations

import time
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

from mesh.hbone import format_address
from mesh.http1 import BadMessage
from mesh.request_counts import RequestReport
from noded.data.http.tally import RequestEdge, RequestTally
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
_MAX_STATUS = 16


class Seen:
    """Of this worker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._edges: dict[object, RequestEdge] = {}
        self._by_flow: dict[int, RequestEdge] = {}
        self._outcomes = 0

    def outbound(self, session: OutboundSession, exchange: OutboundExchange) -> None:
        """A local workload's request of a service is over."""
        host, destination = exchange.host, exchange.destination
        key = session.local.uid, destination or session.service, host
        edge = self._edges.get(key)
        if edge is None:
            service = destination.service.hostname if destination is not None else ""
            edge = self._edges[key] = self._edge(session, service, host)
        self._count(edge, exchange, exchange.matched.route if exchange.matched is not None else None)
        self._log(session, exchange, edge, f"{host.address}:{host.port}" if host else "")

    def inbound(self, session: InboundSession, exchange: InboundExchange) -> None:
        """Somebody's request of a local workload is over."""
        flow = session.flow
        edge = self._by_flow.get(flow.number)
        if edge is None:
            source, destination, service, security = flow.sides
            if not service and (served := self._node.snapshot.served_by(flow.target, flow.target_port)) is not None:
                service = served.hostname
            key = source, destination, service, security
            edge = self._edges.get(key)
            if edge is None:
                edge = self._edges[key] = RequestEdge(False, source, destination, service, security)
            self._by_flow[flow.number] = edge
        self._count(edge, exchange, None)
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

    def _count(self, edge: RequestEdge, exchange: Exchange, route: Route | None) -> None:
        response = exchange.response
        key = response.status if response is not None else 0, exchange.flags, _grpc(exchange), id(route)
        tally = edge.outcomes.get(key)
        if tally is None:
            if self._outcomes >= MAX_OUTCOMES:
                self._node.tracker.count("requests_unattributed")
                return
            self._outcomes += 1
            tally = edge.outcomes[key] = RequestTally(route)
        tally.add(time.monotonic() - exchange.started, exchange.received, exchange.sent)

    def report(self) -> tuple[RequestReport, ...]:
        """What was counted since the last call."""
        edges, self._edges, self._by_flow, self._outcomes = self._edges, {}, {}, 0
        return tuple(report for edge in edges.values() for report in edge.reports())

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


def _grpc(exchange: Exchange) -> str | None:
    """The status of a gRPC request, `""` if there was none; None for any other request."""
    request = exchange.request
    if request.method != b"POST" or not (request.header(b"content-type") or b"").startswith(b"application/grpc"):
        return None
    status = exchange.grpc_status
    if status is None and exchange.response is not None:
        status = exchange.response.header(b"grpc-status")
    return status.decode("latin-1") if status is not None and status.isdigit() and len(status) <= _MAX_STATUS else ""
