"""What can be wrong with the labels that say who is to be in the mesh."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from mesh.analyze.finding import Finding, Path, Ref
from mesh.analyze.inventory import MODE_LABEL, Inventory, Pods

_MODES = ("enabled", "disabled")


def enrolment(inventory: Inventory) -> Iterator[Finding]:
    """Findings on namespaces and pods."""
    for name, labels in sorted((inventory.namespaces or {}).items()):
        yield from _mode(Ref("Namespace", "", name), labels.get(MODE_LABEL), ("metadata", "labels", MODE_LABEL))
    for pods in inventory.pods:
        if pods.owned:
            continue
        own: Path = ("metadata", "labels", MODE_LABEL)
        path = ("spec", "template", *own) if pods.template else own
        mode = pods.labels.get(MODE_LABEL)
        yield from _mode(pods.ref, mode, path)
        if mode == "enabled" and (why := _never(inventory, pods)):
            message = f"it asks to be in the mesh, but {why}"
            yield Finding("NM0402", pods.ref, path, message, "remove the label, or what stands against it")


def _mode(ref: Ref, mode: str | None, path: Path) -> Iterator[Finding]:
    if mode is not None and mode not in _MODES:
        near = difflib.get_close_matches(mode.lower(), _MODES, 1)
        remedy = f"did you mean {near[0]!r}?" if near else "write enabled or disabled"
        yield Finding("NM0401", ref, path, f"{MODE_LABEL} is {mode!r}, which means nothing: it is ignored", remedy)


def _never(inventory: Inventory, pods: Pods) -> str:
    if pods.host_network:
        return "it is on the host's network, which is never captured"
    if pods.ref.namespace == inventory.root_namespace:
        return f"nothing in {inventory.root_namespace} ever is, so that the mesh can start"
    return ""
