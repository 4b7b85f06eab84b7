"""`RequestAuthentication`: which tokens requests may carry, where, and what becomes of them.

Semantics: https://istio.io/latest/docs/reference/config/security/request_authentication/ and what Istio makes of it for
Envoy's `jwt_authn` filter. All rules of all resources that apply to a workload count together: a request passes if the
tokens of some rule are valid, or if no rule finds a token in it; else it is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from mesh.authz.selection import applies
from mesh.jwks import name as key_set_name
from mesh.jwt import BadToken, Token, payload, read
from mesh.message import Headers, Request
from mesh.model import JwtRule, RequestAuth

MAX_TOKENS = 4
"""Tokens of one request that one rule looks at; more are refused."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """One rule, prepared."""

    issuer: str
    audiences: tuple[str, ...]
    key_set: str
    """Name of its keys (`mesh.jwks.name`), or `""` if there are none."""
    problem: str
    """Why there are none."""
    name: str
    """Equal for rules that say the same of every token."""
    headers: tuple[tuple[bytes, bytes], ...]
    """Name and prefix."""
    params: tuple[bytes, ...]
    cookies: tuple[bytes, ...]
    forward: bool
    payload_header: bytes
    claim_headers: tuple[tuple[bytes, tuple[str, ...]], ...]
    """Header, and path to the claim."""

    def read(self, token: bytes, now: float) -> Token:
        """What a token says that is valid by this rule, but for its signature, at `now` (Unix). Raises `BadToken`."""
        said = read(token)
        said.check(self.issuer, self.audiences, now)
        if not self.key_set:
            raise BadToken("Jwks remote fetch is failed", detail=self.problem)
        return said

    def tokens(self, request: Request) -> list[bytes]:
        """Those in the places that it looks at."""
        found: list[bytes] = []
        for name, prefix in self.headers:
            found += [v[len(prefix) :].strip() for n, v in request.headers if n == name and v.startswith(prefix)]
        if self.params and b"?" in request.path:
            found += [unquote_to_bytes(value) for name, value in _params(request.path) if name in self.params]
        if self.cookies:
            found += [value for name, value in _cookies(request.headers) if name in self.cookies]
        return found

    def accept(self, request: Request, token: bytes, claims: Mapping[str, Any]) -> None:
        """Take the tokens out of a request, unless they are to be forwarded, and write down what the last one says."""
        if not self.forward:
            self.strip(request)
        if self.payload_header:
            request.headers.append((self.payload_header, payload(token)))
        for header, path in self.claim_headers:
            if (value := _header_value(_claim(claims, path))) is not None:
                request.headers.append((header, value))

    def strip(self, request: Request) -> None:
        """Take the tokens out."""
        for name, prefix in self.headers:
            request.headers[:] = [(n, v) for n, v in request.headers if n != name or not v.startswith(prefix)]
        if self.params and b"?" in request.path:
            path, _, query = request.path.partition(b"?")
            kept = [part for part in query.split(b"&") if unquote_to_bytes(part.partition(b"=")[0]) not in self.params]
            request.path = path + b"?" + b"&".join(kept) if kept else path
        if self.cookies:
            request.headers[:] = list(self._without_cookies(request.headers))

    def _without_cookies(self, headers: Headers) -> Iterator[tuple[bytes, bytes]]:
        for name, value in headers:
            if name == b"cookie":
                pairs = value.split(b";")
                kept = [pair for pair in pairs if pair.partition(b"=")[0].strip() not in self.cookies]
                if len(kept) < len(pairs):
                    value = b";".join(kept).strip()
                    if not value:
                        continue
            yield name, value


@dataclass(frozen=True, slots=True)
class TokenRules:
    """All that apply to one workload."""

    rules: tuple[TokenRule, ...]
    made: frozenset[bytes]
    """Headers that come from tokens only: what a client says in them is dropped. As `same` has their names."""

    @classmethod
    def of(
        cls, auths: Iterable[RequestAuth], *, namespace: str, labels: Mapping[str, str], root_namespace: str
    ) -> TokenRules | None:
        """Those of the workload with these labels in this namespace; None if there are none."""
        own = applying(auths, namespace=namespace, labels=labels, root_namespace=root_namespace)
        rules = tuple(_prepared(rule) for auth in own for rule in auth.rules)
        if not rules:
            return None
        made = {rule.payload_header for rule in rules if rule.payload_header}
        made.update(header for rule in rules for header, _path in rule.claim_headers)
        return cls(rules, frozenset(map(same, made)))

    def clean(self, headers: Headers) -> None:
        """Drop what only we may say, of a request's headers or trailers."""
        if self.made:
            headers[:] = [pair for pair in headers if same(pair[0]) not in self.made]


def applying(
    auths: Iterable[RequestAuth], *, namespace: str, labels: Mapping[str, str], root_namespace: str
) -> list[RequestAuth]:
    """Those of the workload with these labels in this namespace, by key, as `TokenRules` has their rules.

    Of several tokens in a request the first rule's counts: in whichever order rules came, all nodes are to agree.
    """
    where: dict[str, Any] = {"namespace": namespace, "labels": labels, "root_namespace": root_namespace}
    own = [auth for auth in auths if applies(auth, **where)]
    return sorted(own, key=lambda auth: (auth.key, sorted(auth.selector.items())))


def same(name: bytes) -> bytes:
    """One name for headers that are one to programs which get them as variables (CGI, WSGI): `x_sub` and `x-sub`."""
    return name.replace(b"_", b"-")


def is_preflight(request: Request) -> bool:
    """Whether it is one of CORS: browsers send no token with it, so none is asked for, as Istio configures Envoy."""
    return (
        request.method == b"OPTIONS"
        and request.header(b"origin") is not None
        and request.header(b"access-control-request-method") is not None
    )


@lru_cache(1024)
def _prepared(rule: JwtRule) -> TokenRule:
    headers = tuple((name.lower().encode(), prefix.encode()) for name, prefix in rule.from_headers)
    params, cookies = tuple(p.encode() for p in rule.from_params), tuple(c.encode() for c in rule.from_cookies)
    if not headers and not params and not cookies:
        headers, params = ((b"authorization", b"Bearer "),), (b"access_token",)
    key_set = key_set_name(rule.jwks) if rule.jwks else ""
    said = "\0".join((rule.issuer, key_set, *rule.audiences))
    return TokenRule(
        rule.issuer,
        rule.audiences,
        key_set,
        rule.problem,
        hashlib.sha256(said.encode()).hexdigest(),
        headers,
        params,
        cookies,
        rule.forward_original_token,
        rule.output_payload_to_header.lower().encode(),
        tuple((header.lower().encode(), tuple(claim.split("."))) for header, claim in rule.output_claim_to_headers),
    )


def _params(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    for part in path.partition(b"?")[2].split(b"&"):
        name, _, value = part.partition(b"=")
        yield unquote_to_bytes(name), value


def _cookies(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    for header, value in headers:
        if header == b"cookie":
            for pair in value.split(b";"):
                name, _, token = pair.strip().partition(b"=")
                yield name, token.strip(b'"')


def _claim(claims: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = claims
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


_UNFIT = re.compile(r"[^\x20-\x7e\x80-\U0010ffff]")


def _header_value(value: Any) -> bytes | None:
    """A claim in a header; None for what has no place in one (Istio: strings, integers and booleans only)."""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return str(value).encode()
    if isinstance(value, str) and not _UNFIT.search(value):
        return value.strip().encode("utf-8", "surrogatepass")
    return None
