"""`RequestAuthentication`, checked, to the mesh's model. Keys that an issuer publishes come from who fetches them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

from controller.schema.quantities import seconds
from controller.store import Resource
from mesh import jwks
from mesh.model import JwtRule, RequestAuth

_TIMEOUT = 5.0


class KeySource(NamedTuple):
    """Where keys are published."""

    issuer: str
    """Asked by OpenID Connect Discovery where `uri` is empty."""
    uri: str
    timeout: float
    """Seconds."""


class PublishedKeys(Protocol):
    """What is known of the keys that issuers publish."""

    def of(self, source: KeySource) -> tuple[str, str]:
        """The newest key set, or `""`, and what is wrong."""

    def keep(self, sources: Iterable[KeySource]) -> None:
        """Fetch these from now on, the first ones if there are too many, and no others."""


class NoKeys:
    """Where nothing is fetched."""

    def of(self, source: KeySource) -> tuple[str, str]:
        """See `PublishedKeys`."""
        return "", f"the keys of {source.uri or source.issuer} were not fetched"

    def keep(self, sources: Iterable[KeySource]) -> None:
        """See `PublishedKeys`."""


def request_auths(resources: Iterable[Resource], keys: PublishedKeys) -> tuple[RequestAuth, ...]:
    """All checked `RequestAuthentication`s."""
    wanted: defaultdict[str, list[KeySource]] = defaultdict(list)
    made = tuple(_request_auth(resource, keys, wanted[resource.namespace]) for resource in resources)
    # each namespace's in turn, as not any number is fetched: none can crowd out another's
    keys.keep(source for of_each in zip_longest(*wanted.values()) for source in of_each if source is not None)
    return made


def key_problems(resources: Iterable[Resource], keys: PublishedKeys) -> dict[str, str]:
    """By `<namespace>/<name>` of each resource that has its keys fetched: what is wrong, or `""`."""
    found = {}
    for resource in resources:
        if fetched := sources(resource.body.get("spec") or {}):
            wrong = (f"issuer {source.issuer}: {keys.of(source)[1]}" for source in fetched if keys.of(source)[1])
            found[f"{resource.namespace}/{resource.name}"] = "; ".join(wrong)
    return found


def sources(spec: Mapping[str, Any]) -> list[KeySource]:
    """Where the keys of a resource are fetched from."""
    return [source for rule in spec.get("jwtRules") or () if (source := _source(rule)) is not None]


def _source(rule: Mapping[str, Any]) -> KeySource | None:
    if rule.get("jwks") is not None:
        return None
    return KeySource(rule["issuer"], rule.get("jwksUri") or "", seconds(rule.get("timeout"), _TIMEOUT))


def _request_auth(resource: Resource, keys: PublishedKeys, wanted: list[KeySource]) -> RequestAuth:
    spec = resource.body.get("spec") or {}
    selector = dict((spec.get("selector") or {}).get("matchLabels") or {})
    rules = tuple(_rule(rule, keys, wanted) for rule in spec.get("jwtRules") or ())
    return RequestAuth(resource.name, resource.namespace, rules, selector)


def _rule(rule: Mapping[str, Any], keys: PublishedKeys, wanted: list[KeySource]) -> JwtRule:
    if (source := _source(rule)) is None:
        key_set, problem = jwks.write(jwks.read(rule["jwks"])), ""
    else:
        wanted.append(source)
        key_set, problem = keys.of(source)
    return JwtRule(
        rule["issuer"],
        key_set,
        "" if key_set else problem,
        tuple(rule.get("audiences") or ()),
        tuple((place["name"], place.get("prefix") or "") for place in rule.get("fromHeaders") or ()),
        tuple(rule.get("fromParams") or ()),
        tuple(rule.get("fromCookies") or ()),
        rule.get("outputPayloadToHeader") or "",
        bool(rule.get("forwardOriginalToken")),
        tuple((output["header"], output["claim"]) for output in rule.get("outputClaimToHeaders") or ()),
    )
