"""What a connection speaks: as its port declares it.

As Istio's protocol selection has it, which is what people's manifests are written for
(https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/).
"""

from __future__ import annotations

from functools import lru_cache

from mesh.model import ServicePort

_KNOWN = {
    "http": "http",
    "http2": "http2",
    "grpc": "grpc",
    "grpc-web": "http",
    "https": "tcp",
    "tls": "tcp",
    "hbone": "tcp",
    "tcp": "tcp",
    "mongo": "tcp",
    "mysql": "tcp",
    "postgres": "tcp",
    "postgresql": "tcp",
    "redis": "tcp",
}
"""TLS stays opaque: what is inside is the application's own."""
_KUBERNETES = {"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "tcp"}
_SERVER_FIRST = frozenset({25, 53, 3306, 27017})
"""SMTP, DNS, MySQL, MongoDB: waiting there for the client's first bytes would be waiting for ever."""


@lru_cache(4096)
def protocol(port: ServicePort) -> str:
    """The declared protocol: `http` (1.1), `http2`, `grpc`, `tcp` (opaque), or `""` where nothing is declared.

    `appProtocol` counts before the name; of either, the whole or what is before its first `-`.
    """
    if (standard := _KUBERNETES.get(port.app_protocol)) is not None:
        return standard
    word = (port.app_protocol or port.name).lower()
    prefix = "grpc-web" if word.startswith("grpc-web") else word.partition("-")[0]
    return _KNOWN.get(prefix) or ("tcp" if port.port in _SERVER_FIRST else "")
