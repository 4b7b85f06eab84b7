"""Paths of an `AuthorizationPolicy`: exact, `prefix*`, `*suffix`, `*`, or a template.

A template (https://istio.io/latest/docs/reference/config/security/authorization-policy/#Operation) holds `{*}`, one
whole segment that is not empty, or `{**}`, any text from one slash on, once and last but for what follows it literally.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


def paths(values: tuple[str, ...]) -> Callable[[Any], bool]:
    """Whether a path is among these."""
    from mesh.authz.matching import matching_names

    templates = [_template(value) for value in values if "{" in value]
    plain = tuple(value for value in values if "{" not in value)
    among = matching_names(plain)
    if not templates:
        return among
    return lambda path: among(path) or any(matches(path) for matches in templates)


def check_template(path: str) -> None:
    """Raise `ValueError` for what holds braces and is no template."""
    _template(path)


@lru_cache(1024)
def _template(template: str) -> Callable[[str], bool]:
    """Compile one. Raises `ValueError` for what is none."""
    parts = template.split("/")
    for part in parts:
        if part not in ("{*}", "{**}") and ("{" in part or "}" in part or "*" in part):
            raise ValueError(f"{template!r}: {part!r} is neither a literal, {{*}} nor {{**}}")
    if parts.count("{**}") > 1:
        raise ValueError(f"{template!r}: {{**}} may come once")
    if parts[0]:
        raise ValueError(f"{template!r} does not begin with /")
    many = parts.index("{**}") if "{**}" in parts else -1
    before, after = (parts[:many], parts[many + 1 :]) if many >= 0 else (parts, [])
    if "{*}" in after:
        raise ValueError(f"{template!r}: {{*}} cannot follow {{**}}")

    def fits(pattern: list[str], segments: list[str]) -> bool:
        return all(want == have or (want == "{*}" and have) for want, have in zip(pattern, segments, strict=True))

    def matches(path: str) -> bool:
        segments = path.split("/")
        if many < 0:
            return len(segments) == len(parts) and fits(parts, segments)
        if len(segments) <= len(before) + len(after):  # one segment at least, which may be empty: /a/{**} is not /a
            return False
        if after and not fits(after, segments[-len(after) :]):
            return False
        return fits(before, segments[: len(before)])

    return matches
