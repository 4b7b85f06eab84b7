"""What `kubectl kustomize` makes of our folders, without kubectl: resources, and strategic patches that lists of named
items are merged by. A test compares it with kubectl's where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import ROOT

FOLDER = ROOT / "deploy/daemonset"
OVERLAYS = {"current": FOLDER, "1.20": FOLDER / "overlays/kubernetes-1.20"}
"""By the version of Kubernetes."""


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects, in no particular order."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "bases", "patches", "patchesStrategicMerge"}
    assert kustomization.keys() <= known, "the rendering does not understand this"
    objects: list[dict[str, Any]] = []
    for name in (*kustomization.get("bases", ()), *kustomization.get("resources", ())):
        path = folder / name
        objects += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    patches = [entry["path"] for entry in kustomization.get("patches", ())]
    for name in (*patches, *kustomization.get("patchesStrategicMerge", ())):
        patch = yaml.safe_load((folder / name).read_text())
        (index,) = [i for i, one in enumerate(objects) if identity(one) == identity(patch)]
        objects[index] = _merged(objects[index], patch)
    return objects


def identity(thing: dict[str, Any]) -> tuple[str, str, str, str]:
    """(apiVersion, kind, namespace, name)."""
    metadata = thing["metadata"]
    return thing["apiVersion"], thing["kind"], metadata.get("namespace", ""), metadata["name"]


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        named = {item["name"]: item for item in new}
        return [_merged(item, named.pop(item["name"], {})) for item in old] + list(named.values())
    return new
