"""Paths as Istio's `pathNormalization` has them, so that one resource has one name before a rule is matched.

What Envoy does with `normalize_path`, `merge_slashes` and `path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD`
(https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization-NormalizationType),
and differs in three things, where Envoy leaves a way round rules. A broken escape is refused: undoing the good one in
`%2%46` would make an escaped slash. A path of slashes only becomes `/` when slashes are merged; Envoy makes it `//`.
And `%2e%2e;x` is `..`, as `..;x` is to Envoy too.
"""

from __future__ import annotations

import enum
import re

_ALLOWED = bytes(set(range(33, 127)) - {ord("#")})
_PLAIN = bytes(set(_ALLOWED) - set(b'%\\"<>^`{|}'))
_ESCAPED = re.compile(rb"[\"<>^`{|}]")
_SLASHES_ESCAPED = (b"%2f", b"%2F", b"%5c", b"%5C")
_SLASHES = re.compile(rb"//+")
_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
_UNRESERVED = re.compile(rb"%(2[DdEe]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


class Normalization(enum.Enum):
    """How far; each does what those before it do."""

    NONE = "NONE"
    BASE = "BASE"
    """RFC 3986 section 6.2.2: escapes of letters, digits and `-._~` undone, `.` and `..` resolved; and `\\` is `/`."""
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"
    """Also `%2f` and `%5c` are `/`."""


def normalise(path: bytes, mode: Normalization) -> bytes:
    """A request's path and query (or `*`), the path normalised; raises `ValueError` for one that must be refused.

    Refused are, whatever the mode, bytes that may not stand in a target, and a path that does not begin with `/`; but
    for NONE, broken escapes and `%00`.
    """
    if path.translate(None, _ALLOWED):
        raise ValueError("a character that may not stand in a path")
    if path == b"*":
        return path
    if path[:1] != b"/":
        raise ValueError("a path that does not begin with /")
    if mode is Normalization.NONE:
        return path
    path, mark, query = path.partition(b"?")
    if path.translate(None, _PLAIN):
        path = _plain(path, mode is Normalization.DECODE_AND_MERGE_SLASHES)
    if b"/." in path:
        path = _without_dots(path)
    if b"//" in path and mode is not Normalization.BASE:
        path = _SLASHES.sub(b"/", path)
    return path + mark + query


def _plain(path: bytes, decode: bool) -> bytes:
    """One way to write each character."""
    if b"%" in path:
        if _BROKEN.search(path):
            raise ValueError("a broken escape in a path")
        if decode:
            for escape in _SLASHES_ESCAPED:
                path = path.replace(escape, b"/")
        # Each kind of escape at once, as a path may be nothing else. Every % begins an escape, before and after.
        for digits in set(_UNRESERVED.findall(path)):
            path = path.replace(b"%" + digits, bytes((int(digits, 16),)))
    path = path.replace(b"\\", b"/")
    for char in set(_ESCAPED.findall(path)):
        path = path.replace(char, b"%%%02X" % char[0])
    return path


def _without_dots(path: bytes) -> bytes:
    """RFC 3986 section 5.2.4, segments' parameters apart."""
    kept: list[bytes] = []
    segments = path[1:].split(b"/")
    name = b""
    for segment in segments:
        name = segment.partition(b";")[0]  # `..;x` is `..` to servers that take what follows for parameters
        if name == b"..":
            del kept[-1:]
        elif name != b".":
            kept.append(segment)
    if name in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
