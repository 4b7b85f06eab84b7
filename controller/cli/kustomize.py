"""The manifests that come with the project, rendered as `kubectl kustomize` does.

As much of kustomize as deploy/daemonset uses (a test compares with kubectl): resources, bases, and strategic merge
patches. Anything else in a kustomization is refused, so that nothing is silently left out.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

import controller

Json = dict[str, Any]
MANIFESTS = Path(controller.__file__).parents[1] / "deploy" / "daemonset"
"""Beside the package, in a checkout and where it is installed."""
_KNOWN = {"apiVersion", "kind", "resources", "bases", "patches", "patchesStrategicMerge"}
_MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
_ORDER = (
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "ServiceAccount",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "ConfigMap",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
)
"""What others need comes first."""


def render(folder: Path) -> list[Json]:
    """The objects of a kustomization, in the order in which they are to be applied. Raises `ValueError`."""
    return sorted(
        _build(folder), key=lambda body: _ORDER.index(body["kind"]) if body["kind"] in _ORDER else len(_ORDER)
    )


def _build(folder: Path) -> list[Json]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := kustomization.keys() - _KNOWN:
        raise ValueError(f"{folder}/kustomization.yaml: {min(unknown)!r} is not known here")
    objects: list[Json] = []
    for name in (*kustomization.get("bases", ()), *kustomization.get("resources", ())):
        path = folder / name
        objects += _build(path) if path.is_dir() else _read(path)
    patches = kustomization.get("patches", ())
    if any(patch.keys() != {"path"} for patch in patches):
        raise ValueError(f"{folder}/kustomization.yaml: a patch here is a path and nothing else")
    for name in (*(patch["path"] for patch in patches), *kustomization.get("patchesStrategicMerge", ())):
        for patch in _read(folder / name):
            (target,) = [body for body in objects if _key(body) == _key(patch)]
            merged = _merge(target, patch)
            target.clear()
            target.update(merged)
    return objects


def _read(path: Path) -> list[Json]:
    return [body for body in yaml.safe_load_all(path.read_text()) if body]


def _key(body: Json) -> tuple[str, str, str, str]:
    metadata = body["metadata"]
    return body["apiVersion"], body["kind"], metadata.get("namespace", ""), metadata["name"]


def _merge(into: Any, patch: Any, field: str = "") -> Any:
    """A strategic merge: maps by key, the known lists by theirs, anything else is replaced."""
    if isinstance(into, dict) and isinstance(patch, dict):
        merged = copy.deepcopy(into)
        for key, value in patch.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = _merge(merged.get(key), value, key)
        return merged
    if isinstance(into, list) and isinstance(patch, list) and (by := _MERGED_BY.get(field)):
        given = {item[by]: item for item in patch}
        kept = [_merge(item, given.pop(item[by])) if item[by] in given else item for item in into]
        return [*given.values(), *kept]
    return copy.deepcopy(patch)
