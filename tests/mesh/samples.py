"""Values of the mesh's nouns for tests: makers with defaults, and hypothesis strategies over small, colliding pools."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from mesh.identity import Identity
from mesh.model import (
    Action,
    Condition,
    Endpoint,
    MeshConfig,
    MtlsMode,
    Operation,
    PeerAuth,
    Policy,
    Rule,
    Service,
    ServicePort,
    Source,
    Workload,
)
from mesh.traffic import Backend, Fault, HeaderEdit, Mirror, Parent, RateLimit, Route, RouteRule, TrafficPolicy

ROOT = "nodemesh-system"
NAMESPACES = ("shop", "other", ROOT)
ADDRESSES = ("10.77.0.1", "10.77.0.2", "10.77.1.1", "192.0.2.1", "fd00::1", "fd00:0:0:1::1")
PORTS = (80, 443, 8080)


def workload(
    name: str = "web", *addresses: str, meshed: bool = True, namespace: str = "shop", version: str = ""
) -> Workload:
    uid = f"{namespace}/{name}"
    return Workload(uid, name, namespace, name, "node-a", addresses, meshed, version=version)


def service(
    name: str = "web",
    *,
    addresses: tuple[str, ...] = ("10.96.0.1",),
    ports: Sequence[int] = (80,),
    endpoints: Sequence[Endpoint] = (),
    namespace: str = "shop",
) -> Service:
    names = {80: "http", 443: "https", 8080: "p8080"}
    stated = tuple(ServicePort(names.get(p, f"p{p}"), p) for p in ports)
    return Service(name, namespace, addresses, stated, tuple(endpoints))


def tuples(items: st.SearchStrategy[object], most: int = 2) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(items, max_size=most).map(tuple)


def one_of(*values: object) -> st.SearchStrategy[object]:
    return st.sampled_from(values)


identities = st.builds(
    Identity, one_of("cluster.local", "td"), st.sampled_from(NAMESPACES), one_of("web", "client", "web-admin")
)
_principals = tuples(
    one_of(
        "*", "cluster.local/*", "*/sa/web", "td/ns/shop/sa/web", "cluster.local/ns/other/sa/client", "*ns*", "td/ns/*"
    )
)
_namespaces = tuples(one_of("*", "shop", "other", "sh*", "*er"))
_accounts = tuples(one_of("shop/web", "other/web", "shop/*"))
_blocks = tuples(
    one_of("10.77.0.0/24", "10.77.0.1", "10.77.9.9/16", "fd00::/64", "::ffff:10.77.0.2", "0.0.0.0/0", "nonsense")
)
_ports = tuples(st.sampled_from(PORTS))
_port_texts = tuples(one_of("80", "8080", "http"))

sources = st.builds(
    Source,
    *(_principals, _principals, _namespaces, _namespaces, _accounts, _accounts, _blocks, _blocks),
    st.sampled_from([(), (), (), ("requestPrincipals",)]),
)
operations = st.builds(Operation, _ports, _ports, st.sampled_from([(), (), (), ("methods",)]))
conditions = st.one_of(
    st.builds(Condition, one_of("source.principal"), _principals, _principals),
    st.builds(Condition, one_of("source.namespace"), _namespaces, _namespaces),
    st.builds(Condition, one_of("source.ip", "destination.ip"), _blocks, _blocks),
    st.builds(Condition, one_of("destination.port"), _port_texts, _port_texts),
    st.builds(
        Condition, one_of("connection.sni", "request.headers[x]", "remote.ip", "made.up"), one_of(("a",)), one_of(())
    ),
)
rules = st.builds(Rule, tuples(sources), tuples(operations), tuples(conditions))
selectors = st.dictionaries(one_of("app", "version"), one_of("web", "v1"), max_size=2)
policies = st.builds(
    Policy,
    one_of("p0", "p1", "p2", "p3"),
    st.sampled_from(NAMESPACES),
    st.sampled_from(Action),
    tuples(rules),
    selectors,
    one_of(False, False, True),
)
peer_auths = st.builds(
    PeerAuth,
    one_of("a0", "a1", "a2"),
    st.sampled_from(NAMESPACES),
    st.sampled_from(MtlsMode),
    selectors,
    st.dictionaries(st.sampled_from(PORTS), st.sampled_from(MtlsMode), max_size=2),
    st.integers(0, 2),
)

workloads = st.builds(
    lambda name, at, meshed, namespace, version: workload(
        name, *at, meshed=meshed, namespace=namespace, version=version
    ),
    one_of("a", "b", "c"),
    tuples(st.sampled_from(ADDRESSES)),
    st.booleans(),
    st.sampled_from(NAMESPACES[:2]),
    one_of("", "v1", "v2"),
)
endpoints = st.builds(
    Endpoint, st.sampled_from(ADDRESSES), one_of("", "shop/a", "shop/b", "other/c"), tuples(one_of(0, 8080, 15008), 3)
)
services = st.builds(
    service,
    one_of("x", "y", "z"),
    addresses=tuples(st.sampled_from(ADDRESSES)),
    ports=tuples(st.sampled_from(PORTS), 3),
    endpoints=tuples(endpoints, 3),
    namespace=st.sampled_from(NAMESPACES[:2]),
)
configs = st.builds(MeshConfig, ranges=st.sampled_from([(), ("10.77.0.0/16",), ("10.77.0.0/24", "fd00::/32")]))

_backends = st.builds(Backend, one_of("shop/x", "other/y"), st.sampled_from(PORTS), st.integers(0, 2))
_edits = st.none() | st.builds(HeaderEdit, one_of((("x-a", "1"),)), one_of(()), one_of(("x-b",)))
_rules = st.builds(
    RouteRule, backends=tuples(_backends), request_headers=_edits, mirrors=tuples(st.builds(Mirror, _backends))
)
routes = st.builds(
    Route,
    one_of("HTTPRoute", "GRPCRoute"),
    one_of("r0", "r1"),
    st.sampled_from(NAMESPACES[:2]),
    tuples(st.builds(Parent, one_of("shop/x", "other/y"), one_of(0, *PORTS)), 3),
    tuples(_rules),
    st.integers(0, 2),
)
traffic = st.builds(
    TrafficPolicy,
    one_of("t0", "t1"),
    st.sampled_from(NAMESPACES[:2]),
    one_of("shop/x", "other/y"),
    st.integers(0, 2),
    fault=st.none() | st.builds(Fault, st.sampled_from([0.5, 1.0]), st.integers(0, 10_000)),
    rate_limits=tuples(st.builds(RateLimit, one_of("a"), st.integers(1, 5))),
    versions=st.dictionaries(one_of("v1", "v2"), st.integers(0, 3)),
)
