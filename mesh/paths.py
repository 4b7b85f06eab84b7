"""Paths as Istio's `pathNormalization` has them, so that one resource has one name before a rule is matched.

What Envoy does with `normalize_path` and `merge_slashes`, and Istio with escaped slashes
(https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization-NormalizationType).
"""

from __future__ import annotations

import enum
import re

_SLASH = re.compile(rb"%(?:2[Ff]|5[Cc])")
_SLASHES = re.compile(rb"//+")
_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
_UNRESERVED = re.compile(rb"%(2[DdEe]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


class Normalization(enum.Enum):
    """How far; each does what those before it do."""

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


def normalise(path: bytes, mode: Normalization) -> bytes:
    """A request's path and query (or `*`), the path normalised; raises `ValueError` for one that must be refused."""
    path, mark, query = path.partition(b"?")
    if path == b"*" or mode is Normalization.NONE:
        return path + mark + query
    if mode is Normalization.DECODE_AND_MERGE_SLASHES and b"%" in path:
        path = _SLASH.sub(b"/", path)
    if b"%" in path:
        path = _unescape(path)
    path = path.replace(b"\\", b"/")
    if not path.startswith(b"/"):
        raise ValueError("a path that does not begin with /")
    if b"/." in path:
        path = _without_dots(path)
    if mode is not Normalization.BASE and b"//" in path:
        path = _SLASHES.sub(b"/", path)
    return path + mark + query


def _unescape(path: bytes) -> bytes:
    """Escapes of what needs none are undone, so that `%2e` is a dot; the others stay as they are."""
    if _BROKEN.search(path):
        raise ValueError("a broken escape in a path")
    return _UNRESERVED.sub(lambda match: bytes((int(match[1], 16),)), path)


def _without_dots(path: bytes) -> bytes:
    """RFC 3986 section 5.2.4."""
    kept: list[bytes] = []
    last = b""
    for last in path[1:].split(b"/"):
        if last == b"..":
            if kept:
                kept.pop()
        elif last != b".":
            kept.append(last)
    if last in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
