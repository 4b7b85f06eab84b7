"""A request's line of the access log, in Envoy's default text format or as Istio's JSON.

https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#default-format-string and
https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format. Most of a line is the same
for all requests of a connection, or for all of an edge with one outcome: that is kept with those.
"""

from __future__ import annotations

import time
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

from mesh.hbone import format_address
from mesh.http1 import BadMessage
from noded.data.tracker import Tracker

if TYPE_CHECKING:
    from mesh.authz import Denial, Permit
    from mesh.message import Request
    from noded.data.http.exchange import Exchange
    from noded.data.http.session import Session
    from noded.data.http.tally import RequestEdge, RequestTally

_DETAILS = {
    "DC": "downstream_remote_disconnect",
    "DPE": "http1.codec_error",
    "DR": "http2.remote_reset",
    "FI": "fault_filter_abort",
    "NC": "cluster_not_found",
    "NR": "route_not_found",
    "OM": "overload",
    "RBAC": "rbac_access_denied",
    "RL": "request_rate_limited",
    "SI": "stream_idle_timeout",
    "UAEX": "ext_authz_denied",
    "UF": "upstream_reset_before_response_started{connection_failure}",
    "UH": "no_healthy_upstream",
    "UO": "upstream_reset_before_response_started{overflow}",
    "UPE": "upstream_reset_before_response_started{protocol_error}",
    "UR": "upstream_reset_before_response_started{remote_reset}",
    "UT": "response_timeout",
}
"""Envoy's `response_code_details` for what the proxy answered itself, by the first of the flags."""
_MOST, _MOST_PATH = 1024, 4096
"""Of a header's value, and of a path with its query, bytes: the rest is left out. The last lines are also kept in
memory, and a byte may take six there.
"""
_LONG, _MANY = 256, 512
_GRPC = {b"%d" % status: str(status) for status in range(17)}
_UNKNOWN = "2"
"""What a status is that gRPC does not have, as to its clients: of a server's own there could be any number of series.
"""
_SERVED = ("-", "DI", "URX")
"""Flags with which a backend's answer is passed on."""


def details(flags: str, own: bool, outbound: bool) -> str:
    """`response_code_details`; `own`: the answer, if any, is the proxy's: redirects and the like, or about tokens."""
    if flags in _SERVED:
        return "via_upstream" if not own else "direct_response" if outbound else "jwt_authn_access_denied"
    return _DETAILS.get(flags.partition(",")[0], "upstream_reset_before_response_started{connection_termination}")


def grpc_status(exchange: Exchange) -> str | None:
    """The status of a gRPC request, `""` if there was none; None for any other request."""
    request = exchange.request
    if request.method != b"POST" or not (request.header(b"content-type") or b"").startswith(b"application/grpc"):
        return None
    status = exchange.grpc_status
    if status is None and exchange.response is not None:
        status = exchange.response.header(b"grpc-status")
    return _GRPC.get(status, _UNKNOWN) if status is not None else ""


def json_line(
    tracker: Tracker,
    session: Session,
    exchange: Exchange,
    edge: RequestEdge,
    tally: RequestTally,
    seconds: float,
    identifier: str,
) -> str:
    """Istio's keys where there are such, then ours."""
    request = exchange.request
    header = dict(request.headers).get
    now = time.time()
    served = tally.upstream and exchange.answered_at
    waited = int((exchange.answered_at - exchange.started) * 1000) if served else "null"
    decided = '""' if exchange.verdict is None else _decided(exchange.verdict)
    of_session = session.line or _of_session(session)
    if request.http10:
        of_session = of_session.replace('"HTTP/1.1"', '"HTTP/1.0"', 1)
    return (
        f'{{"time":"{tracker.stamp(now)}","type":"request","id":"{identifier}"'
        f',"start_time":"{tracker.stamp(now - seconds)}"'
        f',"method":{_often(request.method)},"authority":{_often(request.authority)}'
        f',"path":{quoted((exchange.asked or request.path)[:_MOST_PATH].decode("latin-1"))}'
        f"{tally.line or _of_outcome(edge, exchange, tally)}"
        f',"bytes_received":{exchange.received},"bytes_sent":{exchange.sent},"duration":{int(seconds * 1000)}'
        f',"upstream_service_time":{waited},"request_id":{_text(header(b"x-request-id"))}'
        f',"user_agent":{_often(header(b"user-agent"))},"x_forwarded_for":{_often(header(b"x-forwarded-for"))}'
        f"{of_session}"
        f',"policy":{decided},"reason":{quoted(exchange.reason)}}}'
    )


def _text(value: bytes | None) -> str:
    return "null" if value is None else quoted(value[:_MOST].decode("latin-1"))


class _Often(dict[bytes | None, str]):
    """For what many requests have in common; nothing long, as a client may make it up."""

    def __missing__(self, value: bytes | None) -> str:
        text = _text(value)
        if value is None or len(value) <= _LONG:
            if len(self) >= _MANY:
                self.clear()
            self[value] = text
        return text


_often = _Often().__getitem__


def _decided(verdict: Permit | Denial) -> str:
    """By which policy, and what others would have said."""
    dry_run = f',"dry_run":[{",".join(map(quoted, verdict.dry_run))}]' if verdict.dry_run else ""
    audit = f',"audit":[{",".join(map(quoted, verdict.audit))}]' if verdict.audit else ""
    return quoted(verdict.policy) + dry_run + audit


def _of_outcome(edge: RequestEdge, exchange: Exchange, tally: RequestTally) -> str:
    """What is the same for all requests that a tally counts."""
    status = exchange.response.status if exchange.response is not None else 0
    route = tally.route.key if tally.route is not None else "default"
    cluster = f"outbound|{tally.port}||{edge.service}" if edge.outbound else f"inbound|{tally.port}||"
    peer = (edge.destination if edge.outbound else edge.source).principal if edge.security == "mutual_tls" else ""
    grpc = grpc_status(exchange)
    of_grpc = "" if grpc is None else f',"grpc_status":{int(grpc) if grpc else "null"}'
    tally.line = (
        f',"response_code":{status}{of_grpc},"response_flags":"{exchange.flags}"'
        f',"response_code_details":{quoted(details(exchange.flags, not tally.upstream, edge.outbound))}'
        f',"route_name":{quoted(route)},"upstream_cluster":{quoted(cluster)}'
        f',"upstream_host":{quoted(tally.upstream) if tally.upstream else "null"}'
        f',"service":{quoted(edge.service)},"security":"{edge.security}","peer_identity":{quoted(peer)}'
    )
    return tally.line


def _of_session(session: Session) -> str:
    """What is the same for all requests of a connection, but for those in HTTP/1.0."""
    flow = session.flow
    session.line = (
        f',"protocol":"{_protocol(session, None)}"'
        f',"downstream_remote_address":"{format_address(flow.client, flow.client_port)}"'
        f',"downstream_local_address":"{format_address(flow.destination, flow.port)}","requested_server_name":null'
        f',"direction":"{flow.direction}","workload":{quoted(flow.uid)}'
    )
    return session.line


def _protocol(session: Session, request: Request | None) -> str:
    if request is not None and request.http10:
        return "HTTP/1.0"
    return "HTTP/2" if session.http2 else "HTTP/1.1"


def text_line(
    tracker: Tracker,
    session: Session,
    exchange: Exchange,
    edge: RequestEdge,
    tally: RequestTally,
    seconds: float,
    _identifier: str,
) -> str:
    """Envoy's default, which has no place for an id. What is between quotes is escaped as in JSON, where it must be."""
    request = exchange.request
    headers = dict(request.headers)
    status = exchange.response.status if exchange.response is not None else 0
    served = tally.upstream and exchange.answered_at
    waited = int((exchange.answered_at - exchange.started) * 1000) if served else "-"
    asked = f"{request.method.decode('latin-1')} {(exchange.asked or request.path)[:_MOST_PATH].decode('latin-1')}"
    return (
        f"[{tracker.stamp(time.time() - seconds)}] {quoted(f'{asked} {_protocol(session, request)}')}"
        f" {status} {exchange.flags} {exchange.received} {exchange.sent} {int(seconds * 1000)}"
        f" {waited} {_dashed(headers.get(b'x-forwarded-for'))}"
        f" {_dashed(headers.get(b'user-agent'))} {_dashed(headers.get(b'x-request-id'))}"
        f' {_often(request.authority)} "{tally.upstream or "-"}"'
    )


def _dashed(value: bytes | None) -> str:
    return '"-"' if value is None else quoted(value[:_MOST].decode("latin-1"))


def refused(tracker: Tracker, session: Session, error: BadMessage, *, text: bool) -> str:
    """For what a client sent and is no request."""
    protocol = _protocol(session, None)
    if text:
        return f'[{tracker.stamp()}] "- - {protocol}" {error.status} DPE 0 0 0 - "-" "-" "-" "-" "-"'
    return (
        f'{{"time":"{tracker.stamp()}","type":"request","response_code":{error.status},"response_flags":"DPE"'
        f',"response_code_details":"{_DETAILS["DPE"]}"{session.line or _of_session(session)}'
        f',"reason":{quoted(error.reason)}}}'
    )
