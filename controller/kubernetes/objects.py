"""What is kept of the cluster's objects, and how it is read from the API server's JSON.

Texts that many objects share are interned. Addresses are canonical, as in `mesh.model`; those that are not usable are
left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network

from controller.kubernetes.client import Json
from controller.schema.names import canonical
from mesh.sync import STATIC_UID

ENROLLED = "nodemesh.dev/enrolled"
"""Annotation of a pod: its own UID, put there when its node has enrolled it."""
_WIDEST = {4: 8, 6: 32}
"""Prefix lengths of the largest range of pods' addresses that a node may have."""
MAX_LABELS = 256
"""Of a pod in the mesh. The API server bounds each one and not how many: a node could not be told of all."""
_MIRROR = "kubernetes.io/config.mirror"
"""Annotation of the object that stands for a static pod. It cannot be changed, though whoever creates pods may lie."""
MODE = "nodemesh.dev/mode"
"""Label of a namespace (`enabled`) or a pod (`enabled`, `disabled`)."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `addresses` is empty until it has some, and for those in their node's network (`host_network`)."""

    uid: str
    """The pod's own; `key` is the workload's."""
    name: str
    namespace: str
    service_account: str
    node: str
    addresses: tuple[str, ...]
    labels: Mapping[str, str]
    host_network: bool
    finished: bool
    enrolled: bool
    """Whether its node has put it into the mesh: the annotation names this very pod."""
    created: int
    static: str = ""
    """What its node knows a static pod by: kubelet's hash of its file. Empty for the others."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""
        return f"{self.namespace}/{self.name}"

    @property
    def host_uid(self) -> str:
        """The UID that its node's runtime and cgroups know it by."""
        return self.static or self.uid


@dataclass(frozen=True, slots=True)
class Port:
    """A service's port that carries TCP."""

    name: str
    number: int
    app_protocol: str


@dataclass(frozen=True, slots=True)
class ClusterService:
    """A Service."""

    name: str
    namespace: str
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]
    publish_not_ready: bool


@dataclass(frozen=True, slots=True)
class Backend:
    """An endpoint of a slice; `pod` is its workload's uid, or `""`."""

    addresses: tuple[str, ...]
    ready: bool
    pod: str


@dataclass(frozen=True, slots=True)
class Slice:
    """An EndpointSlice: the TCP target port by port name, and the endpoints."""

    service: str
    """`<namespace>/<name>`."""
    ports: Mapping[str, int]
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class Namespace:
    """A Namespace, and whether its pods are in the mesh by default."""

    name: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A Node and the ranges of its pods' addresses, where the cluster gives them by node."""

    name: str
    pod_ranges: tuple[str, ...]
    created: int
    addresses: tuple[str, ...] = ()
    """Its own."""


def pod(body: Json) -> Pod:
    """Read a Pod."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    host, annotations = bool(spec.get("hostNetwork")), metadata.get("annotations") or {}
    mirrored = annotations.get(_MIRROR) or ""
    stated = [entry.get("ip") for entry in status.get("podIPs") or ()] or [status.get("podIP")]
    return Pod(
        metadata["uid"],
        metadata["name"],
        sys.intern(metadata["namespace"]),
        sys.intern(spec.get("serviceAccountName") or "default"),
        sys.intern(spec.get("nodeName") or ""),
        () if host else _addresses(stated),
        _labels(metadata),
        host,
        status.get("phase") in ("Succeeded", "Failed"),
        annotations.get(ENROLLED) == metadata["uid"],
        seconds(metadata),
        mirrored if STATIC_UID.fullmatch(mirrored) else "",
    )


def service(body: Json) -> ClusterService | None:
    """Read a Service; None for one that is but another name for something outside (`ExternalName`)."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return None
    return ClusterService(
        metadata["name"],
        sys.intern(metadata["namespace"]),
        _addresses(spec.get("clusterIPs") or [spec.get("clusterIP")]),
        tuple(
            Port(port.get("name") or "", port["port"], port.get("appProtocol") or "")
            for port in spec.get("ports") or ()
            if port.get("protocol", "TCP") == "TCP"
        ),
        bool(spec.get("publishNotReadyAddresses")),
    )


def endpoint_slice(body: Json) -> Slice | None:
    """Read an EndpointSlice, v1 or v1beta1; None if it belongs to no service or holds host names."""
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
    if not name or body.get("addressType") not in ("IPv4", "IPv6"):
        return None
    return Slice(
        f"{metadata['namespace']}/{name}",
        {
            port.get("name") or "": port["port"]
            for port in body.get("ports") or ()
            if port.get("protocol", "TCP") == "TCP" and port.get("port")
        },
        tuple(_backend(metadata["namespace"], entry) for entry in body.get("endpoints") or ()),
    )


def _backend(namespace: str, entry: Json) -> Backend:
    target = entry.get("targetRef") or {}
    owner = f"{target.get('namespace') or namespace}/{target.get('name')}" if target.get("kind") == "Pod" else ""
    # "A nil value indicates an unknown state", which "should be interpreted as ready" (discovery/v1 types).
    ready = (entry.get("conditions") or {}).get("ready")
    return Backend(_addresses(entry.get("addresses") or ()), ready is not False, owner)


def namespace(body: Json) -> Namespace:
    """Read a Namespace."""
    return Namespace(body["metadata"]["name"], (body["metadata"].get("labels") or {}).get(MODE) == "enabled")


def node(body: Json) -> ClusterNode:
    """Read a Node."""
    spec = body.get("spec") or {}
    ranges = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    own = [entry.get("address") for entry in (body.get("status") or {}).get("addresses") or ()]
    return ClusterNode(body["metadata"]["name"], _ranges(ranges), seconds(body["metadata"]), _addresses(own))


def _ranges(texts: Iterable[str]) -> tuple[str, ...]:
    """A node may write its own ranges once, so they count only if they are of a node's size."""
    found = []
    for text in texts:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            continue
        if network.prefixlen >= _WIDEST[network.version]:
            found.append(str(network))
    return tuple(found)


def seconds(metadata: Json) -> int:
    """When the object was created, Unix seconds; 0 if it isn't said."""
    text = metadata.get("creationTimestamp")
    return int(datetime.fromisoformat(text).timestamp()) if text else 0


def _labels(metadata: Json) -> dict[str, str]:
    return {sys.intern(key): sys.intern(value) for key, value in (metadata.get("labels") or {}).items()}


def _addresses(texts: Iterable[str | None]) -> tuple[str, ...]:
    found = []
    for text in texts:
        try:
            found.append(canonical(text or ""))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))
