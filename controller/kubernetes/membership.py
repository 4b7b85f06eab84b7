"""Which pods are to be in the mesh, and what each node is told of its own. Pure.

A namespace labelled `nodemesh.dev/mode=enabled` puts its pods in; a pod's own label of that name wins. Pods in their
node's network, the mesh's own, and finished ones stay out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller.kubernetes.objects import MAX_LABELS, MODE, Namespace, Pod
from mesh.sync import Assign, Assignment, outside


def wanted(pod: Pod, namespaces: Mapping[str, Namespace], root_namespace: str) -> bool:
    """Whether the pod is to be in the mesh."""
    if pod.host_network or pod.finished or not pod.node or pod.namespace == root_namespace:
        return False
    if (own := pod.labels.get(MODE)) in ("enabled", "disabled"):
        return own == "enabled"
    home = namespaces.get(pod.namespace)
    return home is not None and home.enabled


def assign(pods: Iterable[Pod], namespaces: Mapping[str, Namespace], root_namespace: str) -> Assign:
    """What a node is told, of all pods on it."""
    here = sorted((pod for pod in pods if not pod.finished), key=lambda pod: pod.key)
    chosen = [pod for pod in here if wanted(pod, namespaces, root_namespace)]
    return Assign(
        tuple(
            Assignment(pod.host_uid, pod.name, pod.namespace, pod.service_account, _labels(pod), pod.addresses)
            for pod in chosen
        ),
        tuple(sorted(n.name for n in namespaces.values() if n.enabled and n.name != root_namespace)),
        tuple(outside(pod.host_uid, pod.key) for pod in here if not wanted(pod, namespaces, root_namespace)),
    )


def _labels(pod: Pod) -> dict[str, str]:
    """None of too many: its enrolment will be refused, and the node says so."""
    return dict(pod.labels) if len(pod.labels) <= MAX_LABELS else {}
