"""The last requests that were denied or failed, kept for whoever asks why: others leave nothing here."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mesh.hbone import format_address
from mesh.message import Request
from noded.data.alike import Alike

if TYPE_CHECKING:
    from mesh.route import Matched
    from mesh.traffic import RouteRule
    from noded.data.http.inbound import InboundExchange
    from noded.data.http.outbound import OutboundExchange
    from noded.data.http.session import OutboundSession, Session

_LARGEST = 8192
"""Bytes of a head that is kept whole; of a larger one only the beginning of its path."""


class _Ended(NamedTuple):
    id: str
    at: float
    who: dict[str, Any]
    """Not the flow: the session and all of its buffers hang on that."""
    request: Request
    whole: bool
    code: int
    flags: str
    reason: str
    grpc: str | None
    """`grpc-status`, `""` if there was none; None of what is not gRPC."""
    claims: Mapping[str, Any] | None = None
    service: str = ""
    target: str = ""
    """Of a request that leaves: where it went."""
    matched: Matched | None = None
    backend: str = ""


class Recent:
    """Of this worker."""

    def __init__(self) -> None:
        self._ended: Alike[_Ended] = Alike()

    def inbound(self, name: str, session: Session, exchange: InboundExchange, code: int, grpc: str | None) -> None:
        """A request of a local workload ended so."""
        request, whole = _bounded(exchange.request)
        flags, reason, claims = exchange.flags, exchange.reason, exchange.claims if whole else None
        flow, now = session.flow, time.time()
        kind = flow.uid, flow.peer_identity, flow.target_port, request.method, code, grpc, flags, reason
        self._ended.add(kind, _Ended(name, now, session.who, request, whole, code, flags, reason, grpc, claims), now)

    def outbound(
        self, name: str, session: OutboundSession, exchange: OutboundExchange, code: int, grpc: str | None
    ) -> None:
        """A local workload's request ended so."""
        request = exchange.request
        if exchange.asked:
            request = replace(request, path=exchange.asked)
        request, whole = _bounded(request)
        host, backend, matched, now = exchange.host, exchange.backend, exchange.matched, time.time()
        ended = _Ended(
            *(name, now, session.who, request, whole, code, exchange.flags, exchange.reason, grpc),
            service=f"{session.service}:{session.port}",
            target=format_address(host.address, host.port) if host is not None else "",
            matched=matched,
            backend=f"{backend.service}:{backend.port}" if backend is not None else "",
        )
        route = matched.route.key if matched is not None else ""
        to = session.flow.uid, session.service, session.port, route
        self._ended.add((to, request.method, code, grpc, exchange.flags, exchange.reason), ended, now)

    def rows(self) -> list[dict[str, Any]]:
        """As `GET /why` has them, but one by one (`Alike.rows`), with all headers and, as JSON, claims."""
        return self._ended.rows(_row)


def _bounded(request: Request) -> tuple[Request, bool]:
    size = len(request.path) + len(request.authority)
    for name, value in request.headers:
        size += len(name) + len(value)
    if size <= _LARGEST:
        return request, True
    part = _LARGEST // 4
    return replace(request, path=request.path[:part], authority=request.authority[:part], headers=[]), False


def _edits(rule: RouteRule) -> bool:
    """Whether what is kept of the request is not what the route was chosen by (its path is)."""
    hostname = rule.rewrite is not None and bool(rule.rewrite.hostname)
    edits = [rule.request_headers, *(backend.request_headers for backend in rule.backends)]
    return hostname or any(edit is not None for edit in edits)


def _json(claims: Mapping[str, Any]) -> str | None:
    """A token may hold numbers, and halves of characters, that no message between processes can; None if even JSON
    has no room for it.
    """
    try:
        return json.dumps(claims)
    except RecursionError:
        return None


def _row(ended: _Ended) -> dict[str, Any]:
    request, matched = ended.request, ended.matched
    rule = matched.rule if matched is not None else None
    claims = _json(ended.claims) if ended.claims is not None else None
    led = {"target": ended.target, "service": ended.service} if ended.service else {}
    return {
        **ended.who,
        **led,
        "id": ended.id,
        "connection": ended.who["id"],
        "kind": "request",
        "at": ended.at,
        "method": request.method.decode("latin-1"),
        "authority": request.authority.decode("latin-1"),
        "path": request.path.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
        "claims": claims,
        "whole": ended.whole and (claims is not None or ended.claims is None),
        "code": ended.code,
        **({} if ended.grpc is None else {"grpc_status": int(ended.grpc) if ended.grpc else None}),
        "flags": ended.flags,
        "reason": ended.reason,
        "route": matched.route.key if matched is not None else "",
        "rule": matched.route.rules.index(rule) if matched is not None and rule is not None else -1,
        "edited": rule is not None and _edits(rule),
        "backend": ended.backend,
    }
