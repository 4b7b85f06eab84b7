"""The objects of simulated nodes and pods: to the API server they are real, but no kubelet runs them.

A simulated node has no `kubernetes.io/os` label, so the DaemonSet puts nothing there, and its own `noded` pod is made
here: with a token bound to that pod, a node joins as a real one does. Services are marked as another proxy's, so that
kube-proxy has no part in what is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]
SYSTEM = "nodemesh-system"
NAMESPACE = "scale"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
LEASE_SECONDS = 300
_MOST_PER_NODE = 200
_PODS_PER_SERVICE = 20
_PORT = 8080


@dataclass(frozen=True)
class Plan:
    """How many of what, and what they are called. Pods are numbered from 0, also beyond `pods`."""

    pods: int
    nodes: int

    def __post_init__(self) -> None:
        if not (1 <= self.nodes <= 5000 and 1 <= self.pods <= self.nodes * _MOST_PER_NODE):
            raise ValueError(f"1 to 5000 nodes, and 1 to {_MOST_PER_NODE} pods for each")

    @property
    def services(self) -> int:
        """One for every twenty pods."""
        return math.ceil(self.pods / _PODS_PER_SERVICE)

    def node(self, number: int) -> str:
        """A node's name."""
        return f"simulated-{number:04}"

    def node_of(self, pod: int) -> int:
        """Round the nodes, so that each has as many."""
        return pod % self.nodes

    def service_of(self, pod: int) -> str:
        """The service that selects it, whose pods are on neighbouring nodes."""
        return f"service-{(pod // _PODS_PER_SERVICE) % self.services:04}"

    def address_of(self, pod: int) -> str:
        """Of its node's range."""
        return f"{_range(self.node_of(pod))}.{2 + pod // self.nodes}"


def _range(node: int) -> str:
    return f"10.{128 + node // 256}.{node % 256}"


def pod_name(number: int) -> str:
    """A pod's name."""
    return f"pod-{number:05}"


def node(plan: Plan, number: int) -> Json:
    """A Node with a range for its pods."""
    pods = f"{_range(number)}.0/24"
    taint = {"key": "nodemesh.dev/simulated", "effect": "NoSchedule"}
    spec = {"podCIDR": pods, "podCIDRs": [pods], "taints": [taint]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": plan.node(number)}, "spec": spec}


def node_status() -> Json:
    """What its kubelet would say once; afterwards the lease says that it lives."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated"}
    return {"status": {"conditions": [ready | {"lastHeartbeatTime": now, "lastTransitionTime": now}]}}


def lease(plan: Plan, number: int) -> Json:
    """Its sign of life, which is to be renewed."""
    name = plan.node(number)
    spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS} | renewal()["spec"]
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}


def renewal() -> Json:
    """What changes in a lease."""
    return {"spec": {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}


def noded_pod(plan: Plan, number: int) -> Json:
    """The pod that a node's token is bound to. Its label is none that the DaemonSet would take it for its own by."""
    name = plan.node(number)
    spec = _spec(name, "noded") | {"hostNetwork": True}
    return _pod({"name": f"noded-{name}", "labels": {"nodemesh.dev/simulated": "noded"}}, spec)


def token_request(pod: Json) -> Json:
    """For a token like the one that kubelet projects into the pod."""
    about = pod["metadata"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]}
    spec = {"audiences": ["nodemesh"], "expirationSeconds": 3600, "boundObjectRef": bound}
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}


def namespace() -> Json:
    """Of all that is simulated; its pods are in the mesh."""
    labels = {"nodemesh.dev/mode": "enabled"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def service(name: str) -> Json:
    """A Service that selects the pods labelled with its name."""
    labels = {"service.kubernetes.io/service-proxy-name": "none"}
    port = {"name": "http", "port": 80, "targetPort": _PORT, "protocol": "TCP"}
    spec = {"selector": {"app": name}, "ports": [port]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec}


def pod(plan: Plan, number: int) -> Json:
    """A pod that is on its node already, so that no scheduler looks at it, and that nothing delays the deletion of."""
    about = {"name": pod_name(number), "labels": {"app": plan.service_of(number)}}
    return _pod(about, _spec(plan.node(plan.node_of(number)), "default"))


def pod_status(plan: Plan, number: int, *, ready: bool) -> Json:
    """What its kubelet would say."""
    address = plan.address_of(number)
    kinds = ("Initialized", "PodScheduled", "ContainersReady", "Ready")
    conditions = [{"type": kind, "status": str(ready or kind in kinds[:2])} for kind in kinds]
    return {
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions},
    }


def policy(name: str, service: str) -> Json:
    """An AuthorizationPolicy for the pods of one service."""
    spec = {"action": "ALLOW", "selector": {"matchLabels": {"app": service}}, "rules": [{}]}
    return {
        "apiVersion": "nodemesh.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def _pod(metadata: Json, spec: Json) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _spec(node: str, account: str) -> Json:
    return {
        "nodeName": node,
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "localhost/simulated", "ports": [{"containerPort": _PORT}]}],
    }
