"""`AuthorizationPolicy` and `PeerAuthentication` with Istio's schema.

https://istio.io/latest/docs/reference/config/security/authorization-policy/ and `…/peer_authentication/`. What Istio's
own validation refuses is refused here. Beyond that, so is what could never match (a `*` in the middle of a principal, a
principal that is no SPIFFE path), because in a DENY policy it would silently leave open what was to be closed.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from controller.schema.meta import Selector
from controller.schema.strict import Strict, wrong
from mesh.authz.templates import check_template
from mesh.names import is_label, is_subdomain

_PRINCIPAL = re.compile(r"[a-z0-9._-]+/ns/[a-z0-9.-]+/sa/[a-z0-9.-]+\Z")
_MAX_ACCOUNTS = 16
_HTTP_KEYS = (
    "remote.ip",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "connection.sni",
)
_BRACKETED = re.compile(
    r"(request\.headers|request\.auth\.claims|experimental\.envoy\.filters\.[^\[]+)(\[[^\[\]]+\])+\Z"
)
_REPLACED = {
    "destination.namespace": "the policy's own namespace says this",
    "destination.name": "use spec.selector",
    "destination.user": "use spec.selector",
    "source.serviceAccount": "not supported yet in 'when': use from.source.serviceAccounts",
}


def _text(value: str) -> str:
    if not value:
        raise wrong("an empty value matches nothing", "remove it, or write '*' for any")
    return value


def _wildcard(value: str, form: Callable[[str], bool], what: str, example: str) -> str:
    _text(value)
    if value.startswith("spiffe://"):
        raise wrong(f"{value!r} starts with spiffe://", f"leave that out: {value[len('spiffe://') :]!r}")
    bare = value[1:] if value.startswith("*") else value[:-1] if value.endswith("*") else value
    if "*" in bare:
        raise wrong(f"{value!r} has a '*' in the middle, where it stands for itself", "use it only at the start or end")
    if bare == value and not form(value):
        raise wrong(f"{value!r} is not {what} and would never match", f"write it as {example!r}")
    return value


def _principal(value: str) -> str:
    return _wildcard(value, lambda v: bool(_PRINCIPAL.match(v)), "a principal", "cluster.local/ns/shop/sa/web")


def _namespace(value: str) -> str:
    return _wildcard(value, is_label, "a namespace", "shop")


def _account(value: str) -> str:
    if "*" in value:
        raise wrong(f"{value!r}: serviceAccounts takes no wildcard", "use 'principals' or 'namespaces' for that")
    parts = value.split("/")
    if value.startswith("spiffe://") or len(parts) > 2 or not all(map(is_subdomain, parts)):
        raise wrong(f"{value!r} is not a service account", "write it as 'shop/web', or 'web' in the policy's namespace")
    return value


def _method(value: str) -> str:
    bare = _middle(value, "a method")
    if bare.islower():
        raise wrong(f"{value!r} would never match: methods are in capitals", f"write it as {value.upper()!r}")
    return value


def _host(value: str) -> str:
    bare = _middle(value, "a host")
    if "/" in bare:
        raise wrong(f"{value!r} is not a host", "write it as web.example.com, without scheme and path")
    return value


def _middle(value: str, what: str) -> str:
    """It without the `*` at one of its ends. Raises if there is another, or blanks."""
    _text(value)
    bare = value[1:] if value.startswith("*") else value[:-1] if value.endswith("*") else value
    if "*" in bare:
        raise wrong(f"{value!r} has a '*' in the middle, where it stands for itself", "use it only at the start or end")
    if any(character.isspace() for character in bare):
        raise wrong(f"{value!r} is not {what}: it has a blank in it", "remove it")
    return bare


def _path(value: str) -> str:
    _text(value)
    if "{" in value or "}" in value:
        try:
            check_template(value)
        except ValueError as error:
            raise wrong(str(error), "write it as /a/{*}/b or /a/{**}") from error
        return value
    if "*" in value[1:-1]:
        raise wrong(f"{value!r} has a '*' in the middle, where it stands for itself", "use {*} for one segment")
    if value[0] not in "/*":
        raise wrong(f"{value!r} would never match: paths begin with /", f"write it as {'/' + value!r}")
    if "?" in value or "#" in value or any(character.isspace() for character in value):
        raise wrong(f"{value!r} would never match: paths are matched without their query", "leave out what follows ?")
    return value


def _block(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise wrong(f"{value!r} is not an address or CIDR block", "write it as 10.77.0.0/16 or 10.77.1.2") from error
    return value


def _is_port(value: str) -> bool:
    return value.isascii() and value.isdigit() and 1 <= int(value[:6]) <= 65535


def _port(value: str) -> str:
    if not _is_port(value):
        raise wrong(f"{value!r} is not a port", 'use a number from 1 to 65535, in quotes: "8080"')
    return value


def _port_key(value: str) -> str:
    if not _is_port(value):
        raise wrong(f"{value!r} is not a port", "use a number from 1 to 65535")
    return value


def unsupported(what: str, remedy: str) -> Callable[[Any], Any]:
    """A validator that refuses a field of Istio's that means nothing here."""

    def refuse(value: Any) -> Any:
        if value is not None:
            raise wrong(f"{what} is not supported yet", remedy)
        return value

    return refuse


Texts = list[Annotated[str, AfterValidator(_text)]] | None
Principals = list[Annotated[str, AfterValidator(_principal)]] | None
Namespaces = list[Annotated[str, AfterValidator(_namespace)]] | None
Accounts = Annotated[list[Annotated[str, AfterValidator(_account)]], Field(max_length=_MAX_ACCOUNTS)] | None
Blocks = list[Annotated[str, AfterValidator(_block)]] | None
Methods = list[Annotated[str, AfterValidator(_method)]] | None
Hosts = list[Annotated[str, AfterValidator(_host)]] | None
Paths = list[Annotated[str, AfterValidator(_path)]] | None
Ports = list[Annotated[str, AfterValidator(_port)]] | None


def _says_something(model: Strict, what: str) -> None:
    if not any(getattr(model, name) for name in type(model).model_fields):
        raise wrong(f"an empty {what} is not allowed", f"remove it to match any {what}")


class Source(Strict):
    """`from[].source`: all of its clauses must match, of each clause's values any."""

    principals: Principals = None
    """Identities such as cluster.local/ns/shop/sa/web; `*` at the start or the end, alone for any identity."""
    not_principals: Principals = None
    """None of these identities. Plaintext has none, so it matches."""
    request_principals: Texts = None
    """HTTP: issuer/subject of a valid token; `*` as in principals. Elsewhere ALLOW never, DENY always matches."""
    not_request_principals: Texts = None
    """HTTP, likewise: none of these. A request without a token has none, so it matches."""
    namespaces: Namespaces = None
    """Namespaces of the client's identity; `*` as in principals."""
    not_namespaces: Namespaces = None
    """None of these namespaces. Plaintext has none, so it matches."""
    service_accounts: Accounts = None
    """Service accounts such as shop/web, or web in the policy's namespace; not beside principals or namespaces."""
    not_service_accounts: Accounts = None
    """None of these service accounts."""
    ip_blocks: Blocks = None
    """The client's address: CIDR blocks or addresses."""
    not_ip_blocks: Blocks = None
    """None of these blocks."""
    remote_ip_blocks: Blocks = None
    """HTTP, likewise: the address before proxies."""
    not_remote_ip_blocks: Blocks = None
    """HTTP, likewise."""

    @model_validator(mode="after")
    def _whole(self) -> Source:
        _says_something(self, "source")
        named = self.principals or self.not_principals or self.namespaces or self.not_namespaces
        if named and (self.service_accounts or self.not_service_accounts):
            raise wrong(
                "serviceAccounts cannot stand beside principals or namespaces",
                "use serviceAccounts alone ('shop/web'), or put them in two entries of 'from'",
            )
        return self


class From(Strict):
    """`from[]`."""

    source: Source
    """All of its clauses must match, of each clause's values any."""


class Operation(Strict):
    """`to[].operation`: all of its clauses must match, of each clause's values any."""

    hosts: Hosts = None
    """HTTP: as the client asks for it; `*` at the start or the end. Elsewhere ALLOW never, DENY always matches."""
    not_hosts: Hosts = None
    """HTTP, likewise: none of these hosts."""
    ports: Ports = None
    """Target ports, as texts."""
    not_ports: Ports = None
    """None of these target ports."""
    methods: Methods = None
    """HTTP, likewise: such as GET; POST for gRPC."""
    not_methods: Methods = None
    """HTTP, likewise: none of these methods."""
    paths: Paths = None
    """HTTP, likewise: normalised and without the query. `{*}` is one segment, `{**}` any number of them, once."""
    not_paths: Paths = None
    """HTTP, likewise: none of these paths."""

    @model_validator(mode="after")
    def _whole(self) -> Operation:
        _says_something(self, "operation")
        return self


class To(Strict):
    """`to[]`."""

    operation: Operation
    """All of its clauses must match, of each clause's values any."""


_VALUES: dict[str, Callable[[str], str]] = {
    "source.ip": _block,
    "destination.ip": _block,
    "remote.ip": _block,
    "destination.port": _port,
    "source.principal": _principal,
    "source.namespace": _namespace,
}


def _key(key: str) -> str:
    if key in _VALUES or key in _HTTP_KEYS or _BRACKETED.match(key):
        return key
    if key.startswith("destination.labels"):
        raise wrong(f"the attribute {key!r} is of the past", "use spec.selector")
    if key in _REPLACED:
        raise wrong(f"the attribute {key!r} is not available", _REPLACED[key])
    if key.startswith(("request.headers", "request.auth.claims")):
        raise wrong(f"the attribute {key!r} lacks a name in brackets", "write it as request.headers[user-agent]")
    known = [*sorted({*_VALUES, *_HTTP_KEYS}), "request.headers[…]", "request.auth.claims[…]"]
    near = difflib.get_close_matches(re.sub(r"\[.*", "[…]", key), known, 1, cutoff=0.85)
    raise wrong(f"unknown attribute {key!r}", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")


class Condition(Strict):
    """`when[]`."""

    key: Annotated[str, AfterValidator(_key)]
    """source.ip, source.principal, source.namespace, destination.ip, destination.port, or an attribute of HTTP."""
    values: Texts = None
    """Any of these. One of values and notValues is required."""
    not_values: Texts = None
    """None of these."""

    @model_validator(mode="after")
    def _whole(self) -> Condition:
        if not self.values and not self.not_values:
            raise wrong("neither values nor notValues", "add at least one value")
        check = _VALUES.get(self.key, _text)
        for value in (*(self.values or ()), *(self.not_values or ())):
            check(value)
        return self


class Rule(Strict):
    """`rules[]`; empty, it matches everything."""

    from_: Annotated[list[From], Field(min_length=1)] | None = Field(default=None, alias="from")
    """Any of these sources; left out, everyone."""
    to: Annotated[list[To], Field(min_length=1)] | None = None
    """Any of these operations; left out, all."""
    when: list[Condition] | None = None
    """All of these conditions."""


_targets = unsupported("attaching a policy with targetRef", "use 'selector' with the workloads' labels")


class Provider(Strict):
    """`provider`."""

    name: Annotated[str, AfterValidator(_text)]
    """One of `extensionProviders` in the controller's configuration."""


class AuthorizationPolicySpec(Strict):
    """Who may connect to workloads. Empty, it allows nothing: where an ALLOW policy applies, the rest is denied."""

    selector: Selector | None = None
    """Which workloads; without it all of the namespace, in nodemesh-system all of the mesh."""
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] | None = None
    """ALLOW where it is left out. CUSTOM policies are looked at first, then DENY. AUDIT only marks the log."""
    rules: list[Rule] | None = None
    """Any of these must match; a rule `{}` matches everything."""
    target_ref: Annotated[Any, BeforeValidator(_targets)] = None
    """Not supported: use selector."""
    target_refs: Annotated[Any, BeforeValidator(_targets)] = None
    """Not supported: use selector."""
    provider: Provider | None = None
    """Of CUSTOM: who is asked."""

    @model_validator(mode="after")
    def _whole(self) -> AuthorizationPolicySpec:
        if self.action in ("DENY", "AUDIT", "CUSTOM") and self.rules is None:
            raise wrong(
                f"a policy of action {self.action} without rules never applies", "add 'rules: [{}]' for everything"
            )
        if (self.action == "CUSTOM") is (self.provider is None):
            remedy = "add provider.name" if self.provider is None else "remove it, or set action: CUSTOM"
            raise wrong("action CUSTOM and 'provider' belong together", remedy)
        return self


class Mtls(Strict):
    """`mtls`, or one of `portLevelMtls`."""

    mode: Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] | None = None
    """STRICT denies plaintext; UNSET inherits; DISABLE is taken as PERMISSIVE."""


class PeerAuthenticationSpec(Strict):
    """Whether workloads take plaintext."""

    selector: Selector | None = None
    """Which workloads; without it all of the namespace, in nodemesh-system all of the mesh."""
    mtls: Mtls | None = None
    """For all ports that portLevelMtls does not name."""
    port_level_mtls: dict[Annotated[str, AfterValidator(_port_key)], Mtls] | None = None
    """By target port; needs selector."""

    @model_validator(mode="after")
    def _whole(self) -> PeerAuthenticationSpec:
        if self.port_level_mtls is not None:
            if not self.port_level_mtls:
                raise wrong("portLevelMtls is empty", "add a port, or remove it")
            if not (self.selector and self.selector.match_labels):
                raise wrong("portLevelMtls needs a selector", "add selector.matchLabels: it works for workloads only")
        return self
