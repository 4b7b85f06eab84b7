"""`AuthorizationPolicy` and `PeerAuthentication`, checked, to the mesh's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controller.schema.meta import is_dry_run
from controller.store import Resource
from mesh.model import Action, Condition, MtlsMode, Operation, PeerAuth, Policy, Rule, Source


def _selector(spec: Mapping[str, Any]) -> dict[str, str]:
    return dict((spec.get("selector") or {}).get("matchLabels") or {})


def policy(resource: Resource) -> Policy:
    """A checked `AuthorizationPolicy`."""
    spec, namespace = resource.body.get("spec") or {}, resource.namespace
    return Policy(
        resource.name,
        namespace,
        Action(spec.get("action") or "ALLOW"),
        tuple(
            Rule(
                tuple(_source(entry["source"], namespace) for entry in rule.get("from") or ()),
                tuple(_operation(entry["operation"]) for entry in rule.get("to") or ()),
                tuple(
                    Condition(c["key"], tuple(c.get("values") or ()), tuple(c.get("notValues") or ()))
                    for c in rule.get("when") or ()
                ),
            )
            for rule in spec.get("rules") or ()
        ),
        _selector(spec),
        is_dry_run(resource.body["metadata"].get("annotations")),
        (spec.get("provider") or {}).get("name") or "",
    )


def _texts(clause: Mapping[str, Any]) -> Callable[[str], tuple[str, ...]]:
    return lambda name: tuple(clause.get(name) or ())


def _source(source: Mapping[str, Any], namespace: str) -> Source:
    of = _texts(source)

    def accounts(name: str) -> tuple[str, ...]:
        return tuple(account if "/" in account else f"{namespace}/{account}" for account in of(name))

    return Source(
        of("principals"),
        of("notPrincipals"),
        of("namespaces"),
        of("notNamespaces"),
        accounts("serviceAccounts"),
        accounts("notServiceAccounts"),
        of("ipBlocks"),
        of("notIpBlocks"),
        of("requestPrincipals"),
        of("notRequestPrincipals"),
        of("remoteIpBlocks"),
        of("notRemoteIpBlocks"),
    )


def _operation(operation: Mapping[str, Any]) -> Operation:
    of = _texts(operation)
    return Operation(
        tuple(map(int, of("ports"))),
        tuple(map(int, of("notPorts"))),
        of("hosts"),
        of("notHosts"),
        of("methods"),
        of("notMethods"),
        of("paths"),
        of("notPaths"),
    )


def peer_auth(resource: Resource) -> PeerAuth:
    """A checked `PeerAuthentication`."""
    spec = resource.body.get("spec") or {}
    return PeerAuth(
        resource.name,
        resource.namespace,
        _mode(spec.get("mtls")),
        _selector(spec),
        {int(port): _mode(mtls) for port, mtls in (spec.get("portLevelMtls") or {}).items()},
        resource.created,
    )


def _mode(mtls: Mapping[str, Any] | None) -> MtlsMode:
    return MtlsMode((mtls or {}).get("mode") or "UNSET")
