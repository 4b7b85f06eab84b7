"""Routes and traffic policies by the service that they are for; immutable, each made from the one before by a delta.

What a change does not concern is the same object afterwards, so that what was compiled from it can be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mesh.traffic import RateLimit, Route, TrafficPolicy

_ByPort = dict[int, tuple[Route, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class TrafficIndex:
    """Start with `TrafficIndex()`; change with `apply` only."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    """By key, `<kind>/<namespace>/<name>`."""
    policies: Mapping[str, TrafficPolicy] = field(default_factory=dict)
    """By key, `<namespace>/<name>`."""
    _routes_at: Mapping[str, _ByPort] = field(default_factory=dict)
    """By service, then port; 0 holds those for every port, which the others' tuples have too."""
    _claims: Mapping[str, tuple[TrafficPolicy, ...]] = field(default_factory=dict)
    """By service: all of its policies, the one that holds first."""
    versioned: frozenset[str] = frozenset()
    """The services that are split by version."""

    def routes_at(self, service: str, port: int) -> tuple[Route, ...]:
        """The routes attached to that port of a service, those of all namespaces, older ones first."""
        ports = self._routes_at.get(service)
        if ports is None:
            return ()
        found = ports.get(port)
        return ports.get(0, ()) if found is None else found

    def policy_of(self, service: str) -> TrafficPolicy | None:
        """The policy that holds for a service."""
        claims = self._claims.get(service)
        return claims[0] if claims else None

    def shared_limit(self, name: str) -> RateLimit | None:
        """A rate limit that is in force for the whole mesh, by what it is called: `<namespace>/<service>/<limit>`."""
        service, _, limit = name.rpartition("/")
        policy = self.policy_of(service)
        return next((one for one in policy.rate_limits if one.shared and one.name == limit), None) if policy else None

    def apply(
        self, routes: tuple[Route, ...], policies: tuple[TrafficPolicy, ...], gone_routes: set[str], gone: set[str]
    ) -> TrafficIndex:
        """With these added or changed, and those gone. Touches only the services that they are or were for."""
        made = self
        if routes or gone_routes:
            made = made._with_routes(routes, gone_routes)
        if policies or gone:
            made = made._with_policies(policies, gone)
        return made

    def _with_routes(self, added: tuple[Route, ...], gone: set[str]) -> TrafficIndex:
        routes, index = dict(self.routes), dict(self._routes_at)
        members: dict[str, dict[str, Route]] = {}
        """Of the services touched: their routes by key."""

        def of(service: str) -> dict[str, Route]:
            if service not in members:
                ports = index.get(service, {})
                members[service] = {route.key: route for found in ports.values() for route in found}
            return members[service]

        new = {route.key: route for route in added}
        for key in gone.union(new):
            if (old := routes.pop(key, None)) is not None:
                for parent in old.parents:
                    of(parent.service).pop(key, None)
        for route in new.values():
            routes[route.key] = route
            for parent in route.parents:
                of(parent.service)[route.key] = route
        for service, found in members.items():
            if found:
                index[service] = _by_port(service, found, index.get(service, {}))
            else:
                index.pop(service, None)
        return replace(self, routes=routes, _routes_at=index)

    def _with_policies(self, added: tuple[TrafficPolicy, ...], gone: set[str]) -> TrafficIndex:
        policies, claims = dict(self.policies), dict(self._claims)
        new = {policy.key: policy for policy in added}
        touched = {policy.service for policy in added}
        for key in gone.union(new):
            if (old := policies.pop(key, None)) is not None:
                touched.add(old.service)
                if left := tuple([other for other in claims.get(old.service, ()) if other.key != key]):
                    claims[old.service] = left
                else:
                    claims.pop(old.service, None)
        for policy in new.values():
            policies[policy.key] = policy
            mine = [*claims.get(policy.service, ()), policy]
            claims[policy.service] = tuple(sorted(mine, key=age))
        split = {service for service in touched if (held := claims.get(service)) and held[0].versions}
        return replace(self, policies=policies, _claims=claims, versioned=self.versioned - touched | split)


def age(policy: TrafficPolicy) -> tuple[int, str]:
    """To sort by: of several policies for one service the first holds."""
    return policy.created, policy.key


def _by_port(service: str, routes: Mapping[str, Route], before: _ByPort) -> _ByPort:
    def first(route: Route) -> tuple[int, str, str]:
        return route.created, f"{route.namespace}/{route.name}", route.kind

    stated = {key: {p.port for p in route.parents if p.service == service} for key, route in routes.items()}
    ordered = sorted(routes.values(), key=first)
    made: _ByPort = {}
    for port in {0}.union(*stated.values()):
        found = tuple(route for route in ordered if not stated[route.key].isdisjoint((0, port)))
        same = before.get(port)
        made[port] = same if same == found else found
    return made
