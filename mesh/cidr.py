"""Sets of address blocks, compiled once so that asking costs one look-up for each distinct prefix length."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_MAPPED = 0xFFFF << 32
"""`::ffff:0:0/96`, where IPv6 writes IPv4 addresses (RFC 4291, 2.5.5.2)."""

Address = tuple[int, int]
"""IP version and value."""


def parse_address(text: str) -> Address:
    """Read an address; an IPv4-mapped IPv6 one counts as IPv4. Raises `ValueError`."""
    address = ipaddress.ip_address(text)
    value = int(address)
    if address.version == 6 and value >> 32 == _MAPPED >> 32:
        return 4, value & 0xFFFFFFFF
    return address.version, value


class Blocks:
    """A set of CIDR blocks and single addresses. Host bits are ignored (`10.1.2.3/8` is `10.0.0.0/8`), as in Istio."""

    __slots__ = ("_by_length",)

    def __init__(self, blocks: Iterable[str]) -> None:
        """Compile; raises `ValueError` naming the first block that is not one."""
        by_length: dict[tuple[int, int], set[int]] = {}
        for block in blocks:
            network = ipaddress.ip_network(block, strict=False)
            version, value = int(network.version), int(network.network_address)
            host_bits = int(network.max_prefixlen) - network.prefixlen
            if version == 6 and host_bits <= 32 and value >> 32 == _MAPPED >> 32:
                version, value = 4, value & 0xFFFFFFFF
            by_length.setdefault((version, host_bits), set()).add(value >> host_bits)
        self._by_length = tuple((version, bits, frozenset(nets)) for (version, bits), nets in by_length.items())

    def __contains__(self, address: Address) -> bool:
        """Whether any block holds it; a block never holds an address of the other version."""
        version, value = address
        return any(v == version and value >> bits in nets for v, bits, nets in self._by_length)
