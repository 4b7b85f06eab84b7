"""How long a request may take and how often it is tried: its rule's word, with the service's policy for the rest."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.retry import policy_of
from mesh.traffic import RetryPolicy, RouteRule, TrafficPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one exchange; 0 for no limit."""

    timeout: float = 0.0
    """Seconds from the request's head to the answer's end, all tries and waits between them included."""
    try_timeout: float = 0.0
    """Seconds for each try; never more than `timeout`."""
    retries: RetryPolicy | None = None
    """None: nothing is tried twice."""


def limits(rule: RouteRule | None, policy: TrafficPolicy | None) -> Limits:
    """What holds for requests that a rule takes; without a rule, for those to a service without routes."""
    retries = policy_of(rule.retry if rule else None, policy.retries if policy else None)
    timeout = max((rule.timeout if rule else 0.0) or (policy.timeout if policy else 0.0), 0.0)
    each = (rule.backend_timeout if rule else 0.0) or (retries.per_try_timeout if retries else 0.0)
    try_timeout = max(each, 0.0)
    if timeout and try_timeout > timeout:
        try_timeout = timeout
    return Limits(timeout, try_timeout, retries)
