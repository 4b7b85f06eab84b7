"""HBONE: what a tunnel's CONNECT says (Istio ambient mode's wire, over RFC 9113 section 8.5).

A request names the destination in `:authority` and carries `baggage`, `forwarded` and `traceparent`. Only the first is
acted on; who the source is, its certificate says.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from mesh.h2.headers import Fields, encode_field, encode_status
from mesh.model import Workload

OK = encode_status(200)
BAD_REQUEST = encode_status(400)
DENIED = encode_status(401)
UNAVAILABLE = encode_status(503)

_CONNECT = encode_field(b":method", b"CONNECT")
_LONGEST = len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535")


def format_address(address: str, port: int) -> str:
    """`address:port`, with brackets around IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """Read `address:port` or `[address]:port`; return the canonical address. Raises `ValueError` for anything else."""
    host, colon, port = text.rpartition(":")
    short = len(text) <= _LONGEST  # what is longer must not get into a log line either, by way of an IPv6 zone, say
    if not short or not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text[:80]!r} is not address:port")
    return _canonical(host), int(port)


@lru_cache(4096)
def _canonical(host: str) -> str:
    """An address out of an authority. Remembered, for parsing one costs more than all else here and they repeat."""
    bracketed = host.startswith("[") and host.endswith("]")
    address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    if bracketed != (address.version == 6):
        raise ValueError(f"{host[:80]!r}: brackets are for IPv6")
    return str(address)


def baggage(workload: Workload, cluster: str) -> bytes:
    """The encoded `baggage` field of a source workload; the same for all its connections."""
    app = workload.app or workload.name
    value = (
        f"k8s.cluster.name={cluster},k8s.namespace.name={workload.namespace},"
        f"k8s.deployment.name={app},service.name={app},service.version={workload.version or 'latest'}"
    )
    return encode_field(b"baggage", value.encode())


def connect(address: str, port: int, source: str, traceparent: str, baggage_field: bytes) -> bytes:
    """The header block of a CONNECT to `address:port` for a client at `source` (as `format_address` writes it)."""
    return b"".join(
        (
            _CONNECT,
            encode_field(b":authority", format_address(address, port).encode()),
            encode_field(b"forwarded", f'for="{source}"'.encode()),
            encode_field(b"traceparent", traceparent.encode()),
            baggage_field,
        )
    )


@dataclass(frozen=True, slots=True)
class Request:
    """A CONNECT that makes sense."""

    address: str
    port: int
    source: tuple[str, int] | None
    """What `forwarded` says of the client, if it can be read. To be believed only where the address fits the tunnel."""
    baggage: str
    traceparent: str


def parse_connect(fields: Fields) -> Request | str:
    """Read a request's fields; a string says why it is refused with status 400.

    `host:port` is refused for now: only an address can be checked against the workload that the tunnel came to.
    """
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        if name.startswith(b":") and (name in values or name not in (b":method", b":authority")):
            return f"pseudo-header {name[:40]!r} is not part of a CONNECT"
        values[name] = value
    if values.get(b":method") != b"CONNECT":
        return "the method is not CONNECT"
    try:
        address, port = parse_address(values.get(b":authority", b"").decode("ascii"))
    except ValueError as error:  # UnicodeDecodeError is one
        return f"authority: {error}"
    return Request(
        address,
        port,
        _forwarded(values.get(b"forwarded", b"")),
        values.get(b"baggage", b"").decode("latin-1"),
        values.get(b"traceparent", b"").decode("latin-1"),
    )


def _forwarded(value: bytes) -> tuple[str, int] | None:
    """RFC 7239: `for="ip:port"`."""
    name, _, text = value.partition(b"=")
    try:
        return parse_address(text.strip(b'"').decode("ascii")) if name.lower() == b"for" else None
    except ValueError:
        return None


def parse_status(fields: Fields) -> int:
    """The status of a response's fields; 0 if there is none that makes sense."""
    for name, value in fields:
        if name == b":status":
            return int(value) if len(value) == 3 and value.isdigit() else 0
    return 0
