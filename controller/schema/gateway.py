"""`HTTPRoute`, `GRPCRoute` and `ReferenceGrant` with Gateway API's schema, experimental channel.

https://gateway-api.sigs.k8s.io/reference/spec/. The rules of its CRDs (CEL) hold here, too. What it has and this mesh
has not is refused rather than left out: a filter that silently did nothing would be worse.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from controller.schema.matches import GrpcMatch, HttpMatch, between, once, refused
from controller.schema.names import Label, Port, Subdomain
from controller.schema.quantities import Duration, seconds
from controller.schema.route_filters import BackendFilter, GrpcFilter, HttpFilter, Reference, check_repeated
from controller.schema.strict import Strict, wrong

GATEWAY = "gateway.networking.k8s.io"
_MAX_MATCHES = 128


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


class BackendRef(Reference):
    """A Service that gets a share of the requests."""

    weight: Annotated[int, AfterValidator(between(0, 1_000_000, "a weight"))] | None = None
    """Its share is this of the sum of all; 1 where it is left out."""
    filters: Annotated[list[BackendFilter], Field(max_length=16)] | None = None
    """For requests that this one gets."""

    @model_validator(mode="after")
    def _filters_once(self) -> BackendRef:
        check_repeated(self.filters or ())
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
        check_repeated(filters)
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
        check_repeated(self.filters or [])
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
