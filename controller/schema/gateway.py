"""`HTTPRoute`, `GRPCRoute` and `ReferenceGrant` with Gateway API's schema, experimental channel.

https://gateway-api.sigs.k8s.io/reference/spec/. The rules of its CRDs (CEL) hold here, too. What it has and this mesh
has not is refused rather than left out: a filter that silently did nothing would be worse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from controller.schema.matches import (
    HeaderMatch,
    HeaderName,
    HttpMatch,
    Value,
    absolute_path,
    between,
    once,
    refused,
    regular_expression,
    text,
)
from controller.schema.names import Label, Port, Subdomain
from controller.schema.quantities import Duration, seconds
from controller.schema.strict import Strict, wrong

GATEWAY = "gateway.networking.k8s.io"
_MAX_MATCHES = 128
_GRPC_SERVICE = re.compile(r"(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*\Z")
_GRPC_METHOD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*\Z")
_ORIGIN = re.compile(
    r"(\*|([a-zA-Z][a-zA-Z0-9+\-.]+)://(\*|(\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9\-]+|\[[0-9a-fA-F:.]+\])(:([0-9]{1,5}))?)\Z"
)
_TAKEN = ("connection", "host", "content-length", "transfer-encoding", "keep-alive", "te", "upgrade")


def _edited(name: str) -> str:
    if name.lower() in _TAKEN or name.startswith(":"):
        raise wrong(f"the header {name!r} is the proxy's own", "use URLRewrite for the host; leave framing alone")
    return name


_CorsMethod = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"]
_EditedName = Annotated[HeaderName, AfterValidator(_edited)]


class Parent(Strict):
    """What a route is attached to. Only Services (`group: ""`, `kind: Service`) concern the mesh."""

    group: str | None = None
    """`""` for a Service; gateway.networking.k8s.io where it is left out."""
    kind: str | None = None
    """`Service`; Gateway where it is left out."""
    namespace: Label | None = None
    """The route's own where it is left out. In another one the route is for its own namespace's clients only."""
    name: Subdomain
    """Of the Service."""
    section_name: Subdomain | None = None
    """A port of the Service by its name."""
    port: Port | None = None
    """A port of the Service; all where it is left out."""

    @property
    def is_service(self) -> bool:
        """Whether it is one of ours."""
        return self.group == "" and self.kind == "Service"

    @property
    def named(self) -> str:
        """What it is, in short: `shop/web:80`."""
        parts = (self.namespace and f"{self.namespace}/", self.name, self.section_name and f":{self.section_name}")
        return "".join(part for part in (*parts, self.port and f":{self.port}") if part)


class Reference(Strict):
    """A Service that requests are sent to."""

    group: str | None = None
    """Only `""` is of use."""
    kind: str | None = None
    """Only `Service` is of use."""
    namespace: Label | None = None
    """The route's own where it is left out; another one must allow it with a ReferenceGrant."""
    name: Subdomain
    """Of the Service."""
    port: Port | None = None
    """The Service's port, not the target port."""

    @model_validator(mode="after")
    def _whole(self) -> Reference:
        if not self.group and self.kind in (None, "Service") and self.port is None:
            raise wrong("a Service must be named with a port", "add 'port'")
        return self


class Header(Strict):
    """A header to set or add."""

    name: _EditedName
    """In any case."""
    value: Value
    """Its value."""


class HeaderModifier(Strict):
    """Removes, then sets, then adds headers."""

    set: Annotated[list[Header], Field(max_length=16)] | None = None
    """Put in the place of all of that name."""
    add: Annotated[list[Header], Field(max_length=16)] | None = None
    """Put beside those of that name."""
    remove: Annotated[list[_EditedName], Field(max_length=16)] | None = None
    """By name."""

    @model_validator(mode="after")
    def _whole(self) -> HeaderModifier:
        for name, headers in (("set", self.set), ("add", self.add)):
            once((header.name.lower() for header in headers or ()), f"{name}: header")
        once((name.lower() for name in self.remove or ()), "remove: header")
        return self


def _new_path(value: str) -> str:
    return absolute_path(text(1024)(value)) if value else value


class PathModifier(Strict):
    """What becomes of the path."""

    type: Literal["ReplaceFullPath", "ReplacePrefixMatch"]
    """Which of the two."""
    replace_full_path: Annotated[str, AfterValidator(_new_path)] | None = None
    """The whole new path."""
    replace_prefix_match: Annotated[str, AfterValidator(_new_path)] | None = None
    """In the place of the prefix that matched."""

    @model_validator(mode="after")
    def _whole(self) -> PathModifier:
        fields = {"ReplaceFullPath": self.replace_full_path, "ReplacePrefixMatch": self.replace_prefix_match}
        for name, value in fields.items():
            field = name[0].lower() + name[1:]
            if name == self.type and value is None:
                raise wrong(f"type {name} lacks {field!r}", f"add {field!r}")
            if name != self.type and value is not None:
                raise wrong(f"{field!r} does not go with type {self.type}", "remove it, or change the type")
        return self


class RequestRedirect(Strict):
    """Answers with a redirect; what is left out stays as in the request."""

    scheme: Literal["http", "https"] | None = None
    """Of the new address."""
    hostname: Subdomain | None = None
    """Of the new address."""
    path: PathModifier | None = None
    """Of the new address."""
    port: Port | None = None
    """Of the new address."""
    status_code: Annotated[int, AfterValidator(between(300, 399, "a redirect"))] | None = None
    """301, 302, 303, 307 or 308; 302 where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> RequestRedirect:
        if self.status_code not in (None, 301, 302, 303, 307, 308):
            raise wrong(f"status {self.status_code} is not supported", "use 301, 302, 303, 307 or 308")
        return self


class UrlRewrite(Strict):
    """Changes host or path before the request goes to its backend."""

    hostname: Subdomain | None = None
    """The new host."""
    path: PathModifier | None = None
    """The new path."""


class Fraction(Strict):
    """A part of all."""

    numerator: Annotated[int, AfterValidator(between(0, 2**31 - 1, "a numerator"))]
    """At most the denominator."""
    denominator: Annotated[int, AfterValidator(between(1, 2**31 - 1, "a denominator"))] | None = None
    """100 where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> Fraction:
        if self.numerator > (self.denominator or 100):
            raise wrong("the numerator is more than the denominator", "make it at most as much")
        return self


class RequestMirror(Strict):
    """Sends a copy to another Service, whose answers are dropped."""

    backend_ref: Reference
    """Where to."""
    percent: Annotated[int, AfterValidator(between(0, 100, "a percentage"))] | None = None
    """Of the requests; all where neither this nor fraction is there."""
    fraction: Fraction | None = None
    """Of the requests."""

    @model_validator(mode="after")
    def _whole(self) -> RequestMirror:
        if self.percent is not None and self.fraction is not None:
            raise wrong("both 'percent' and 'fraction'", "keep one")
        return self


def _origin(value: str) -> str:
    if not _ORIGIN.match(value):
        raise wrong(f"{value!r} is not an origin", "write it as https://example.com, https://*.example.com or *")
    return value


class Cors(Strict):
    """Answers preflights, and says in answers which other origins may read them."""

    allow_origins: Annotated[list[Annotated[str, AfterValidator(_origin)]], Field(max_length=64)] | None = None
    """`https://example.com`, `https://*.example.com` or `*`."""
    allow_credentials: bool | None = None
    """Whether with cookies and the like."""
    allow_methods: Annotated[list[_CorsMethod], Field(max_length=9)] | None = None
    """Beyond those always allowed (GET, HEAD, POST); `*` for all."""
    allow_headers: Annotated[list[HeaderName], Field(max_length=64)] | None = None
    """That a request may have; `*` for all."""
    expose_headers: Annotated[list[HeaderName], Field(max_length=64)] | None = None
    """That scripts may read of an answer; `*` for all."""
    max_age: Annotated[int, AfterValidator(between(1, 2**31 - 1, "a number of seconds"))] | None = None
    """Seconds that a browser may keep a preflight's answer; 5 where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> Cors:
        for name, values in (
            ("allowOrigins", self.allow_origins),
            ("allowMethods", self.allow_methods),
            ("allowHeaders", self.allow_headers),
        ):
            if values and "*" in values and len(values) > 1:
                raise wrong(f"{name} has '*' beside others", "keep '*', or the others")
        return self


_FILTERS = {
    "RequestHeaderModifier": "request_header_modifier",
    "ResponseHeaderModifier": "response_header_modifier",
    "RequestRedirect": "request_redirect",
    "URLRewrite": "url_rewrite",
    "RequestMirror": "request_mirror",
    "CORS": "cors",
}
_REFUSED_FILTERS = {
    "ExtensionRef": "there are no extensions here; what Gateway API lacks is in TrafficPolicy",
    "ExternalAuth": "use an AuthorizationPolicy",
}


def _filter_type(value: object) -> object:
    if isinstance(value, str) and value in _REFUSED_FILTERS:
        raise wrong(f"the filter {value} is not supported", _REFUSED_FILTERS[value])
    return value


class _Filter(Strict):
    @model_validator(mode="after")
    def _whole(self) -> _Filter:
        kind = self.type  # type: ignore[attr-defined]  # each kind of filter has one, of its own literals
        for name, field in _FILTERS.items():
            stated = getattr(self, field, None) is not None
            alias = field_name(type(self), field)
            if name == kind and not stated:
                raise wrong(f"type {name} lacks {alias!r}", f"add {alias!r}")
            if name != kind and stated:
                raise wrong(f"{alias!r} does not go with type {kind}", "write one filter each")
        return self


def field_name(model: type[Strict], field: str) -> str:
    """How a field is written."""
    found = model.model_fields.get(field)
    return (found.alias if found else None) or field


_extension = BeforeValidator(refused("'extensionRef'", _REFUSED_FILTERS["ExtensionRef"]))
_external = BeforeValidator(refused("'externalAuth'", _REFUSED_FILTERS["ExternalAuth"]))


class BackendFilter(_Filter):
    """What is done to requests that one backend gets; of Gateway API's filters those that make sense there."""

    type: Annotated[Literal["RequestHeaderModifier", "ResponseHeaderModifier"], BeforeValidator(_filter_type)]
    """Which one."""
    request_header_modifier: HeaderModifier | None = None
    """Changes a request's headers."""
    response_header_modifier: HeaderModifier | None = None
    """Changes an answer's headers."""
    extension_ref: Annotated[Any, _extension] = None
    """Refused."""


class GrpcFilter(_Filter):
    """What is done to requests and answers beside sending them on."""

    type: Annotated[
        Literal["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"], BeforeValidator(_filter_type)
    ]
    """Which one."""
    request_header_modifier: HeaderModifier | None = None
    """Changes a request's headers."""
    response_header_modifier: HeaderModifier | None = None
    """Changes an answer's headers."""
    request_mirror: RequestMirror | None = None
    """Sends a copy of a share of the requests elsewhere."""
    extension_ref: Annotated[Any, _extension] = None
    """Refused."""


class HttpFilter(_Filter):
    """What is done to requests and answers beside sending them on."""

    type: Annotated[
        Literal[
            "RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "RequestMirror", "CORS"
        ],
        BeforeValidator(_filter_type),
    ]
    """Which one."""
    request_header_modifier: HeaderModifier | None = None
    """Changes a request's headers."""
    response_header_modifier: HeaderModifier | None = None
    """Changes an answer's headers."""
    request_redirect: RequestRedirect | None = None
    """Answers with a redirect."""
    url_rewrite: UrlRewrite | None = None
    """Changes host or path."""
    request_mirror: RequestMirror | None = None
    """Sends a copy of a share of the requests elsewhere."""
    cors: Cors | None = None
    """Lets scripts of other origins in."""
    external_auth: Annotated[Any, _external] = None
    """Refused."""
    extension_ref: Annotated[Any, _extension] = None
    """Refused."""


class BackendRef(Reference):
    """A Service that gets a share of the requests."""

    weight: Annotated[int, AfterValidator(between(0, 1_000_000, "a weight"))] | None = None
    """Its share is this of the sum of all; 1 where it is left out."""
    filters: Annotated[list[BackendFilter], Field(max_length=16)] | None = None
    """For requests that this one gets."""

    @model_validator(mode="after")
    def _filters_once(self) -> BackendRef:
        _check_repeated(self.filters or ())
        return self


class Timeouts(Strict):
    """Bounds of an exchange; `0s` is none."""

    request: Duration | None = None
    """For all of it, tries included: 504 after that."""
    backend_request: Duration | None = None
    """For each try; at most as long as `request`."""

    @model_validator(mode="after")
    def _whole(self) -> Timeouts:
        request, each = seconds(self.request), seconds(self.backend_request)
        if request and each > request:
            raise wrong("backendRequest is longer than request", "make it at most as long")
        return self


_ErrorStatus = Annotated[int, AfterValidator(between(400, 599, "an error's status"))]


class Retry(Strict):
    """When to try again."""

    codes: Annotated[list[_ErrorStatus], Field(max_length=64)] | None = None
    """Upon these statuses; always upon connections that fail before anything is answered."""
    attempts: Annotated[int, AfterValidator(between(0, 100, "a number of retries"))] | None = None
    """Beyond the first; 1 where it is left out."""
    backoff: Duration | None = None
    """The least wait before another try; 25ms where it is left out."""


_persistence = BeforeValidator(refused("'sessionPersistence'", "use a TrafficPolicy with loadBalancing.hashOn"))


class HttpRule(Strict):
    """Which requests, and what becomes of them."""

    name: Subdomain | None = None
    """For logs and status; once in a route."""
    matches: Annotated[list[HttpMatch], Field(max_length=64)] | None = None
    """Any of these; left out, all requests."""
    filters: Annotated[list[HttpFilter], Field(max_length=16)] | None = None
    """What is done beside sending them on."""
    backend_refs: Annotated[list[BackendRef], Field(max_length=16)] | None = None
    """Where they go, by weight; none: 500."""
    timeouts: Timeouts | None = None
    """Bounds of an exchange."""
    retry: Retry | None = None
    """When to try again; in the place of what a TrafficPolicy says."""
    session_persistence: Annotated[Any, _persistence] = None
    """Refused."""

    @model_validator(mode="after")
    def _whole(self) -> HttpRule:
        filters = self.filters or []
        _check_repeated(filters)
        redirects = [f for f in filters if f.request_redirect]
        if redirects and any(f.url_rewrite for f in filters):
            raise wrong("both RequestRedirect and URLRewrite", "keep one: what is redirected goes to no backend")
        if redirects and self.backend_refs:
            raise wrong("RequestRedirect beside backendRefs", "remove one: what is redirected goes to no backend")
        edits = [edit.path for f in filters for edit in (f.request_redirect, f.url_rewrite) if edit is not None]
        if any(path is not None and path.type == "ReplacePrefixMatch" for path in edits):
            matches = self.matches or []
            path = matches[0].path if len(matches) == 1 else None
            if matches and (path is None or path.type not in (None, "PathPrefix")):
                raise wrong("ReplacePrefixMatch needs exactly one match, of type PathPrefix", "make one rule for each")
        return self


def _check_repeated(filters: Sequence[BackendFilter | GrpcFilter | HttpFilter]) -> None:
    once((f.type for f in filters if f.type != "RequestMirror"), "filter")


class GrpcMethod(Strict):
    """A gRPC method."""

    type: Literal["Exact", "RegularExpression"] | None = None
    """Exact where it is left out."""
    service: Annotated[str, AfterValidator(text(1024))] | None = None
    """Such as `shop.v1.Cart`; any where it is left out."""
    method: Annotated[str, AfterValidator(text(1024))] | None = None
    """Such as `Add`; any where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> GrpcMethod:
        if self.service is None and self.method is None:
            raise wrong("neither 'service' nor 'method'", "add one, or remove it to match all")
        if self.type == "RegularExpression":
            for value in (self.service, self.method):
                regular_expression(value or "")
        elif self.service and not _GRPC_SERVICE.match(self.service):
            raise wrong(f"{self.service!r} is not a gRPC service", "write it as shop.v1.Cart")
        elif self.method and not _GRPC_METHOD.match(self.method):
            raise wrong(f"{self.method!r} is not a gRPC method", "write it as Add")
        return self


class GrpcMatch(Strict):
    """All that is stated must match."""

    method: GrpcMethod | None = None
    """The method."""
    headers: Annotated[list[HeaderMatch], Field(max_length=16)] | None = None
    """All of these headers."""

    @model_validator(mode="after")
    def _whole(self) -> GrpcMatch:
        once((header.name.lower() for header in self.headers or ()), "header")
        return self


class GrpcRule(Strict):
    """Which requests, and what becomes of them."""

    name: Subdomain | None = None
    """For logs and status; once in a route."""
    matches: Annotated[list[GrpcMatch], Field(max_length=64)] | None = None
    """Any of these; left out, all requests."""
    filters: Annotated[list[GrpcFilter], Field(max_length=16)] | None = None
    """What is done beside sending them on."""
    backend_refs: Annotated[list[BackendRef], Field(max_length=16)] | None = None
    """Where they go, by weight; none: status UNAVAILABLE."""
    session_persistence: Annotated[Any, _persistence] = None
    """Refused."""

    @model_validator(mode="after")
    def _whole(self) -> GrpcRule:
        _check_repeated(self.filters or [])
        return self


class _Route(Strict):
    parent_refs: Annotated[list[Parent], Field(max_length=32)] | None = None
    """Services that it is for. Other parents are others' business."""
    use_default_gateways: str | None = None
    """Without effect in a mesh."""
    hostnames: Annotated[list[str], Field(max_length=16)] | None = None
    """Without effect in a mesh (GEP-1294): match the header host."""

    @model_validator(mode="after")
    def _parents(self) -> _Route:
        services = [p for p in self.parent_refs or () if p.is_service]
        once((p.named for p in services), "parent")
        rules = getattr(self, "rules", None) or []
        once((rule.name for rule in rules if rule.name), "rule")
        if (total := sum(len(rule.matches or ()) for rule in rules)) > _MAX_MATCHES:
            raise wrong(f"{total} matches in all", f"at most {_MAX_MATCHES} in one route: make two of it")
        return self


class HTTPRouteSpec(_Route):
    """Where HTTP requests for a Service go, and what is done to them on the way."""

    rules: Annotated[list[HttpRule], Field(min_length=1, max_length=16)] | None = None
    """The one that matches most closely takes a request."""


class GRPCRouteSpec(_Route):
    """Where gRPC calls for a Service go, and what is done to them on the way."""

    rules: Annotated[list[GrpcRule], Field(max_length=16)] | None = None
    """The one that matches most closely takes a call."""


class GrantFrom(Strict):
    """Whose references are allowed."""

    group: str
    """gateway.networking.k8s.io for routes."""
    kind: str
    """HTTPRoute or GRPCRoute; others concern others."""
    namespace: Label
    """Of the routes."""


class GrantTo(Strict):
    """What may be referred to."""

    group: str
    """`""` for Services."""
    kind: str
    """`Service`; others concern others."""
    name: Subdomain | None = None
    """Of one; left out, all of the namespace."""


class ReferenceGrantSpec(Strict):
    """Lets routes of other namespaces send requests to Services of this one."""

    from_: Annotated[list[GrantFrom], Field(min_length=1, max_length=16)] = Field(alias="from")
    """Any of these."""
    to: Annotated[list[GrantTo], Field(min_length=1, max_length=16)]
    """Any of these."""
