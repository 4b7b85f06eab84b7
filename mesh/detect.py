"""What a connection speaks: as its port declares it, or as its first bytes show.

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


HTTP1, HTTP2, OPAQUE = "http1", "http2", "opaque"
FIRST_BYTES = 24
"""How many bytes are enough for `speaks`."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_UPPER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LONGEST_METHOD = 16


def speaks(first: bytes) -> str:
    """What a client's first bytes look like; `""` if it takes more of them to tell.

    HTTP/1 is a method of capital letters and a blank. That is no proof, but a parser follows, which is strict.
    """
    if first.startswith(_PREFACE[: len(first)]):
        return HTTP2 if len(first) >= len(_PREFACE) else ""
    head = first[: _LONGEST_METHOD + 1]
    method, blank, _ = head.partition(b" ")
    if not _UPPER.issuperset(method) or (blank and not method):
        return OPAQUE
    if blank:
        return HTTP1
    return OPAQUE if len(method) > _LONGEST_METHOD else ""
