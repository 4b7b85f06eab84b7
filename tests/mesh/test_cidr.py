"""Blocks against the standard library's own networks."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.cidr import Blocks, parse_address

v4 = st.ip_addresses(v=4, network="10.0.0.0/28")
v6 = st.ip_addresses(v=6, network="fd00::/124")
addresses = st.one_of(v4, v6)
blocks = st.one_of(
    st.tuples(v4, st.integers(24, 32)), st.tuples(v6, st.integers(120, 128)), st.tuples(v4, st.just(0))
).map(lambda drawn: f"{drawn[0]}/{drawn[1]}")


@given(st.lists(blocks, max_size=5), addresses)
def test_blocks_hold_what_one_of_their_networks_holds(
    drawn: list[str], address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    expected = any(address in ipaddress.ip_network(block, strict=False) for block in drawn)
    assert (parse_address(str(address)) in Blocks(drawn)) is expected


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_an_ipv4_mapped_address_or_block_is_its_ipv4_one(address: ipaddress.IPv4Address, length: int) -> None:
    assert parse_address(f"::ffff:{address}") == parse_address(str(address)) == (4, int(address))
    assert parse_address(str(address)) in Blocks([f"::ffff:{address}/{96 + length}"])
    assert parse_address(f"::ffff:{address}") in Blocks([f"{address}/{length}"])


def test_a_block_wider_than_the_mapped_ones_is_an_ipv6_block() -> None:
    assert parse_address("10.0.0.1") not in Blocks(["::/0"])
    assert parse_address("10.0.0.1") not in Blocks(["::ffff:0:0/95"])
    assert parse_address("::1") in Blocks(["::/0"])


@pytest.mark.parametrize("block", ["10.0.0.0/33", "10.0.0", "fd00::/129", "web"])
def test_what_is_no_block_is_named(block: str) -> None:
    with pytest.raises(ValueError, match=block):
        Blocks(["10.0.0.0/8", block])
