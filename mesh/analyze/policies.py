"""What can be wrong with an `AuthorizationPolicy`."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.analyze import satisfiable
from mesh.analyze.finding import Finding, Path, Ref
from mesh.analyze.http_clauses import backs, http_clauses
from mesh.analyze.inventory import Inventory, Pods, same_labels
from mesh.model import Action, Policy, Rule, Source


def authorization_policies(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every policy."""
    for policy in inventory.policies:
        ref = Ref("AuthorizationPolicy", policy.namespace, policy.name)
        yield from _applies(inventory, policy, ref)
        if policy.action is Action.ALLOW and not policy.rules:
            yield Finding(
                "NM0106",
                ref,
                ("spec",),
                "an ALLOW policy without rules allows nobody: every connection to what it selects is denied",
                "add a rule, `rules: [{}]` to allow everything; if denial is meant, nothing is to be done",
            )
        for index, rule in enumerate(policy.rules):
            at = ("spec", "rules", index)
            yield from http_clauses(inventory, policy, rule, ref, at)
            yield from _contradictions(inventory, rule, ref, at)
            yield from _names(inventory, rule, ref, at)
            yield from _ports(inventory, policy, rule, ref, at)


def _applies(inventory: Inventory, policy: Policy, ref: Ref) -> Iterator[Finding]:
    if inventory.namespaces is not None and policy.namespace not in inventory.namespaces:
        yield _no_namespace(inventory, ref, ("metadata", "namespace"), policy.namespace)
    elif (
        policy.selector
        and inventory.knows_pods_of(policy.namespace)
        and not inventory.selected(policy.namespace, policy.selector)
    ):
        yield Finding(
            "NM0101",
            ref,
            ("spec", "selector"),
            f"no workload {_where(inventory, policy.namespace)} has the labels {same_labels(policy.selector)}",
            _near(inventory, policy.namespace),
        )


def _where(inventory: Inventory, namespace: str) -> str:
    return "of the mesh" if namespace == inventory.root_namespace else f"in namespace {namespace}"


def _near(inventory: Inventory, namespace: str) -> str:
    """What workloads there are, for somebody who mistyped a label."""
    pods = sorted({same_labels(p.labels) for p in inventory.pods_in(namespace) if p.labels})[:4]
    return f"labels there: {'; '.join(pods)}" if pods else "there is no workload yet"


def _contradictions(inventory: Inventory, rule: Rule, ref: Ref, at: Path) -> Iterator[Finding]:
    trust_domain = inventory.trust_domain or "cluster.local"
    remedy = "remove one of them: as it is, no connection can ever match"
    for number, source in enumerate(rule.sources or (None,)):
        path: Path = (*at, "from", number, "source") if source else (*at, "when")
        if satisfiable.identity_contradicts(source, rule.conditions, trust_domain):
            yield Finding("NM0102", ref, path, "what it says of the client's identity contradicts itself", remedy)
        if satisfiable.source_address_contradicts(source, rule.conditions):
            yield Finding("NM0102", ref, path, "what it says of the client's address contradicts itself", remedy)
    for number, operation in enumerate(rule.operations or (None,)):
        if satisfiable.port_contradicts(operation, rule.conditions):
            path = (*at, "to", number, "operation") if operation else (*at, "when")
            yield Finding("NM0102", ref, path, "what it says of the port contradicts itself", remedy)
    if satisfiable.destination_contradicts(rule.conditions):
        yield Finding("NM0102", ref, (*at, "when"), "what it says of the server's address contradicts itself", remedy)


def _names(inventory: Inventory, rule: Rule, ref: Ref, at: Path) -> Iterator[Finding]:
    for number, source in enumerate(rule.sources):
        yield from _source_names(inventory, source, ref, (*at, "from", number, "source"))
    for number, condition in enumerate(rule.conditions):
        for index, value in enumerate(condition.values):
            path = (*at, "when", number, "values", index)
            if condition.key == "source.principal":
                yield from _principal(inventory, value, ref, path)
            elif condition.key == "source.namespace":
                yield from _namespace(inventory, value, ref, path)


def _source_names(inventory: Inventory, source: Source, ref: Ref, at: Path) -> Iterator[Finding]:
    for index, value in enumerate(source.principals):
        yield from _principal(inventory, value, ref, (*at, "principals", index))
    for clause, values in (("namespaces", source.namespaces), ("notNamespaces", source.not_namespaces)):
        for index, value in enumerate(values):
            yield from _namespace(inventory, value, ref, (*at, clause, index))
    for index, value in enumerate(source.service_accounts):
        namespace, _, account = value.partition("/")
        yield from _account(inventory, namespace, account, ref, (*at, "serviceAccounts", index))


def _principal(inventory: Inventory, value: str, ref: Ref, path: Path) -> Iterator[Finding]:
    trust_domain, _, rest = value.partition("/")
    if "*" in value or not rest:
        return
    if inventory.trust_domain not in (None, trust_domain):
        remedy = f"write {inventory.trust_domain}/{rest}"
        message = f"{value!r} is of the trust domain {trust_domain!r}; this mesh's is {inventory.trust_domain!r}"
        yield Finding("NM0104", ref, path, message, remedy)
        return
    parts = value.split("/")
    if len(parts) == 5:
        yield from _account(inventory, parts[2], parts[4], ref, path)


def _namespace(inventory: Inventory, value: str, ref: Ref, path: Path) -> Iterator[Finding]:
    if "*" not in value and inventory.namespaces is not None and value not in inventory.namespaces:
        yield _no_namespace(inventory, ref, path, value)


def _no_namespace(inventory: Inventory, ref: Ref, path: Path, namespace: str) -> Finding:
    there = ", ".join(sorted(inventory.namespaces or ())[:8])
    return Finding("NM0103", ref, path, f"there is no namespace {namespace!r}", f"there are: {there or 'none'}")


def _account(inventory: Inventory, namespace: str, account: str, ref: Ref, path: Path) -> Iterator[Finding]:
    if inventory.namespaces is not None and namespace not in inventory.namespaces:
        yield _no_namespace(inventory, ref, path, namespace)
    elif inventory.accounts is not None and f"{namespace}/{account}" not in inventory.accounts:
        there = sorted(name for name in inventory.accounts if name.startswith(f"{namespace}/"))[:8]
        message = f"there is no service account {account!r} in namespace {namespace!r}"
        yield Finding("NM0108", ref, path, message, f"there are: {', '.join(there) or 'none'}")


def _ports(inventory: Inventory, policy: Policy, rule: Rule, ref: Ref, at: Path) -> Iterator[Finding]:
    selected = inventory.selected(policy.namespace, policy.selector)
    for number, operation in enumerate(rule.operations):
        for index, port in enumerate(operation.ports):
            if target := _service_port(inventory, selected, port):
                service, number_there = target
                message = (
                    f"{port} is a port of {service}, whose target port is {number_there}; nothing listens on {port}"
                )
                path = (*at, "to", number, "operation", "ports", index)
                yield Finding(
                    "NM0109", ref, path, message, f'a policy\'s ports are target ports: write "{number_there}"'
                )


def _service_port(inventory: Inventory, selected: list[Pods], port: int) -> tuple[Ref, int | str] | None:
    """The service of these pods that has the port, if its target is another and nobody is known to listen on it."""
    if any(port in pods.ports for pods in selected):
        return None
    found = None
    for service in inventory.services:
        if not any(backs(service.selector, service.ref.namespace, pods) for pods in selected):
            continue
        for each in service.ports:
            if each.target == port:
                return None
            if each.port == port:
                found = service.ref, each.target
    return found
