"""A policy that cannot be read, or that asks for what there is not, closes what it selects."""

from __future__ import annotations

from typing import Any

import pytest

from controller.kubernetes.policies import declared
from controller.translate import peer_auth, policy
from mesh.authz import Authorizer, Denial, Peer, Permit
from mesh.identity import Identity

SELECTED, OTHER = {"app": "web"}, {"app": "other"}
SELECTOR = {"selector": {"matchLabels": SELECTED}}
FRIEND = Peer(Identity("cluster.local", "shop", "client"), "10.77.0.1", "10.77.0.2", 80)
STRANGER = Peer(None, "10.77.0.1", "10.77.0.2", 80)
ALLOW_ALL: dict[str, Any] = {"action": "ALLOW", "rules": [{}]}


def resource(kind: str, spec: Any) -> Any:
    metadata = {"name": "p", "namespace": "shop", "uid": "u", "resourceVersion": "7"}
    return declared(kind)({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec})


def allowed(labels: dict[str, str], peer: Peer, *policies: Any, peer_auths: tuple[Any, ...] = ()) -> bool:
    authorizer = Authorizer.of(policies, peer_auths, namespace="shop", labels=labels, root_namespace="nodemesh-system")
    verdict = authorizer.check(peer)
    assert isinstance(verdict, Permit | Denial)
    return isinstance(verdict, Permit)


@pytest.mark.parametrize(
    "spec",
    [
        {**SELECTOR, "action": "CUSTOM", "rules": [{}]},
        {**SELECTOR, **ALLOW_ALL, "targetRefs": [{"kind": "Service", "name": "web"}]},
        {**SELECTOR, **ALLOW_ALL, "rules": [{"form": []}]},
        {**SELECTOR, "action": "DENNY"},
    ],
)
def test_a_policy_that_asks_for_what_there_is_not_closes_what_it_selects(spec: Any) -> None:
    entry = resource("AuthorizationPolicy", spec)
    assert entry.problem
    assert not allowed(SELECTED, FRIEND, policy(entry.resource))
    assert allowed(OTHER, FRIEND, policy(entry.resource))


@pytest.mark.parametrize(
    "spec",
    [
        {**ALLOW_ALL, "targetRef": {"kind": "Service", "name": "web"}},
        {**ALLOW_ALL, "selector": {"matchLabels": ["app"]}},
        "nonsense",
    ],
)
def test_one_whose_selector_cannot_be_read_or_is_none_closes_its_namespace(spec: Any) -> None:
    entry = resource("AuthorizationPolicy", spec)
    assert entry.problem
    assert not allowed(SELECTED, FRIEND, policy(entry.resource))
    assert not allowed(OTHER, FRIEND, policy(entry.resource))


@pytest.mark.parametrize("spec", [{"action": "AUDIT"}, {"action": "AUDIT", "rules": [{"form": []}]}])
def test_one_of_action_audit_that_cannot_be_read_denies_nothing(spec: Any) -> None:
    entry = resource("AuthorizationPolicy", {**SELECTOR, **spec})
    assert entry.problem
    assert entry.resource is None


def test_a_peer_authentication_that_cannot_be_read_is_strict_for_what_it_selects() -> None:
    entry = resource("PeerAuthentication", {**SELECTOR, "mtls": {"mode": "PERMISIVE"}})
    assert entry.problem
    found = (peer_auth(entry.resource),)
    assert not allowed(SELECTED, STRANGER, peer_auths=found)
    assert allowed(SELECTED, FRIEND, peer_auths=found)
    assert allowed(OTHER, STRANGER, peer_auths=found)
