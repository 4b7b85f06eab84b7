"""What undoes noded on every node when the mesh is uninstalled: a DaemonSet like its own, for a minute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controller.cli.cluster import NAMESPACE, NODED

Json = dict[str, Any]
NAME = "noded-clean-up"
_UNDO = "undo"
_TASK = ("--clean-up", "--pods")
_NOWHERE = {"nodemesh.dev/no-such-node": "true"}
_HOST = {"host-run": "/run", "host-cni": "/var/lib/cni"}
"""Volumes by name: the parents of folders that are mounted, and so cannot be removed where they are."""
_CONFINED = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def daemonset(like: Mapping[str, Any], *, paused: bool, without: Iterable[str] = ()) -> Json:
    """Made of noded's DaemonSet, or of its own: its pods run `noded --clean-up --pods` and are ready when that is done.

    `paused` selects no node: so it can be in place before noded is gone, and what it is made of with it. `without`
    names nodes that are not waited for.
    """
    template = like["spec"]["template"]
    pod: Mapping[str, Any] = template["spec"]
    undo, image = _undo(pod)
    folders = {
        **image,
        "name": "folders",
        "command": ["sh", "-c", "rm -rf /host-run/nodemesh /host-cni/nodemesh"],
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in _HOST],
        "securityContext": _CONFINED,
    }
    done = {**image, "name": "done", "command": ["sleep", "infinity"], "securityContext": _CONFINED}
    volumes = [volume for volume in pod["volumes"] if volume["name"] not in (*_HOST, *_proofs(pod))]
    volumes += [{"name": name, "hostPath": {"path": path, "type": ""}} for name, path in _HOST.items()]
    nodes = {key: value for key, value in pod.get("nodeSelector", {}).items() if key not in _NOWHERE}
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "nodemesh"}
    annotations = {
        key.replace(f"/{NODED}", f"/{_UNDO}"): value
        for key, value in (template["metadata"].get("annotations") or {}).items()
        if key.startswith("container.apparmor.")
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    **pod,
                    # Not 0: with that the pod is gone from the API at once, and kubelet, which isn't told that it is to
                    # end, may begin it anew while it kills it; that makes again the folders it has removed.
                    "terminationGracePeriodSeconds": 1,
                    "nodeSelector": nodes | (_NOWHERE if paused else {}),
                    **_avoiding(without),
                    "initContainers": [undo, folders],
                    "containers": [done],
                    "volumes": volumes,
                },
            },
        },
    }


def _avoiding(names: Iterable[str]) -> Json:
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in sorted(names)]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}} if fields else {}


def _proofs(pod: Mapping[str, Any]) -> set[str]:
    """Volumes with what noded joins with: of no use here, and not there if no controller ever published its root."""
    return {volume["name"] for volume in pod["volumes"] if "projected" in volume}


def _undo(pod: Mapping[str, Any]) -> tuple[Json, Json]:
    """Noded's container with another task, and what of it says which image."""
    all_ = (*pod.get("initContainers", ()), *pod["containers"])
    noded = next(container for container in all_ if container["name"] in (NODED, _UNDO))
    undo = {key: value for key, value in noded.items() if not key.endswith("Probe") and key != "ports"}
    undo |= {
        "name": _UNDO,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": [arg for arg in noded["args"] if arg not in _TASK] + list(_TASK),
        "volumeMounts": [mount for mount in noded["volumeMounts"] if mount["name"] not in _proofs(pod)],
    }
    return undo, {key: noded[key] for key in ("image", "imagePullPolicy") if key in noded}
