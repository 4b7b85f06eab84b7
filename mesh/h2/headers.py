"""HPACK (RFC 7541) for tunnels: an encoder that never touches the dynamic table, and a decoder with a short cut.

Both ends of a tunnel are usually ours, and our blocks hold only static names and plain literals. Those decode in a few
microseconds here; any other block goes to the `hpack` library, which keeps the dynamic table.
"""

from __future__ import annotations

import hpack
from hpack.table import HeaderTable

Fields = list[tuple[bytes, bytes]]

MAX_LIST = 65_536
"""Largest header list accepted, bytes by RFC 9113 section 6.5.2's count."""

_STATIC: tuple[tuple[bytes, bytes], ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_INDEX = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC)))}


class HeaderError(ValueError):
    """A header block that does not decode: a COMPRESSION_ERROR, which ends the connection."""


def _string(value: bytes) -> bytes:
    length = len(value)
    if length < 127:
        return bytes((length,)) + value
    out, rest = bytearray((127,)), length - 127
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out) + value


def encode_field(name: bytes, value: bytes) -> bytes:
    """One field as a literal without indexing; concatenate these for a block. `name` must be lower-case."""
    index = _INDEX.get(name, 0)
    if 0 < index < 15:
        return bytes((index,)) + _string(value)
    if index:
        return bytes((15, index - 15)) + _string(value)
    return b"\x00" + _string(name) + _string(value)


def encode_status(status: int) -> bytes:
    """A block of `:status` alone."""
    known = {200: b"\x88", 400: b"\x8c", 500: b"\x8e"}
    return known.get(status) or b"\x08" + _string(str(status).encode())


class Decoder:
    """The decoding half of one connection."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_LIST)

    def decode(self, block: bytes) -> Fields:
        """The fields of a block, in order; raises `HeaderError`."""
        fields = _decode_plain(block)
        if fields is not None:
            return fields
        try:
            return [(bytes(name), bytes(value)) for name, value, *_ in self._decoder.decode(block, raw=True)]
        except hpack.HPACKError as error:
            raise HeaderError(str(error)[:100]) from error  # some quote the whole block


def _decode_plain(block: bytes) -> Fields | None:
    """Decode a block of static entries and short plain literals; None where it holds, or may hold, anything else."""
    fields: Fields = []
    at, end, size = 0, len(block), 0
    try:
        while at < end:
            first = block[at]
            at += 1
            if first >= 0x80:
                if not 0x81 <= first <= 0xBD:
                    return None
                name, value = _STATIC[first - 0x80]
            elif first >= 0x20:
                return None
            else:
                index = first & 15
                if index == 15:
                    index += block[at]
                    at += 1
                    if index > 61:
                        return None
                if index:
                    name = _STATIC[index][0]
                else:
                    length = block[at]
                    if length >= 127:
                        return None
                    name = block[at + 1 : at + 1 + length]
                    at += 1 + length
                length = block[at]
                at += 1
                if length >= 127:
                    if length > 127 or block[at] >= 128:
                        return None
                    length += block[at]
                    at += 1
                value = block[at : at + length]
                at += length
                if at > end:
                    return None
            size += len(name) + len(value) + 32
            fields.append((name, value))
    except IndexError:
        return None
    return fields if size <= MAX_LIST else None
