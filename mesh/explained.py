"""Explanations of verdicts and routes as the JSON that both daemons' APIs show (docs/reference/http-api.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from mesh.authz import Authorizer, Permit
from mesh.authz.explain import Case, Explanation, explain
from mesh.authz.flips import Flip, flips
from mesh.message import Request
from mesh.model import Service
from mesh.paths import Normalization, normalise
from mesh.route.explain import RouteExplanation
from mesh.traffic import PathEdit, RouteRule, TrafficPolicy
from mesh.versions import shares


def verdict(authorizer: Authorizer, case: Case) -> dict[str, Any]:
    """Why a workload's policies say so, and what would turn it round. Raises `ValueError` for a bad address."""
    found = explain(authorizer, case)
    said = found.verdict
    return {
        "allowed": found.allowed,
        "policy": said.policy,
        "rule": said.rule,
        "reason": said.reason,
        "dry_run": list(said.dry_run),
        "mtls_mode": found.mtls_mode,
        "asks": [ask._asdict() for ask in found.asks],
        "nearest": _nearest(found),
        "steps": [asdict(step) for step in found.steps],
        "flips": [_flip(flip) for flip in flips(authorizer, case)],
    }


def _nearest(found: Explanation) -> dict[str, Any] | None:
    if (nearest := found.nearest) is None:
        return None
    step, rule = nearest
    return {"policy": step.policy, "rule": rule.rule}


def _flip(flip: Flip) -> dict[str, Any]:
    said = flip.verdict
    changes = [asdict(change) for change in flip.changes]
    return {"changes": changes, "allowed": isinstance(said, Permit), "policy": said.policy, "rule": said.rule}


def route(found: RouteExplanation) -> dict[str, Any]:
    """Which way a request goes and why."""
    taken, matched = found.taken, found.matched
    rule = matched.rule if matched is not None else None
    total = sum(backend.weight for backend in rule.backends) if rule is not None else 0
    return {
        "route": taken.route if taken is not None else "",
        "rule": taken.rule if taken is not None else -1,
        "rule_name": taken.rule_name if taken is not None else "",
        "match": taken.match if taken is not None else -1,
        "backends": [
            {
                "service": f"{backend.service}:{backend.port}",
                "weight": backend.weight,
                "share": round(backend.weight / total, 4) if total else 0.0,
                "invalid": backend.invalid,
            }
            for backend in (rule.backends if rule is not None else ())
        ],
        "does": list(_does(rule)) if rule is not None else [],
        "steps": [asdict(step) for step in found.steps],
        "aside": [{"route": key, "reason": reason} for key, reason in found.aside],
    }


def _does(rule: RouteRule) -> Iterable[str]:
    """What becomes of a request besides being sent on."""
    if rule.cors is not None:
        yield "answers CORS preflights"
    if rule.redirect is not None:
        yield f"redirects with {rule.redirect.status}"
    if rule.request_headers is not None:
        yield "edits request headers"
    if rule.rewrite is not None:
        if rule.rewrite.hostname:
            yield f"rewrites the host to {rule.rewrite.hostname}"
        if rule.rewrite.path_edit is not PathEdit.KEEP:
            yield f"rewrites the path ({rule.rewrite.path_edit.value} {rule.rewrite.path})"
    for mirror in rule.mirrors:
        yield f"mirrors {mirror.share / 100:g}% to {mirror.backend.service}:{mirror.backend.port}"
    if not rule.backends and rule.redirect is None:
        yield "sends on to the service itself"


def versions(
    policy: TrafficPolicy | None, service: Service, port: int, version_of: Callable[[str], str]
) -> list[dict[str, Any]]:
    """How what comes to a service's port is split by version; nothing if it is not. `version_of` knows workloads'."""
    index = next((index for index, known in enumerate(service.ports) if known.port == port), -1)
    if policy is None or not policy.versions or index < 0:
        return []
    there = [version_of(endpoint.workload) for endpoint in service.endpoints if endpoint.ports[index]]
    same = {"service": f"{service.key}:{port}", "policy": policy.key}
    return [{**same, **asdict(share)} for share in shares(policy.versions, there)]


def request_of(
    method: str, host: str, path: str, headers: Iterable[tuple[str, str]], mode: Normalization = Normalization.BASE
) -> Request:
    """A request to ask about, its path in the form that policies and routes see. Raises `ValueError`."""
    made = [(name.strip().lower().encode("latin-1"), value.strip().encode("latin-1")) for name, value in headers]
    normal = normalise(path.encode("latin-1"), mode)
    return Request(method.encode("latin-1"), host.encode("latin-1"), normal, made)
