"""`TrafficPolicy`, checked, to the mesh's model. What is left out has the model's own default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from controller.schema.quantities import seconds, share
from controller.store import Resource
from controller.translate.matches import header_matches, http_match
from mesh.traffic import (
    Balance,
    CircuitBreaker,
    Fault,
    HashOn,
    LoadBalancing,
    OutlierDetection,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    TrafficPolicy,
)

_T = TypeVar("_T")
_BACKOFF_GROWS = 10
"""Times the first, where the longest is not stated."""


class TrafficPolicies:
    """Translates, and keeps what has not changed since."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Resource, TrafficPolicy]] = {}

    def translate(self, resources: Iterable[Resource]) -> dict[str, TrafficPolicy]:
        """All of them, by key."""
        known, self._known = self._known, {}
        for resource in resources:
            before = known.get(key := f"{resource.namespace}/{resource.name}")
            same = before is not None and before[0] is resource
            self._known[key] = before if same and before else (resource, traffic_policy(resource))
        return {key: policy for key, (_resource, policy) in self._known.items()}


def traffic_policy(resource: Resource) -> TrafficPolicy:
    """One of them."""
    spec = resource.body["spec"]
    return TrafficPolicy(
        resource.name,
        resource.namespace,
        f"{resource.namespace}/{spec['targetRef']['name']}",
        resource.created,
        _if(spec.get("loadBalancing"), _load_balancing),
        _if(spec.get("circuitBreaker"), _circuit_breaker),
        _if(spec.get("outlierDetection"), _outlier_detection),
        _if(spec.get("retryBudget"), _retry_budget),
        _if(spec.get("retries"), _retries),
        seconds(spec.get("timeout")),
        _if(spec.get("fault"), _fault),
        tuple(_rate_limit(each) for each in spec.get("rateLimits") or ()),
        dict(spec.get("versions") or {}),
    )


def _if(part: Mapping[str, Any] | None, make: Any) -> Any:
    """An empty mapping is there: it has all defaults."""
    return None if part is None else make(part)


def _made(of: type[_T], **stated: Any) -> _T:
    return of(**{name: value for name, value in stated.items() if value is not None})


def _time(text: str | None) -> float | None:
    return None if text is None else seconds(text)


def _load_balancing(part: Mapping[str, Any]) -> LoadBalancing:
    hashed = part.get("hashOn")
    cookie = (hashed or {}).get("cookie") or {}
    return _made(
        LoadBalancing,
        policy=Balance(part["policy"]) if part.get("policy") else None,
        hash_on=hashed
        and HashOn((hashed.get("header") or "").lower(), cookie.get("name") or "", seconds(cookie.get("ttl"))),
        slow_start=_time(part.get("slowStart")),
        prefer_local=part.get("preferLocal"),
    )


def _circuit_breaker(part: Mapping[str, Any]) -> CircuitBreaker:
    return _made(
        CircuitBreaker,
        max_connections=part.get("maxConnections"),
        max_requests=part.get("maxRequests"),
        max_pending=part.get("maxPending"),
        max_requests_per_connection=part.get("maxRequestsPerConnection"),
    )


def _outlier_detection(part: Mapping[str, Any]) -> OutlierDetection:
    rate = part.get("successRate") or {}
    return _made(
        OutlierDetection,
        consecutive_errors=part.get("consecutiveErrors"),
        interval=_time(part.get("interval")),
        base_ejection=_time(part.get("baseEjection")),
        max_ejection=_time(part.get("maxEjection")),
        max_percent=_share(part.get("maxPercent")),
        success_rate_deviations=float(rate["deviations"]) if rate else None,
        success_rate_requests=rate.get("minRequests"),
        success_rate_hosts=rate.get("minEndpoints"),
    )


def _share(value: int | str | None) -> int | None:
    return None if value is None else share(value)


def _retry_budget(part: Mapping[str, Any]) -> RetryBudget:
    return _made(
        RetryBudget,
        ratio=_share(part.get("percent")),
        min_per_second=part.get("minPerSecond"),
        ttl=_time(part.get("ttl")),
    )


def _retries(part: Mapping[str, Any]) -> RetryPolicy:
    backoff, longest = _time(part.get("backoff")), _time(part.get("maxBackoff"))
    codes, methods = part.get("codes"), part.get("methods")
    return _made(
        RetryPolicy,
        attempts=part.get("attempts"),
        codes=None if codes is None else tuple(codes),
        per_try_timeout=_time(part.get("perTryTimeout")),
        backoff=backoff,
        max_backoff=backoff * _BACKOFF_GROWS if longest is None and backoff is not None else longest,
        methods=None if methods is None else tuple(methods),
    )


_OF_GRPC = {1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503, 16: 401}
"""What a status of gRPC is in HTTP (google/rpc/code.proto); 500 for the others."""


def _fault(part: Mapping[str, Any]) -> Fault:
    delay, abort, slow = part.get("delay"), part.get("abort"), part.get("bandwidth")
    grpc = (abort or {}).get("grpcStatus")
    return Fault(
        seconds(delay["duration"]) if delay else 0.0,
        share(delay.get("percent")) if delay else 0,
        (abort.get("status") or _OF_GRPC.get(grpc or 0, 500)) if abort else 0,
        share(abort.get("percent")) if abort else 0,
        header_matches(part.get("headers")),
        -1 if grpc is None else grpc,
        0 if (reset := part.get("reset")) is None else share(reset.get("percent")),
        slow["bytesPerSecond"] if slow else 0,
        share(slow.get("percent")) if slow else 0,
    )


def _rate_limit(part: Mapping[str, Any]) -> RateLimit:
    return RateLimit(
        part["name"],
        part["requests"],
        seconds(part.get("per"), 1.0),
        part.get("burst") or 0,
        part.get("scope") == "Mesh",
        (part.get("byHeader") or "").lower(),
        tuple(map(http_match, part.get("matches") or ())),
    )
