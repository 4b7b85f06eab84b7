"""What a route does to requests and answers, with Gateway API's schema: its filters, and the Services they name.

https://gateway-api.sigs.k8s.io/reference/spec/ and the rules of its CRDs. What this mesh has not is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from controller.schema.matches import HeaderName, Value, absolute_path, between, once, refused, text
from controller.schema.names import Label, Port, Subdomain
from controller.schema.strict import Strict, wrong

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


def check_repeated(filters: Sequence[BackendFilter | GrpcFilter | HttpFilter]) -> None:
    """Of each kind one; of mirrors any number."""
    once((f.type for f in filters if f.type != "RequestMirror"), "filter")
