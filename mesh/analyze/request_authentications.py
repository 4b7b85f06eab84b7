"""What can be wrong with a `RequestAuthentication`, and with whom CUSTOM policies ask."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.analyze.finding import Finding, Ref
from mesh.analyze.inventory import Inventory, same_labels
from mesh.model import Action, JwtRule, RequestAuth


def request_authentications(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every one."""
    for auth in inventory.request_auths:
        ref = Ref("RequestAuthentication", auth.namespace, auth.name)
        yield from _applies(inventory, auth, ref)
        if problem := inventory.key_problems.get(auth.key):
            remedy = "tokens are checked with the keys fetched before; if there were none, they are refused with 401"
            yield Finding("NM0703", ref, ("spec", "jwtRules"), problem, remedy)
        for index, rule in enumerate(auth.rules):
            if rule.jwks and (problem := _unusable(rule)):
                message = f"no key of issuer {rule.issuer} can check a signature: {problem}"
                remedy = "until there is one, all tokens of that issuer are refused with 401"
                yield Finding("NM0702", ref, ("spec", "jwtRules", index, "jwks"), message, remedy)


def _applies(inventory: Inventory, auth: RequestAuth, ref: Ref) -> Iterator[Finding]:
    namespace = auth.namespace
    if inventory.namespaces is not None and namespace not in inventory.namespaces:
        there = ", ".join(sorted(inventory.namespaces)[:8])
        message = f"there is no namespace {namespace!r}"
        yield Finding("NM0103", ref, ("metadata", "namespace"), message, f"there are: {there or 'none'}")
    elif auth.selector and inventory.knows_pods_of(namespace) and not inventory.selected(namespace, auth.selector):
        where = "of the mesh" if namespace == inventory.root_namespace else f"in namespace {namespace}"
        message = f"no workload {where} has the labels {same_labels(auth.selector)}: no token is checked"
        yield Finding("NM0701", ref, ("spec", "selector"), message, "compare with the workloads' labels")


def _unusable(rule: JwtRule) -> str:
    """Why no signature could be checked with the keys, or `""`."""
    from mesh.signatures import KeySet  # 5 MB that only those with keys need

    keys = KeySet(rule.jwks)
    if keys:
        return ""
    return "; ".join(f"key {key_id!r}: {problem}" if key_id else problem for key_id, problem in keys.left_out)


def providers(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every CUSTOM policy, where it is known who can be asked."""
    known = inventory.providers
    if known is None:
        return
    services = {f"{each.ref.namespace}/{each.ref.name}": each for each in inventory.services}
    for policy in inventory.policies:
        if policy.action is not Action.CUSTOM or policy.dry_run:
            continue
        ref, path = Ref("AuthorizationPolicy", policy.namespace, policy.name), ("spec", "provider", "name")
        if policy.provider not in known:
            there = f"there are: {', '.join(sorted(known))}" if known else "there is none"
            message = f"the controller's configuration has no provider {policy.provider!r}: what matches is denied"
            yield Finding("NM0110", ref, path, message, f"{there} (extensionProviders)")
            continue
        key, port = known[policy.provider]
        service = services.get(key)
        if service is None and inventory.knows_services_of(key.partition("/")[0]):
            missing = "which does not exist"
        elif service is not None and all(each.port != port for each in service.ports):
            missing = f"which has no port {port}"
        else:
            continue
        message = f"the provider {policy.provider!r} is the service {key}, {missing}: it cannot be asked"
        yield Finding("NM0111", ref, path, message, "create it, or correct extensionProviders in the configuration")
