"""Header blocks, field by field (the corpora, and the library that nobody here wrote, are in tests/interop)."""

from __future__ import annotations

import hpack
import pytest

from mesh.h2.headers import Decoder, HeaderError, encode_field, encode_status


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254])
def test_our_own_fields_are_read_back(size: int) -> None:
    for name in (b":authority", b"accept-encoding", b"www-authenticate", b"baggage"):
        assert Decoder().decode(encode_field(name, b"v" * size)) == [(name, b"v" * size)]


def test_long_values_and_names_are_read_back() -> None:
    for name, value in ((b"a", b"v" * 255), (b"a", b"v" * 70_00), (b"n" * 127, b"v"), (b"n" * 300, b"v" * 40_000)):
        assert Decoder().decode(encode_field(name, value)) == [(name, value)]


@pytest.mark.parametrize("status", [200, 204, 400, 401, 404, 500, 503])
def test_a_status_is_encoded_and_read_back(status: int) -> None:
    assert Decoder().decode(encode_status(status)) == [(b":status", str(status).encode())]


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


def test_blocks_that_repeat_each_other_follow_the_dynamic_table() -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    fields = [(b"x-trace", b"abc")]
    assert decoder.decode(encoder.encode(fields)) == fields
    assert decoder.decode(encode_field(b"x-trace", b"plain")) == [(b"x-trace", b"plain")]
    block = encoder.encode(fields)
    for _ in range(3):
        assert decoder.decode(block) == fields
    other = [(b"x-other", b"def")]
    assert decoder.decode(encoder.encode(other)) == other
    assert decoder.decode(block) == other  # the same index, of a table that has changed


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = Decoder()
    kept = decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe") == kept
    assert decoder.decode(b"\x40\x01a\x7f\x81\x1f" + b"v" * 4096) == [(b"a", b"v" * 4096)]
    with pytest.raises(HeaderError):
        decoder.decode(b"\xbe")


def test_the_oldest_entries_make_room() -> None:
    decoder = Decoder()
    for number in range(200):
        decoder.decode(b"\x40\x01a\x03%03d" % number)
    held = 4096 // (32 + 4)
    assert decoder.decode(b"\xbe") == [(b"a", b"199")]
    assert decoder.decode(b"\xff%c" % (62 + held - 1 - 127)) == [(b"a", b"%03d" % (200 - held))]
    with pytest.raises(HeaderError):
        decoder.decode(b"\xff%c" % (62 + held - 127))


@pytest.mark.parametrize("size", [0, 31, 40, 4096])
def test_a_table_made_smaller_forgets_the_oldest(size: int) -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x01b")
    update = b"\x3f%b" % _integer(size - 31) if size >= 31 else bytes((0x20 | size,))
    if size < 34:
        with pytest.raises(HeaderError):
            decoder.decode(update + b"\xbe")
    else:
        assert decoder.decode(update + b"\xbe") == [(b"a", b"b")]


@pytest.mark.parametrize("block", [b"\x3f\xe2\x1f", b"\x82\x20"], ids=["larger than allowed", "behind a field"])
def test_a_change_of_the_tables_size_has_its_limits(block: bytes) -> None:
    with pytest.raises(HeaderError):
        Decoder().decode(block)


def _integer(rest: int) -> bytes:
    out = bytearray()
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes((*out, rest))


def test_a_never_indexed_literal_is_an_ordinary_one() -> None:
    assert Decoder().decode(b"\x10\x01a\x01b") == [(b"a", b"b")]


def test_a_huffman_value_is_read() -> None:
    assert Decoder().decode(bytes.fromhex("0286a8eb10649cbf")) == [(b":method", b"no-cache")]


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xff\xff\xff\xff", b"\x00", b"\xff\xff\xff\xfc"], ids=["padding of a byte", "EOS", "cut", "no"]
)
def test_what_is_not_of_huffmans_code_is_an_error(text: bytes) -> None:
    with pytest.raises(HeaderError):
        Decoder().decode(b"\x02" + bytes((0x80 | len(text),)) + text)
