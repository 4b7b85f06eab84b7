"""Policy rules, routes and links over rtnetlink, with pyroute2.

Each function opens its own `IPRoute` and closes it: one object must not be shared between threads, and it stays in the
network namespace in which it was made (so the callers are inside the workload's: `netns.inside`).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from redirect.plan import TABLE, Family, Interface, LocalRoute, Plan, PolicyRule

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_ANYWHERE = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_IFF_UP = 1
_RTN_LOCAL = 2
_SCOPE_HOST = 254
_ALL_BITS = 0xFFFFFFFF


class RouteError(Exception):
    """A policy rule or route can't be read or changed."""


def kernel_has_ipv6() -> bool:
    """Whether the kernel has IPv6 at all (it hasn't with `ipv6.disable=1`)."""
    return Path("/proc/sys/net/ipv6/conf").is_dir()


def interfaces() -> tuple[Interface, ...]:
    """The namespace's links that are up. Raises `RouteError` if lo isn't: captured connections go over it."""
    with IPRoute() as netlink:
        links = [
            (link.get_attr("IFLA_IFNAME"), link["index"]) for link in netlink.get_links() if link["flags"] & _IFF_UP
        ]
    if not any(name == "lo" for name, _ in links):
        raise RouteError("lo is down in the workload's network namespace; bring it up: `ip -n NAME link set lo up`")
    return tuple(Interface(name, index, ipv6=_ipv6_enabled(name)) for name, index in links)


def raise_loopback() -> None:
    """Bring lo up, in a namespace that is ours."""
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")


def _ipv6_enabled(interface: str) -> bool:
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def read() -> tuple[set[PolicyRule], set[LocalRoute]]:
    """Every policy rule that leads to our table, and every local default route in it."""
    with IPRoute() as netlink:
        return _read(netlink)


def _read(netlink: Any) -> tuple[set[PolicyRule], set[LocalRoute]]:
    rules: set[PolicyRule] = set()
    routes: set[LocalRoute] = set()
    for family, number in _AF.items():
        if family is Family.IPV6 and not kernel_has_ipv6():
            continue
        for rule in netlink.get_rules(family=number):
            if rule.get_attr("FRA_TABLE") == TABLE:
                mark = rule.get_attr("FRA_FWMARK") or 0
                rules.add(PolicyRule(family, mark, TABLE, rule.get_attr("FRA_PRIORITY") or 0))
        for route in netlink.get_routes(family=number, table=TABLE):
            if route.get_attr("RTA_TABLE") == TABLE and route["type"] == _RTN_LOCAL and route["dst_len"] == 0:
                metric = route.get_attr("RTA_PRIORITY") or 0
                routes.add(LocalRoute(family, TABLE, route.get_attr("RTA_OIF") or 0, metric))
    return rules, routes


def write(plan: Plan) -> None:
    """Make policy rules and the table's routes the plan's: what is missing is added, then what is too many removed."""
    with IPRoute() as netlink:
        rules, routes = _read(netlink)
        wanted_rules, wanted_routes = set(plan.policy_rules), set(plan.routes)
        try:
            for route in sorted(wanted_routes - routes, key=_route_order):
                netlink.route("add", **_route(route))
            for rule in wanted_rules - rules:
                netlink.rule("add", **_rule(rule))
            for rule in rules - wanted_rules:
                netlink.rule("del", **_rule(rule))
            for route in routes - wanted_routes:
                netlink.route("del", **_route(route))
        except NetlinkError as error:
            raise RouteError(f"policy routing of captured traffic: {error}; noded needs CAP_NET_ADMIN") from error


def _route_order(route: LocalRoute) -> tuple[str, int]:
    return route.family.value, route.metric


def _rule(rule: PolicyRule) -> dict[str, Any]:
    return {
        "family": _AF[rule.family],
        "fwmark": rule.mark,
        "fwmask": _ALL_BITS,
        "table": rule.table,
        "priority": rule.priority,
    }


def _route(route: LocalRoute) -> dict[str, Any]:
    return {
        "family": _AF[route.family],
        "dst": _ANYWHERE[route.family],
        "type": "local",
        "scope": _SCOPE_HOST,
        "oif": route.interface,
        "table": route.table,
        "priority": route.metric,
    }
