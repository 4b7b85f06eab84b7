"""Chunked bodies (RFC 9112 section 7.1)."""

from __future__ import annotations

import re
from collections.abc import Callable

from mesh.http1.failure import BadMessage, Limits
from mesh.http1.fields import trailers
from mesh.message import Headers

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"(?:[\t !#-\[\]-~]|\\[\t -~])*"))?)*'
)


class Chunks:
    """Takes one body apart. Extensions are read, and go no further."""

    __slots__ = ("_deliver", "_left", "_limits", "_overhead", "_partial", "_section", "trailers")

    def __init__(self, deliver: Callable[[bytes], None], limits: Limits) -> None:
        self._deliver = deliver
        self._limits = limits
        self._left = 0
        """Of the chunk, its CRLF included."""
        self._overhead = 0
        self._partial = b""
        """The beginning of a line."""
        self._section: bytes | None = None
        """The trailers' lines so far, once the last chunk was seen."""
        self.trailers: Headers | None = None
        """Set at the body's end."""

    def feed(self, data: bytes, at: int) -> int:
        """Take what belongs to the body from `data[at:]`, return where that ends; raises `BadMessage`."""
        end = len(data)
        while at < end and self.trailers is None:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                at += len(piece)
                self._left -= len(piece)
                self._deliver(piece)
            elif self._left:
                if data[at] != b"\n\r"[self._left - 1]:
                    raise BadMessage(400, "a chunk is not as long as its size says")
                at += 1
                self._left -= 1
            else:
                at = self._line(data, at)
        return at

    def _line(self, data: bytes, at: int) -> int:
        """Read on in a line, return how far."""
        section, limits = self._section, self._limits
        room = limits.chunk_line if section is None else limits.head - len(section)
        room += 2 - len(self._partial)
        stop = data.find(b"\n", at, at + room) + 1 or min(len(data), at + room)
        line = self._partial + data[at:stop]
        if 0 <= line.find(b"\r") < len(line) - 1 and not line.endswith(b"\r\n"):
            raise BadMessage(400, "bare CR in the framing of a body")
        if not line.endswith(b"\n"):
            if stop - at == room:
                raise BadMessage(400 if section is None else 431, "a line in the framing of a body is too long")
            self._partial = line
            return stop
        if not line.endswith(b"\r\n"):
            raise BadMessage(400, "bare LF in the framing of a body")
        self._partial = b""
        if section is None:
            self._size(line[:-2])
        elif line == b"\r\n":
            self.trailers = trailers(section, limits.headers)
        else:
            self._section = section + line
        return stop

    def _size(self, line: bytes) -> None:
        match = _LINE.fullmatch(line)
        if match is None or (size := int(match[1], 16)) >= 2**63:
            raise BadMessage(400, "malformed chunk size or extension")
        self._overhead = max(0, self._overhead + len(line) - 12 - 2 * size)
        if self._overhead > self._limits.chunk_overhead:
            raise BadMessage(400, "small chunks with long extensions")
        if size:
            self._left = size + 2
        else:
            self._section = b""
