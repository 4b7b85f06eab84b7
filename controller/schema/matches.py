"""What routes and rate limits match requests by, with Gateway API's schema.

https://gateway-api.sigs.k8s.io/reference/spec/ and the rules of its CRDs. A header or parameter that is named twice is
refused, where Gateway API would take the first silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from controller.schema.strict import Strict, wrong
from mesh.route.pattern import check_pattern

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}\Z")
_PATH = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+\Z")
_GRPC_SERVICE = re.compile(r"(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*\Z")
_GRPC_METHOD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*\Z")
_AMBIGUOUS = ("//", "/./", "/../", "%2f", "%2F", "#")

Method = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]


def between(least: int, most: int, what: str) -> Callable[[int], int]:
    """A check that a number is in a range; `what` is what it would be."""

    def check(number: int) -> int:
        if not least <= number <= most:
            raise wrong(f"{number} is not {what}", f"use a number from {least} to {most}")
        return number

    return check


def text(most: int, least: int = 1) -> Callable[[str], str]:
    """A check of a text's length."""

    def check(value: str) -> str:
        if not least <= len(value) <= most:
            raise wrong(f"a text of {len(value)} characters", f"it must have {least} to {most}")
        return value

    return check


def header_name(value: str) -> str:
    """Check it against RFC 9110 section 5.1."""
    if value.startswith(":"):
        raise wrong(f"{value!r} is a pseudo-header", "match 'method' and 'path', or the header host")
    if not _HEADER.match(value):
        raise wrong(f"{value!r} is not a header's name", "use letters, digits and '-'")
    return value


def absolute_path(value: str) -> str:
    """Check a path that is matched as a text: what normalisation would change can never match."""
    if not value.startswith("/"):
        raise wrong(f"{value!r} is not an absolute path", "start it with '/'")
    for part in _AMBIGUOUS:
        if part in value:
            raise wrong(f"{value!r} has {part!r} in it and would never match", "paths are normalised before matching")
    if value.endswith(("/..", "/.")):
        raise wrong(f"{value!r} ends in {value.rpartition('/')[2]!r} and would never match", "leave that out")
    if not _PATH.match(value):
        raise wrong(f"{value!r} has a character that no path has", "percent-encode it; a query is matched apart")
    return value


def regular_expression(value: str) -> str:
    """Check it with what matches it."""
    if problem := check_pattern(value):
        raise wrong(f"{value!r} is not a regular expression: {problem}", "write it in RE2's syntax")
    return value


def once(names: Iterable[str], what: str) -> None:
    """Raise if a name is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise wrong(f"{what} {name!r} is here twice", "remove one")
        seen.add(name)


HeaderName = Annotated[str, AfterValidator(header_name)]
Value = Annotated[str, AfterValidator(text(4096))]


class HeaderMatch(Strict):
    """A header's value."""

    type: Literal["Exact", "RegularExpression"] | None = None
    """Exact where it is left out."""
    name: HeaderName
    """In any case; `host` is the authority."""
    value: Value
    """The whole value, or a regular expression (RE2) for all of it."""

    @model_validator(mode="after")
    def _whole(self) -> HeaderMatch:
        if self.type == "RegularExpression":
            regular_expression(self.value)
        return self


class QueryParamMatch(Strict):
    """A query parameter's value."""

    type: Literal["Exact", "RegularExpression"] | None = None
    """Exact where it is left out."""
    name: Annotated[str, AfterValidator(text(256))]
    """As it is written; of several of one name the first counts."""
    value: Annotated[str, AfterValidator(text(1024))]
    """The whole value, or a regular expression (RE2) for all of it."""

    @model_validator(mode="after")
    def _whole(self) -> QueryParamMatch:
        if self.type == "RegularExpression":
            regular_expression(self.value)
        return self


class PathMatch(Strict):
    """A request's path, without its query."""

    type: Literal["Exact", "PathPrefix", "RegularExpression"] | None = None
    """PathPrefix, by whole elements, where it is left out."""
    value: Annotated[str, AfterValidator(text(1024))] | None = None
    """`/` where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> PathMatch:
        if self.value is not None:
            (regular_expression if self.type == "RegularExpression" else absolute_path)(self.value)
        return self


class HttpMatch(Strict):
    """All that is stated must match."""

    path: PathMatch | None = None
    """The path."""
    headers: Annotated[list[HeaderMatch], Field(max_length=16)] | None = None
    """All of these headers."""
    query_params: Annotated[list[QueryParamMatch], Field(max_length=16)] | None = None
    """All of these query parameters."""
    method: Method | None = None
    """The method."""

    @model_validator(mode="after")
    def _whole(self) -> HttpMatch:
        once((header.name.lower() for header in self.headers or ()), "header")
        once((parameter.name for parameter in self.query_params or ()), "query parameter")
        return self


def refused(what: str, remedy: str) -> Callable[[Any], Any]:
    """A validator for a field that exists and is not supported."""

    def refuse(value: Any) -> Any:
        if value is not None:
            raise wrong(f"{what} is not supported", remedy)
        return value

    return refuse


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
