"""What can be wrong with a `PeerAuthentication`, alone and beside the others."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.analyze.finding import Finding, Path, Ref
from mesh.analyze.inventory import Inventory, Pods, same_labels
from mesh.authz.selection import effective_mtls
from mesh.model import MtlsMode, PeerAuth


def peer_authentications(inventory: Inventory) -> Iterator[Finding]:
    """Findings on every one."""
    for peer_auth in inventory.peer_auths:
        yield from _alone(inventory, peer_auth)
    yield from _overlaps(inventory)
    yield from _used_from_outside(inventory)


def _ref(peer_auth: PeerAuth) -> Ref:
    return Ref("PeerAuthentication", peer_auth.namespace, peer_auth.name)


def _alone(inventory: Inventory, peer_auth: PeerAuth) -> Iterator[Finding]:
    ref, namespace, selector = _ref(peer_auth), peer_auth.namespace, peer_auth.selector
    if inventory.namespaces is not None and namespace not in inventory.namespaces:
        there = ", ".join(sorted(inventory.namespaces)[:8])
        message = f"there is no namespace {namespace!r}"
        yield Finding("NM0103", ref, ("metadata", "namespace"), message, f"there are: {there or 'none'}")
    elif namespace == inventory.root_namespace and selector:
        yield Finding(
            "NM0205",
            ref,
            ("spec", "selector"),
            f"in {namespace} a PeerAuthentication is for the whole mesh: one with a selector has no effect",
            "remove the selector, or move it to the workloads' namespace",
        )
    elif selector and inventory.knows_pods_of(namespace) and not inventory.selected(namespace, selector):
        message = f"no workload in namespace {namespace} has the labels {same_labels(selector)}"
        yield Finding("NM0201", ref, ("spec", "selector"), message, "compare with the workloads' labels")
    if peer_auth.port_modes and not selector:
        yield Finding(
            "NM0202",
            ref,
            ("spec", "portLevelMtls"),
            "modes of single ports have no effect without a selector",
            "add selector.matchLabels",
        )
    modes: list[tuple[Path, MtlsMode]] = [(("spec", "mtls", "mode"), peer_auth.mode)]
    modes += [(("spec", "portLevelMtls", str(port), "mode"), mode) for port, mode in peer_auth.port_modes.items()]
    for path, mode in modes:
        if mode is MtlsMode.DISABLE:
            message = "DISABLE is taken as PERMISSIVE: plaintext is accepted, tunnels are too"
            yield Finding("NM0206", ref, path, message, "write PERMISSIVE")


def _overlaps(inventory: Inventory) -> Iterator[Finding]:
    """The oldest of a kind counts, for each workload; the others are pointed out, once each."""
    ordered = sorted(inventory.peer_auths, key=lambda p: (p.created, p.key))
    for index, later in enumerate(ordered):
        for earlier in ordered[:index]:
            if earlier.namespace != later.namespace or bool(earlier.selector) != bool(later.selector):
                continue
            if common := _common(inventory, earlier, later):
                yield Finding(
                    "NM0204",
                    _ref(later),
                    ("spec", "selector") if later.selector else ("spec",),
                    f"{_ref(earlier)} is for {common} too; the older one counts, not this",
                    "make one of the two, or selectors that no workload matches both of",
                )
                break


def _common(inventory: Inventory, one: PeerAuth, other: PeerAuth) -> str:
    if not one.selector:
        return "the mesh" if one.namespace == inventory.root_namespace else f"namespace {one.namespace}"
    if one.namespace == inventory.root_namespace:
        return ""
    if one.selector == other.selector:
        return same_labels(one.selector)
    both = one.selector | other.selector
    pods = [p for p in inventory.selected(one.namespace, both) if one.selector.items() <= p.labels.items()]
    return ", ".join(str(p.ref) for p in pods[:3])


def _used_from_outside(inventory: Inventory) -> Iterator[Finding]:
    told: set[tuple[str, str]] = set()
    for pods in inventory.pods:
        mtls = effective_mtls(
            inventory.peer_auths,
            namespace=pods.ref.namespace,
            labels=pods.labels,
            root_namespace=inventory.root_namespace,
        )
        for who, target in _outsiders(inventory, pods):
            mode, by = mtls.at(target) if target else (mtls.mode, mtls.policy)
            if mode is not MtlsMode.STRICT or (by, who) in told:
                continue
            told.add((by, who))
            namespace, _, name = by.partition("/")
            yield Finding(
                "NM0203",
                Ref("PeerAuthentication", namespace, name),
                ("spec",),
                f"STRICT refuses plaintext, and {who}",
                "bring the clients into the mesh, or make the port PERMISSIVE with portLevelMtls",
            )


def _outsiders(inventory: Inventory, pods: Pods) -> Iterator[tuple[str, int]]:
    """Why a client outside the mesh would connect, and the target port (0: whichever)."""
    uid = f"{pods.ref.namespace}/{pods.ref.name}"
    if client := inventory.plaintext.get(uid):
        yield f"{client} was seen connecting to {uid} in plaintext", 0
    for service in inventory.services:
        selector = service.selector
        if not service.exposed or not selector or service.ref.namespace != pods.ref.namespace:
            continue
        if selector.items() <= pods.labels.items():
            for port in service.ports:
                target = port.target if isinstance(port.target, int) else 0
                yield f"{service.ref} ({service.exposed}) is for clients outside the mesh", target
