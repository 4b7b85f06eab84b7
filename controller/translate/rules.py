"""The rules of `HTTPRoute` and `GRPCRoute`, checked, to the mesh's model. References are resolved by the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controller.schema.quantities import WHOLE, seconds
from controller.translate.matches import grpc_match, http_match
from mesh.traffic import (
    Backend,
    Cors,
    HeaderEdit,
    Mirror,
    PathEdit,
    Redirect,
    Retry,
    Rewrite,
    RouteMatch,
    RouteRule,
)

Json = Mapping[str, Any]
Resolve = Callable[[Json], Backend]
"""A reference to the backend it names, or to one that says why it cannot be used; weight and headers left out."""
_RETRIES = 1
"""Where a rule says `retry` and not how often."""


def rules(kind: str, spec: Json, resolve: Resolve) -> tuple[RouteRule, ...]:
    """All of a route's; one that matches everything where it states none, as in Gateway API."""
    match = grpc_match if kind == "GRPCRoute" else http_match
    stated: Iterable[Json] = spec.get("rules") or ({},)
    return tuple(_rule(rule, match, resolve) for rule in stated)


def _rule(rule: Json, match: Callable[[Json], RouteMatch], resolve: Resolve) -> RouteRule:
    filters = _by_type(rule)
    timeouts, retry = rule.get("timeouts") or {}, rule.get("retry")
    mirrors = (f["requestMirror"] for f in rule.get("filters") or () if f["type"] == "RequestMirror")
    return RouteRule(
        tuple(map(match, rule.get("matches") or ())) or (RouteMatch(),),
        tuple(_backend(reference, resolve) for reference in rule.get("backendRefs") or ()),
        rule.get("name") or "",
        _edit(filters.get("RequestHeaderModifier")),
        _edit(filters.get("ResponseHeaderModifier")),
        _redirect(filters.get("RequestRedirect")),
        _rewrite(filters.get("URLRewrite")),
        tuple(Mirror(resolve(mirror["backendRef"]), _share(mirror)) for mirror in mirrors),
        _cors(filters.get("CORS")),
        _limit(timeouts.get("request")),
        _limit(timeouts.get("backendRequest")),
        None if retry is None else _retry(retry),
    )


_FIELDS = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "CORS": "cors",
}


def _limit(text: str | None) -> float:
    """`0s` is a word against a policy's limit."""
    return 0.0 if text is None else seconds(text) or -1.0


def _by_type(owner: Json) -> dict[str, Json]:
    """The filters that can be there once."""
    return {f["type"]: f[field] for f in owner.get("filters") or () if (field := _FIELDS.get(f["type"]))}


def _backend(reference: Json, resolve: Resolve) -> Backend:
    found, filters, weight = resolve(reference), _by_type(reference), reference.get("weight")
    return Backend(
        found.service,
        found.port,
        1 if weight is None else weight,
        _edit(filters.get("RequestHeaderModifier")),
        _edit(filters.get("ResponseHeaderModifier")),
        found.invalid,
    )


def _edit(modifier: Json | None) -> HeaderEdit | None:
    if modifier is None:
        return None

    def pairs(name: str) -> tuple[tuple[str, ...], ...]:
        return tuple((header["name"].lower(), header["value"]) for header in modifier.get(name) or ())

    return HeaderEdit(pairs("set"), pairs("add"), tuple(name.lower() for name in modifier.get("remove") or ()))


def _path(part: Json) -> tuple[PathEdit, str]:
    path = part.get("path")
    if not path:
        return PathEdit.KEEP, ""
    edit = PathEdit(path["type"])
    return edit, path["replaceFullPath" if edit is PathEdit.FULL else "replacePrefixMatch"]


def _redirect(part: Json | None) -> Redirect | None:
    if part is None:
        return None
    scheme, hostname = part.get("scheme") or "", part.get("hostname") or ""
    return Redirect(scheme, hostname, part.get("port") or 0, part.get("statusCode") or 302, *_path(part))


def _rewrite(part: Json | None) -> Rewrite | None:
    return None if part is None else Rewrite(part.get("hostname") or "", *_path(part))


def _share(mirror: Json) -> int:
    if (percent := mirror.get("percent")) is not None:
        return int(percent) * (WHOLE // 100)
    if (fraction := mirror.get("fraction")) is not None:
        return int(fraction["numerator"]) * WHOLE // int(fraction.get("denominator") or 100)
    return WHOLE


def _cors(part: Json | None) -> Cors | None:
    if part is None:
        return None
    return Cors(
        tuple(part.get("allowOrigins") or ()),
        tuple(part.get("allowMethods") or ()),
        tuple(part.get("allowHeaders") or ()),
        tuple(part.get("exposeHeaders") or ()),
        bool(part.get("allowCredentials")),
        part.get("maxAge") or 5,
    )


def _retry(part: Json) -> Retry:
    attempts, backoff = part.get("attempts"), seconds(part.get("backoff"))
    return Retry(
        _RETRIES if attempts is None else attempts, tuple(part.get("codes") or ()), *([backoff] if backoff else ())
    )
