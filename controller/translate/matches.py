"""What requests are matched by, checked, to the mesh's model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mesh.traffic import Compare, RouteMatch, ValueMatch

_ANY_HALF = "[^/]+"


def http_match(match: Mapping[str, Any]) -> RouteMatch:
    """One of an HTTPRoute's rule, or of a rate limit."""
    path = match.get("path") or {}
    return RouteMatch(
        path.get("value") or "/",
        Compare(path.get("type") or "PathPrefix"),
        match.get("method") or "",
        header_matches(match.get("headers")),
        tuple(_value(each, each["name"]) for each in match.get("queryParams") or ()),
    )


def grpc_match(match: Mapping[str, Any]) -> RouteMatch:
    """One of a GRPCRoute's rule. A service alone is a prefix, so that it ranks by its length, as Gateway API has it."""
    method, headers = match.get("method") or {}, header_matches(match.get("headers"))
    service, name = method.get("service") or "", method.get("method") or ""
    if method.get("type") == "RegularExpression":
        halves = (f"(?:{half})" if half else _ANY_HALF for half in (service, name))
        return RouteMatch("/" + "/".join(halves), Compare.REGEX, headers=headers)
    if service and name:
        return RouteMatch(f"/{service}/{name}", Compare.EXACT, headers=headers)
    if name:
        return RouteMatch(f"/{_ANY_HALF}/{re.escape(name)}", Compare.REGEX, headers=headers)
    return RouteMatch(f"/{service}", Compare.PREFIX, headers=headers)


def header_matches(headers: Iterable[Mapping[str, Any]] | None) -> tuple[ValueMatch, ...]:
    """Their names in lower case."""
    return tuple(_value(each, each["name"].lower()) for each in headers or ())


def _value(each: Mapping[str, Any], name: str) -> ValueMatch:
    return ValueMatch(name, each["value"], Compare(each.get("type") or "Exact"))
