"""Header blocks of other people's encoders, and arbitrary ones: our short cut must decode as the full decoder does."""

from __future__ import annotations

import json
from pathlib import Path

import hpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.h2.headers import MAX_LIST, Decoder, HeaderError, encode_field

STORIES = sorted((Path(__file__).parent / "hpack_stories").glob("*.json"))

octets = st.binary(max_size=20) | st.binary(min_size=120, max_size=300)
known = st.sampled_from([b":authority", b":method", b":status", b"accept-encoding", b"www-authenticate", b"cookie"])
lists = st.lists(st.tuples(known | octets.filter(bool), octets, st.booleans()), max_size=6)
literal = st.tuples(known | octets.filter(bool), octets).map(lambda field: encode_field(*field))


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.stem)
def test_a_story_of_http2jp_decodes_to_its_headers(story: Path) -> None:
    """One connection's blocks, in order, by the encoder of that name (https://github.com/http2jp/hpack-test-case)."""
    decoder = Decoder()
    for case in json.loads(story.read_text())["cases"]:
        want = [(name.encode(), value.encode()) for header in case["headers"] for name, value in header.items()]
        assert decoder.decode(bytes.fromhex(case["wire"])) == want, case["seqno"]


@settings(deadline=None)
@given(st.lists(st.tuples(lists, st.booleans()), max_size=6))
def test_blocks_that_use_the_dynamic_table_decode_between_blocks_that_do_not(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool]],
) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for fields, huffman in blocks:
        plain = [(name, value) for name, value, _ in fields]
        own = b"".join(encode_field(name, value) for name, value in plain)
        assert decoder.decode(own) == plain
        theirs = [hpack.HeaderTuple(n, v) if index else hpack.NeverIndexedHeaderTuple(n, v) for n, v, index in fields]
        assert decoder.decode(encoder.encode(theirs, huffman=huffman)) == plain


@settings(deadline=None, max_examples=400)
@given(st.lists(st.lists(literal | st.binary(max_size=12), max_size=4).map(b"".join), max_size=3))
@example([b"\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
@example([b"\x00\x01a\x7f\x00" + b"v" * 127])
def test_any_block_decodes_or_fails_as_with_the_full_decoder(blocks: list[bytes]) -> None:
    ours, full = Decoder(), hpack.Decoder(max_header_list_size=MAX_LIST)
    for block in blocks:
        try:
            want = [(bytes(name), bytes(value)) for name, value in full.decode(block, raw=True)]
        except hpack.HPACKError:
            with pytest.raises(HeaderError):
                ours.decode(block)
            return
        assert ours.decode(block) == want


@given(st.lists(st.tuples(known | octets.filter(bool), octets), max_size=6))
def test_what_we_encode_the_library_reads_back(fields: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(encode_field(name, value) for name, value in fields)
    assert [tuple(field) for field in hpack.Decoder(max_header_list_size=MAX_LIST).decode(block, raw=True)] == fields
