"""The kinds of resource that meshctl can name, and the short names people type."""

from __future__ import annotations

_SHORT = {
    "svc": "service",
    "wl": "workload",
    "ap": "authorizationpolicy",
    "authz": "authorizationpolicy",
    "pa": "peerauthentication",
    "peerauth": "peerauthentication",
    "ra": "requestauthentication",
    "requestauth": "requestauthentication",
    "hr": "httproute",
    "gr": "grpcroute",
    "refgrant": "referencegrant",
    "tp": "trafficpolicy",
}

PLURALS = {
    "service": "services",
    "workload": "workloads",
    "authorizationpolicy": "authorizationpolicies",
    "peerauthentication": "peerauthentications",
    "requestauthentication": "requestauthentications",
    "httproute": "httproutes",
    "grpcroute": "grpcroutes",
    "referencegrant": "referencegrants",
    "trafficpolicy": "trafficpolicies",
}
"""By kind in lower case."""


def singular(text: str) -> str:
    """The kind in lower case for whatever way of writing it; an unknown one as it is, for the controller to judge."""
    word = text.lower().partition(".")[0]
    by_plural = {plural: kind for kind, plural in PLURALS.items()}
    return _SHORT.get(word) or by_plural.get(word) or word


def plural(text: str) -> str:
    """What the API's paths call it."""
    kind = singular(text)
    return PLURALS.get(kind, kind)
