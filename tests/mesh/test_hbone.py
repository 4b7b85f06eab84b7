"""What a CONNECT says, and what it must not be able to say."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import hbone
from mesh.h2.headers import Decoder, Fields
from mesh.model import Workload

WEB = Workload("shop/web", "web", "shop", "web", "node-a", ("10.77.2.2", "fd00::2"), True, "web", "v2")
TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def fields(authority: bytes = b"10.77.2.2:8080", *more: tuple[bytes, bytes]) -> Fields:
    return [(b":method", b"CONNECT"), (b":authority", authority), *more]


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_is_read_as_it_was_written(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    assert hbone.parse_address(hbone.format_address(str(address), port)) == (str(address), port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:80809", "10.0.0.1:-1",
        "10.0.0.1:+80", "[fe80::1%" + "x" * 60_000 + "]:80",
        "10.0.0.1: 80", "10.0.0.1:８０", "10.0.0.1:1_0", "[10.0.0.1]:80", "fd00::1:80", "[fd00::1]", "[fd00::1:80",
        "web.shop:80", "10.0.0.256:80", "[]:80", "010.0.0.1:80", "10.0.0.1:0000809999", "10.0.0.1:000080" + "9" * 5000,
        "10.0.0.1:" + "8" * 100_000,
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_what_is_not_an_address_and_a_port_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        hbone.parse_address(text)
    assert len(str(refused.value)) < 200
    assert isinstance(hbone.parse_connect(fields(text.encode())), str)


def test_a_refusal_does_not_carry_a_long_authority_into_the_log() -> None:
    for authority in (b"x" * 60_000 + b":80", b"\xff" * 60_000, b"x" * 60_000):
        refused = hbone.parse_connect(fields(authority))
        assert isinstance(refused, str)
        assert len(refused) < 300


@given(st.binary(max_size=40))
def test_any_authority_is_read_or_refused(authority: bytes) -> None:
    request = hbone.parse_connect(fields(authority))
    if isinstance(request, hbone.Request):
        ipaddress.ip_address(request.address)
        assert 0 < request.port < 65536


def test_our_connect_is_read_as_what_it_was_made_of() -> None:
    block = hbone.connect("fd00::2", 8080, "10.77.1.2:40000", TRACE, hbone.baggage(WEB, "demo"))
    request = hbone.parse_connect(Decoder().decode(block))
    assert request == hbone.Request(
        "fd00::2",
        8080,
        ("10.77.1.2", 40000),
        "k8s.cluster.name=demo,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v2",
        TRACE,
    )


def test_a_workload_without_app_or_version_is_named_by_itself() -> None:
    bare = Workload("shop/web", "web-1", "shop", "web", "node-a", (), True)
    assert hbone.baggage(bare, "c").endswith(b"service.name=web-1,service.version=latest")


@pytest.mark.parametrize(
    "wrong",
    [
        [(b":method", b"GET"), (b":authority", b"10.0.0.1:80")],
        [(b":authority", b"10.0.0.1:80")],
        [(b":method", b"CONNECT")],
        fields(b"10.0.0.1:80", (b":authority", b"10.0.0.2:80")),
        fields(b"10.0.0.1:80", (b":method", b"CONNECT")),
        fields(b"10.0.0.1:80", (b":path", b"/")),
        fields(b"10.0.0.1:80", (b":protocol", b"websocket")),
        fields(b"10.0.0.1:80", (b":" + b"x" * 50_000, b"")),
    ],
)
def test_a_request_that_is_not_a_plain_connect_is_refused(wrong: Fields) -> None:
    refused = hbone.parse_connect(wrong)
    assert isinstance(refused, str)
    assert len(refused) < 200


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (b'for="10.0.0.1:99"', ("10.0.0.1", 99)),
        (b"For=10.0.0.1:99", ("10.0.0.1", 99)),
        (b'for="[fd00::1]:99"', ("fd00::1", 99)),
        (b"", None),
        (b"by=10.0.0.1:99", None),
        (b"for=unknown", None),
        (b"for=10.0.0.1", None),
        (b'for="\xff"', None),
    ],
)
def test_forwarded_names_the_client_if_it_can_be_read(value: bytes, source: tuple[str, int] | None) -> None:
    request = hbone.parse_connect(fields(b"10.77.2.2:8080", (b"forwarded", value)))
    assert isinstance(request, hbone.Request)
    assert request.source == source


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ([(b":status", b"200")], 200),
        ([(b"x", b"y"), (b":status", b"503")], 503),
        ([(b":status", b"20")], 0),
        ([(b":status", b"2000")], 0),
        ([(b":status", "２００".encode())], 0),
        ([(b":status", b"abc")], 0),
        ([], 0),
    ],
)
def test_a_status_is_three_digits_or_none(answer: Fields, status: int) -> None:
    assert hbone.parse_status(answer) == status


@pytest.mark.parametrize(
    ("block", "status"),
    [(hbone.OK, 200), (hbone.BAD_REQUEST, 400), (hbone.DENIED, 401), (hbone.UNAVAILABLE, 503)],
)
def test_our_answers_say_their_status(block: bytes, status: int) -> None:
    assert hbone.parse_status(Decoder().decode(block)) == status
