"""`RequestAuthentication` with Istio's schema.

https://istio.io/latest/docs/reference/config/security/request_authentication/ and `…/jwt/`. What Istio's own validation
refuses is refused here, and so is a key set that no token could be checked with.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from controller.schema.meta import Selector
from controller.schema.quantities import Time
from controller.schema.security import unsupported
from controller.schema.strict import Strict, wrong
from mesh import jwks

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
_PREFIX = re.compile(r"[\x20-\x7e]{0,128}\Z")
_TEXT = re.compile(r"[\x21-\x7e]{1,512}\Z")
_RESERVED = (
    "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect",
    "cookie", "proxy-connection",
)  # fmt: skip
_CLAIM = re.compile(r"[^.\s]+(\.[^.\s]+)*\Z")
_MAX_RULES, _MAX_PLACES = 32, 16


def _text(value: str) -> str:
    if not _TEXT.match(value):
        raise wrong(f"{value!r} is empty, too long, or has blanks in it", "write it as it stands in the tokens")
    return value


def _header(value: str) -> str:
    if not _TOKEN.match(value):
        raise wrong(f"{value!r} is not the name of a header", "use letters, digits and '-'")
    return value


def _written(value: str) -> str:
    if _header(value).lower() in _RESERVED:
        raise wrong(f"the header {value!r} is not for claims", "use one of your own, such as x-jwt-sub")
    return value


def _prefix(value: str) -> str:
    if not _PREFIX.match(value):
        raise wrong(f"{value!r} cannot stand in a header", "use printable ASCII")
    return value


def _uri(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not _TEXT.match(value):
        raise wrong(f"{value!r} is not a URL", "write it as https://issuer.example/keys")
    if parts.username or parts.password:
        raise wrong("jwksUri holds a password", "keys are public: leave it out")
    return value


def _key_set(value: str) -> str:
    try:
        jwks.read(value)
    except ValueError as error:
        raise wrong(str(error), 'write the JSON that the issuer publishes: {"keys": […]}') from error
    return value


def _claim(value: str) -> str:
    if not _CLAIM.match(value):
        raise wrong(f"{value!r} is not a claim", "write it as sub, or a.b for one within another")
    return value


Text = Annotated[str, AfterValidator(_text)]
Header = Annotated[str, AfterValidator(_header)]
WrittenHeader = Annotated[str, AfterValidator(_written)]
Places = Annotated[list[Text], Field(max_length=_MAX_PLACES)] | None


class FromHeader(Strict):
    """`jwtRules[].fromHeaders[]`."""

    name: Header
    """The header."""
    prefix: Annotated[str, AfterValidator(_prefix)] | None = None
    """What stands before the token, such as 'Bearer ' with the blank. A header without it holds no token."""


class ClaimToHeader(Strict):
    """`jwtRules[].outputClaimToHeaders[]`."""

    header: WrittenHeader
    """The header to write. What a client says in it is dropped."""
    claim: Annotated[str, AfterValidator(_claim)]
    """The claim, a text, whole number or boolean; a.b for one within another."""


class JwtRule(Strict):
    """`jwtRules[]`: whose tokens are valid, and where they are."""

    issuer: Text
    """What the tokens say in `iss`."""
    audiences: Places = None
    """A token must be for one of these (`aud`); left out, for anybody."""
    jwks_uri: Annotated[str, AfterValidator(_uri)] | None = None
    """Where the issuer publishes its keys. Without it and jwks, where OpenID Connect Discovery at the issuer says."""
    jwks: Annotated[str, AfterValidator(_key_set)] | None = None
    """The keys themselves: a JSON Web Key Set."""
    from_headers: Annotated[list[FromHeader], Field(max_length=_MAX_PLACES)] | None = None
    """Headers that hold tokens. With no place given at all: Authorization, and the parameter access_token."""
    from_params: Places = None
    """Parameters of the query that hold tokens."""
    from_cookies: Places = None
    """Cookies that hold tokens."""
    output_payload_to_header: WrittenHeader | None = None
    """A header in which the workload finds the claims, in base64url. What a client says in it is dropped."""
    forward_original_token: bool | None = None
    """Leave the token in the request."""
    output_claim_to_headers: Annotated[list[ClaimToHeader], Field(max_length=_MAX_PLACES)] | None = None
    """Claims that the workload finds in headers of their own."""
    timeout: Time | None = None
    """How long fetching the keys may take; 5s where it is left out."""

    @model_validator(mode="after")
    def _whole(self) -> JwtRule:
        if self.jwks is not None and self.jwks_uri is not None:
            raise wrong("both jwks and jwksUri", "keep one of them")
        if self.jwks is None and self.jwks_uri is None:
            try:
                _uri(self.issuer)
            except Exception as error:
                raise wrong(
                    f"no jwks, no jwksUri, and the issuer {self.issuer!r} is no URL to ask for its keys",
                    "add jwksUri or jwks",
                ) from error
        return self


_targets = unsupported("attaching a policy with targetRef", "use 'selector' with the workloads' labels")


class RequestAuthenticationSpec(Strict):
    """Which tokens (JWT) are valid: a request with another is refused. One without passes; a policy can ask for one."""

    selector: Selector | None = None
    """Which workloads; without it all of the namespace, in nodemesh-system all of the mesh."""
    jwt_rules: Annotated[list[JwtRule], Field(max_length=_MAX_RULES)] | None = None
    """A request that holds tokens must hold valid ones by one of these."""
    target_ref: Annotated[Any, BeforeValidator(_targets)] = None
    """Not supported: use selector."""
    target_refs: Annotated[Any, BeforeValidator(_targets)] = None
    """Not supported: use selector."""
