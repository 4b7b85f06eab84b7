"""Istio's `extensionProviders`, those of kind `envoyExtAuthzHttp`: services that CUSTOM policies ask.

https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ExtensionProvider
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

from controller.schema.quantities import Time, seconds
from controller.schema.strict import Strict, wrong
from mesh.model import ExtAuthz
from mesh.names import is_label

_PATTERN = re.compile(r"\*|\*?[!#$%&'+.^_`|~0-9A-Za-z-]+\Z|[!#$%&'+.^_`|~0-9A-Za-z-]+\*\Z")
_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+\Z")
_VALUE = re.compile(r"[\x20-\x7e]{0,1024}\Z")
_PREFIX = re.compile(r"(/[\x21-\x7e]*)?\Z")
_STATUS = re.compile(r"[45][0-9][0-9]\Z")
_HOSTS = (".svc.cluster.local", ".svc")
_OURS = ("host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "expect", "trailer")


def _parts(service: str) -> list[str]:
    """Namespace and name."""
    host = service.rpartition("/")[2]
    for suffix in _HOSTS:
        host = host.removesuffix(suffix)
    return host.split(".")[::-1]


def _service(text: str) -> str:
    parts = _parts(text)
    if len(parts) != 2 or not all(map(is_label, parts)):
        raise wrong(f"{text!r} is not the host name of a Service", "write it as ext-authz.auth.svc.cluster.local")
    return text


def _pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise wrong(f"{text!r} is not the name of a header", "write it as x-user, x-user-* or *-user")
    return text


def _added(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _NAME.match(name) or name.lower() in _OURS or not _VALUE.match(value):
            raise wrong(f"{name!r}: {value!r} cannot be added", "use a header of your own and printable ASCII")
    return headers


def _matches(pattern: re.Pattern[str], remedy: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.match(text):
            raise wrong(f"{text!r} cannot be used", remedy)
        return text

    return AfterValidator(check)


Patterns = Annotated[list[Annotated[str, AfterValidator(_pattern)]], Field(max_length=64)] | None


class EnvoyExtAuthzHttp(Strict):
    """`extensionProviders[].envoyExtAuthzHttp`."""

    service: Annotated[str, AfterValidator(_service)]
    port: Annotated[int, Field(ge=1, le=65535)]
    path_prefix: Annotated[str, _matches(_PREFIX, "begin it with /")] | None = None
    timeout: Time | None = None
    fail_open: bool | None = None
    status_on_error: Annotated[str, _matches(_STATUS, 'write a status in quotes: "503"')] | None = None
    include_request_headers_in_check: Patterns = None
    include_additional_headers_in_check: Annotated[dict[str, str], AfterValidator(_added)] | None = None
    headers_to_upstream_on_allow: Patterns = None
    headers_to_downstream_on_deny: Patterns = None
    headers_to_downstream_on_allow: Patterns = None


class ExtensionProvider(Strict):
    """`extensionProviders[]`."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    envoy_ext_authz_http: EnvoyExtAuthzHttp


def named_once(stated: list[ExtensionProvider]) -> list[ExtensionProvider]:
    """A validator of all of them."""
    names = [each.name for each in stated]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise wrong(f"two providers are called {twice!r}", "give each a name of its own")
    return stated


def providers(stated: Iterable[ExtensionProvider]) -> tuple[ExtAuthz, ...]:
    """Checked ones in the mesh's model."""
    return tuple(_provider(each.name, each.envoy_ext_authz_http) for each in stated)


def _provider(name: str, of: EnvoyExtAuthzHttp) -> ExtAuthz:
    def lower(patterns: list[str] | None) -> tuple[str, ...]:
        return tuple(pattern.lower() for pattern in patterns or ())

    added = of.include_additional_headers_in_check or {}
    return ExtAuthz(
        name,
        "/".join(_parts(of.service)),
        of.port,
        (of.path_prefix or "").rstrip("/"),
        seconds(of.timeout, 600.0),
        bool(of.fail_open),
        int(of.status_on_error or "403"),
        lower(of.include_request_headers_in_check),
        tuple((header.lower(), value) for header, value in added.items()),
        lower(of.headers_to_upstream_on_allow),
        lower(of.headers_to_downstream_on_deny),
        lower(of.headers_to_downstream_on_allow),
    )
