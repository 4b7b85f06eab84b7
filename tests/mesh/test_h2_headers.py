"""Where our header decoder takes the short cut, and where it must not (the corpora are in tests/interop)."""

from __future__ import annotations

import hpack
import pytest

from mesh.h2.headers import Decoder, HeaderError, encode_field, encode_status


class NeverAsked:
    """Stands where the full decoder is, for blocks that must not reach it."""

    def decode(self, block: bytes, raw: bool) -> None:
        raise AssertionError(f"{block!r} took the long way")


@pytest.fixture
def short() -> Decoder:
    decoder = Decoder()
    decoder._decoder = NeverAsked()  # type: ignore[assignment]
    return decoder


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254])
def test_our_own_fields_take_the_short_cut(short: Decoder, size: int) -> None:
    for name in (b":authority", b"accept-encoding", b"www-authenticate", b"baggage"):
        assert short.decode(encode_field(name, b"v" * size)) == [(name, b"v" * size)]


def test_long_values_and_names_are_read_the_long_way() -> None:
    for name, value in ((b"a", b"v" * 255), (b"a", b"v" * 70_00), (b"n" * 127, b"v"), (b"n" * 300, b"v" * 40_000)):
        assert Decoder().decode(encode_field(name, value)) == [(name, value)]


@pytest.mark.parametrize("status", [200, 204, 400, 401, 404, 500, 503])
def test_a_status_is_encoded_and_read_back(short: Decoder, status: int) -> None:
    assert short.decode(encode_status(status)) == [(b":status", str(status).encode())]


@pytest.mark.parametrize(
    "block",
    [b"\x80", b"\xbe", b"\x0f\x7f\x00", b"\x00\x01a\x05abc", b"\x00\x05ab", b"\x00", b"\x01", b"\x0f", b"\x01\x7f\xff"],
    ids=[
        "index 0", "empty table", "no such static name", "value cut", "name cut", "no name", "no value", "no index",
        "length cut",
    ],
)  # fmt: skip
def test_a_broken_block_is_an_error(block: bytes) -> None:
    with pytest.raises(HeaderError):
        Decoder().decode(block)


def test_the_short_cut_leaves_the_dynamic_table_to_the_full_decoder() -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    fields = [(b"x-trace", b"abc")]
    assert decoder.decode(encoder.encode(fields)) == fields
    assert decoder.decode(encode_field(b"x-trace", b"plain")) == [(b"x-trace", b"plain")]
    assert decoder.decode(encoder.encode(fields)) == fields


def test_a_never_indexed_literal_is_an_ordinary_one(short: Decoder) -> None:
    assert short.decode(b"\x10\x01a\x01b") == [(b"a", b"b")]


def test_a_huffman_value_is_read_the_long_way() -> None:
    assert Decoder().decode(bytes.fromhex("0286a8eb10649cbf")) == [(b":method", b"no-cache")]
