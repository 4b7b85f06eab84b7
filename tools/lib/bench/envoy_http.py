"""Envoy as an HTTP proxy in pairs: routes at the source, RBAC at the destination, HBONE over mutual TLS between.

As in Istio's ambient proxies, each side has HTTP in one listener and the tunnel in another, with an internal listener
between them; the client's SPIFFE id crosses that of the destination in filter state, where RBAC reads it, as Istio's
waypoint has it. Left out, in Envoy's favour: statistics by Istio's labels, request ids, the client's source address.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import work
from bench.certificates import Credentials
from bench.envoy import (
    HBONE_PORT,
    OUTBOUND_PORT,
    Config,
    address,
    http_options,
    json_log,
    marked,
    tls,
    typed,
    unlimited,
)
from bench.work import Protocol

EXTENSIONS = (typed("envoy.bootstrap.internal_listener", "bootstrap.internal_listener.v3.InternalListener"),)
_PEER = "io.istio.peer_principal"
_LOG = {
    "time": "%START_TIME%",
    "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "route": "%ROUTE_NAME%",
    "upstream_host": "%UPSTREAM_HOST%",
    "method": "%REQ(:METHOD)%",
    "authority": "%REQ(:AUTHORITY)%",
    "path": "%REQ(:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "reason": "%RESPONSE_CODE_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_ms": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
}


def client(credentials: Credentials, *, server: str, mark: int, accepts: Sequence[str], log: Path) -> Config:
    """HTTP on 15001, routed to `server`'s ports through HTTP/2 CONNECT over mutual TLS to its port 15008.

    `mark`: SO_MARK of its own connections, so that capture lets them go. `accepts`: SPIFFE ids the server may have.
    """
    hosts = [(protocol, f"service {protocol.port}") for protocol in work.PROTOCOLS]
    outbound = {
        "name": "outbound",
        "address": address("0.0.0.0", OUTBOUND_PORT),
        "transparent": True,
        "tcp_backlog_size": 4096,
        "listener_filters": [
            typed("envoy.filters.listener.original_dst", "filters.listener.original_dst.v3.OriginalDst")
        ],
        **_chain(_http("outbound", [_host(*host, routed=True) for host in hosts], [], log)),
    }
    tunnels = [_originate(protocol, server) for protocol in work.PROTOCOLS]
    services = [
        _internal(f"service {protocol.port}", f"tunnel {protocol.port}", typed_extension_protocol_options=_AS_CLIENT)
        for protocol in work.PROTOCOLS
    ]
    hbone = {
        **_static("hbone", address(server, HBONE_PORT)),
        "upstream_bind_config": marked(mark),
        "typed_extension_protocol_options": http_options(
            explicit_http_config={"http2_protocol_options": {"max_concurrent_streams": 100}}
        ),
        "transport_socket": typed(
            "envoy.transport_sockets.tls",
            "transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context=tls(credentials, accepts),
        ),
    }
    return {"listeners": [outbound, *tunnels], "clusters": [*services, hbone]}


def server(
    credentials: Credentials, *, pod: str, mark: int, accepts: Sequence[str], log: Path, policies: int = work.POLICIES
) -> Config:
    """Mutual TLS and HTTP/2 CONNECT on 15008; the HTTP inside checked against RBAC, then sent to `pod`'s ports.

    `accepts`: SPIFFE ids the client may have; the policies permit the first.
    """
    peer = typed(
        "envoy.filters.http.set_filter_state",
        "filters.http.set_filter_state.v3.Config",
        on_request_headers=[
            {
                "object_key": _PEER,
                "factory_key": "envoy.string",
                "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_PEER_URI_SAN%"}},
                "shared_with_upstream": "ONCE",
            }
        ],
    )
    connect = _http(
        "connect",
        [
            {
                "name": "any",
                "domains": ["*"],
                "routes": [
                    {
                        "match": {"connect_matcher": {}},
                        "route": {
                            "cluster": "http",
                            "timeout": "0s",
                            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                        },
                    }
                ],
            }
        ],
        [peer],
        log,
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True, "max_concurrent_streams": 100},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        stream_idle_timeout="0s",
    )
    inbound = {
        "name": "inbound",
        "address": address("0.0.0.0", HBONE_PORT),
        "tcp_backlog_size": 4096,
        **_chain(
            connect,
            transport_socket=typed(
                "envoy.transport_sockets.tls",
                "transport_sockets.tls.v3.DownstreamTlsContext",
                require_client_certificate=True,
                disable_stateless_session_resumption=True,
                disable_stateful_session_resumption=True,
                common_tls_context=tls(credentials, accepts),
            ),
        ),
    }
    hosts = [(protocol, f"local {protocol.port}") for protocol in work.PROTOCOLS]
    inner = {
        "name": "http",
        "internal_listener": {},
        **_chain(_http("inner", [_host(*host) for host in hosts], [_rbac(accepts[0], policies)], log)),
    }
    passing = typed(
        "envoy.transport_sockets.internal_upstream",
        "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        transport_socket=typed("envoy.transport_sockets.raw_buffer", "transport_sockets.raw_buffer.v3.RawBuffer"),
    )
    local = [
        {
            **_static(f"local {protocol.port}", address(pod, protocol.target_port)),
            "upstream_bind_config": marked(mark),
            "typed_extension_protocol_options": _AS_CLIENT,
        }
        for protocol in work.PROTOCOLS
    ]
    return {"listeners": [inbound, inner], "clusters": [_internal("http", "http", transport_socket=passing), *local]}


_AS_CLIENT = http_options(
    use_downstream_protocol_config={
        "http_protocol_options": {},
        "http2_protocol_options": {"max_concurrent_streams": 100},
    }
)
"""To a backend as the client came: HTTP/1.1 or HTTP/2."""


def _http(stat_prefix: str, hosts: list[Config], filters: list[Config], log: Path, **fields: object) -> Config:
    options: Config = {
        "stat_prefix": stat_prefix,
        "codec_type": "AUTO",
        "generate_request_id": False,
        "route_config": {"name": stat_prefix, "virtual_hosts": hosts},
        "http_filters": [*filters, typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        "access_log": [json_log(log, _LOG)],
    } | fields
    return typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        **options,
    )


def _host(protocol: Protocol, cluster: str, *, routed: bool = False) -> Config:
    """What the service's port leads to; `routed`: by the rules of its route."""
    to = {"cluster": cluster, "timeout": "0s"}
    routes: list[Config] = []
    if routed:
        name, value = work.CANARY
        canary = {"prefix": "/", "headers": [{"name": name, "string_match": {"exact": value}}]}
        routes = [{"name": "canary", "match": canary, "route": to}]
        routes += [
            {"name": prefix[1:], "match": {"path_separated_prefix": prefix}, "route": to}
            for prefix in (*work.OTHER_ROUTES, work.ROUTE)
        ]
    else:
        routes = [{"match": {"prefix": "/"}, "route": to}]
    return {"name": cluster, "domains": list(protocol.hosts), "routes": routes}


def _rbac(identity: str, policies: int) -> Config:
    principal = {"filter_state": {"key": _PEER, "string_match": {"exact": identity}}}
    methods = [
        {"header": {"name": ":method", "string_match": {"exact": method}}} for method in work.METHODS
    ]  # fmt: skip
    rules: Config = {
        work.policy_name(number): {
            "principals": [{"and_ids": {"ids": [{"or_ids": {"ids": [principal]}}]}}],
            "permissions": [
                {
                    "and_rules": {
                        "rules": [
                            {"or_rules": {"rules": methods}},
                            {
                                "or_rules": {
                                    "rules": [
                                        {"url_path": {"path": {"prefix": prefix}}}
                                        for prefix in work.policy_paths(number, policies)
                                    ]
                                }
                            },
                        ]
                    }
                }
            ],
        }
        for number in range(policies)
    }
    return typed("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": rules})


def _originate(protocol: Protocol, server: str) -> Config:
    """An internal listener whose connections are tunnelled to one port of the server."""
    proxy = typed(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="tunnel",
        cluster="hbone",
        tunneling_config={"hostname": f"{server}:{protocol.target_port}"},
    )
    return {"name": f"tunnel {protocol.port}", "internal_listener": {}, **_chain(proxy)}


def _chain(network_filter: Config, **fields: object) -> Config:
    return {"filter_chains": [{"filters": [network_filter], **fields}]}


def _internal(name: str, listener: str, **fields: object) -> Config:
    return _static(name, {"envoy_internal_address": {"server_listener_name": listener}}) | fields


def _static(name: str, endpoint: Config) -> Config:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": unlimited(),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}],
        },
    }
