"""HPACK (RFC 7541): an encoder that never touches the dynamic table, and a decoder of our own loop.

The `hpack` library has the tables and is what the tests hold this to; its own loop takes ten times as long.
"""

from __future__ import annotations

from collections import deque

import hpack
from hpack.hpack import decode_integer
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE
from hpack.table import HeaderTable

Fields = list[tuple[bytes, bytes]]

MAX_LIST = 65_536
"""Largest header list accepted, bytes by RFC 9113 section 6.5.2's count."""

_STATIC: tuple[tuple[bytes, bytes], ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_INDEX = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC)))}
_EXACT = {field: bytes((0x80 | index,)) for index, field in enumerate(_STATIC) if field[1]}
_SECRET = (b"authorization", b"proxy-authorization", b"cookie", b"set-cookie")
_LONGEST_INTEGER = 12
_TABLE_SIZE = 4096
"""Of the dynamic table: the default, as we announce none."""

_Step = tuple[int, bytes, bool]
_STEPS: dict[int, _Step] = {}
"""Of Huffman's code, by state << 8 | byte: the next state (shifted), what that spells, and if it may end there."""
_MOST_STEPS = 8192
_LARGEST_KNOWN = 256
"""Larger blocks are not remembered, bytes."""
_MOST_KNOWN, _OBJECTS = 131_072, 1024
"""Bytes of unpacked lists that a connection remembers, and what each takes besides. A hundred bytes may stand for 64
KiB, which `messages` may join to one cookie: 64 such blocks, if only blocks were counted, kept 4 MiB.
"""
_TABLES = 10_240
"""More than both tables hold, and a hundred names of theirs again. Nobody says the same field twice, so no list that is
meant is larger than this and what stands in its block, where Huffman's code makes of a character 5 bits at least.
"""


class HeaderError(ValueError):
    """A header block that does not decode: a COMPRESSION_ERROR, which ends the connection."""


class Decoded(list[tuple[bytes, bytes]]):
    """`Fields` that came out of a block, with what `messages` has read them as, so that it need not again."""

    __slots__ = ("message",)

    def __init__(self) -> None:
        super().__init__()
        self.message: object = None


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
    """One field as an entry of the static table, or a literal without indexing; concatenate these for a block.

    `name` must be lower-case. What is secret is marked as never to be indexed, so that whoever passes it on will not
    either (RFC 7541 section 7.1.3).
    """
    if exact := _EXACT.get((name, value)):
        return exact
    index = _INDEX.get(name, 0)
    kind = 16 if name in _SECRET else 0
    if 0 < index < 15:
        return bytes((kind | index,)) + _string(value)
    if index:
        return bytes((kind | 15, index - 15)) + _string(value)
    return bytes((kind,)) + _string(name) + _string(value)


def encode_status(status: int) -> bytes:
    """A block of `:status` alone."""
    known = {200: b"\x88", 400: b"\x8c", 500: b"\x8e"}
    return known.get(status) or b"\x08" + _string(str(status).encode())


class Decoder:
    """The decoding half of one connection.

    A client repeats itself, and a repeated head is a handful of indices: the last blocks are remembered for as long as
    the table stays as it is.
    """

    __slots__ = ("_dynamic", "_kept", "_known", "_most", "_size")

    def __init__(self) -> None:
        self._dynamic: deque[tuple[bytes, bytes]] = deque()
        """The newest first."""
        self._size, self._most = 0, _TABLE_SIZE
        """Of the dynamic table, as RFC 7541 section 4.1 counts."""
        self._known: dict[bytes, Decoded] = {}
        self._kept = 0
        """What these take, bytes."""

    def decode(self, block: bytes) -> Decoded:
        """The fields of a block, in order, not to be changed; raises `HeaderError`."""
        known = self._known
        fields = known.get(block)
        if fields is None:
            try:
                fields, size, changed = self._decode(block)
            except IndexError:
                raise HeaderError("a header block that ends within a field") from None
            except hpack.HPACKError as error:
                raise HeaderError(str(error)[:100]) from error  # some quote the whole block
            if changed:
                known.clear()
                self._kept = 0
            elif len(block) <= _LARGEST_KNOWN:
                size += _OBJECTS
                self._kept += size
                if self._kept > _MOST_KNOWN:
                    known.clear()
                    self._kept = size
                known[block] = fields
        return fields

    def _decode(self, block: bytes) -> tuple[Decoded, int, bool]:
        """Also the list's size, and whether the dynamic table was changed."""
        fields = Decoded()
        at, end, size, changed = 0, len(block), 0, False
        dynamic = self._dynamic
        while at < end:
            first = block[at]
            if first >= 0x80:
                index = first & 0x7F
                at += 1
                if index == 0x7F:
                    index, used = decode_integer(block[at - 1 : at + _LONGEST_INTEGER], 7)
                    at += used - 1
                if 0 < index < 62:
                    field = _STATIC[index]
                elif index > 61 and index - 62 < len(dynamic):
                    field = dynamic[index - 62]
                else:
                    raise HeaderError("an index of no entry")
                size += len(field[0]) + len(field[1]) + 32
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HeaderError("a change of the table's size behind a field")
                wanted, used = decode_integer(block[at : at + _LONGEST_INTEGER], 5)
                at += used
                if wanted > _TABLE_SIZE:
                    raise HeaderError("a table larger than was allowed")
                self._most = wanted
                self._shrink()
                changed = True
                continue
            else:
                bits = 6 if first & 0x40 else 4
                index = first & ((1 << bits) - 1)
                at += 1
                if index == (1 << bits) - 1:
                    index, used = decode_integer(block[at - 1 : at + _LONGEST_INTEGER], bits)
                    at += used - 1
                if not index:
                    length = block[at]
                    at += 1
                    if length < 0x7F:
                        name = block[at : at + length]
                        at += length
                    else:
                        name, at = _long(block, at - 1)
                elif index < 62:
                    name = _STATIC[index][0]
                elif index - 62 < len(dynamic):
                    name = dynamic[index - 62][0]
                else:
                    raise HeaderError("an index of no entry")
                length = block[at]
                at += 1
                if length < 0x7F:
                    value = block[at : at + length]
                    at += length
                else:
                    value, at = _long(block, at - 1)
                if at > end:
                    raise HeaderError("a header block that ends within a field")
                field = (name, value)
                size += len(name) + len(value) + 32
                if bits == 6:
                    dynamic.appendleft(field)
                    self._size += len(name) + len(value) + 32
                    if self._size > self._most:
                        self._shrink()
                    changed = True
            if size > MAX_LIST:
                raise HeaderError(f"a header list larger than {MAX_LIST} bytes")
            fields.append(field)
        if size - 32 * len(fields) > 2 * end + _TABLES:
            raise HeaderError("a header list that says the same over and over")
        return fields, size, changed

    def _shrink(self) -> None:
        """Forget the oldest; an entry that is larger than the table leaves it empty."""
        dynamic = self._dynamic
        while self._size > self._most:
            name, value = dynamic.pop()
            self._size -= len(name) + len(value) + 32


def _long(block: bytes, at: int) -> tuple[bytes, int]:
    """A string with Huffman's code or of more than 126 bytes, and where it ends."""
    length, used = decode_integer(block[at : at + _LONGEST_INTEGER], 7)
    huffman = block[at] & 0x80
    at += used
    if length > len(block) - at:
        raise HeaderError("a header block that ends within a field")
    text = block[at : at + length]
    return (_huffman(text) if huffman else text), at + length


def _huffman(text: bytes) -> bytes:
    """Undo Huffman's code (RFC 7541 section 5.2), a byte at a time where the library takes half of one."""
    state, complete = 0, True
    out = []
    known = _STEPS.get
    for byte in text:
        state, emitted, complete = known(state | byte) or _step(state | byte)
        out.append(emitted)
    if not complete:
        raise HeaderError("a string that ends within a character")
    return b"".join(out)


def _step(key: int) -> _Step:
    state, emitted, flags = key >> 8, b"", 0
    for nibble in (key >> 4 & 15, key & 15):
        state, flags, byte = HUFFMAN_TABLE[state * 16 + nibble]
        if flags & HUFFMAN_FAIL:
            raise HeaderError("a string that is not of Huffman's code")
        if flags & HUFFMAN_EMIT_SYMBOL:
            emitted += bytes((byte,))
    step = state << 8, emitted, bool(flags & HUFFMAN_COMPLETE)
    if len(_STEPS) < _MOST_STEPS:
        _STEPS[key] = step
    return step
