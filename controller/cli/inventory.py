"""Kubernetes-shaped objects, as files or an API give them, to what `mesh.analyze` looks at."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.cli.inventory_traffic import concerns_us, route_uses, traffic_policies
from controller.schema.documents import Document, Path, read
from controller.schema.manifests import KINDS
from controller.schema.problem import Problem
from controller.schema.strict import check
from controller.store import Resource
from controller.translate import ROUTES, world
from mesh.analyze import Inventory, Pods, Port, Ref, ServiceUse
from mesh.detect import protocol
from mesh.model import ServicePort
from mesh.names import is_label, is_subdomain
from mesh.present.table import dig

_POLICIES = ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication")
_TRAFFIC = (*ROUTES, "ReferenceGrant", "TrafficPolicy")
_TEMPLATES = {
    "Deployment": "spec.template",
    "StatefulSet": "spec.template",
    "DaemonSet": "spec.template",
    "ReplicaSet": "spec.template",
    "ReplicationController": "spec.template",
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
}
_CLUSTER_WIDE = ("Namespace", "Node", "PersistentVolume", "ClusterRole", "ClusterRoleBinding")


@dataclass(frozen=True, slots=True)
class Found:
    """An object, and where it stands."""

    value: Mapping[str, Any]
    document: Document | None = None
    """None for what an API gave."""
    at: Path = ()

    @property
    def ref(self) -> Ref:
        """What it is called; parts that are missing are empty."""
        metadata = self.value.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        kind = str(self.value.get("kind") or "")
        namespace = "" if kind in _CLUSTER_WIDE else str(metadata.get("namespace") or "default")
        return Ref(kind, namespace, str(metadata.get("name") or ""))


@dataclass(slots=True)
class Objects:
    """Objects by what they are called: a file's takes the place of what the API has."""

    found: dict[Ref, Found] = field(default_factory=dict)
    problems: list[tuple[Ref | None, Problem]] = field(default_factory=list)

    def add(self, objects: Iterable[Found]) -> None:
        """Take them up."""
        for each in objects:
            if each.value.get("kind") and each.ref.name:
                self.found[each.ref] = each

    def add_files(self, sources: Mapping[str, str]) -> None:
        """Take up what the texts hold, of whatever kind."""
        for name, text in sources.items():
            documents, problems = read(name, text)
            self.problems += [(None, problem) for problem in problems]
            for document in documents:
                self.add(_in_document(document))

    def _of(self, *kinds: str) -> Iterator[Found]:
        return (found for _ref, found in sorted(self.found.items()) if _ref.kind in kinds)

    def inventory(self, known: Inventory) -> Inventory:
        """What to analyse. `known` says what holds beside the objects (trust domain, who was seen, completeness).

        Resources that are not valid are left out, and are among `problems` afterwards.
        """
        policies = world(self._valid(_POLICIES), {})
        traffic = self._valid(_TRAFFIC)
        services = tuple(service for f in self._of("Service") if (service := _service(f)) is not None)
        uids = {dig(f.value, "metadata.uid") for f in self.found.values()}
        namespaces = {f.ref.name: _labels(f.value, "metadata") for f in self._of("Namespace")}
        accounts = frozenset(f"{f.ref.namespace}/{f.ref.name}" for f in self._of("ServiceAccount"))
        return Inventory(
            pods=tuple(pods for f in self.found.values() if (pods := _pods(f, uids)) is not None),
            services=services,
            policies=policies.policies,
            peer_auths=policies.peer_auths,
            request_auths=policies.request_auths,
            routes=route_uses(traffic, services, complete=known.complete),
            traffic=traffic_policies(traffic),
            namespaces=namespaces or None,
            accounts=accounts if known.complete and accounts else None,
            trust_domain=known.trust_domain,
            root_namespace=known.root_namespace,
            plaintext=known.plaintext,
            key_problems={
                f"{f.ref.namespace}/{f.ref.name}": _key_problem(f) for f in self._of("RequestAuthentication")
            },
            providers=known.providers,
            complete=known.complete,
        )

    def _valid(self, kinds: Iterable[str]) -> list[Resource]:
        """Those of these kinds that are; what is wrong with the others goes to `problems`."""
        valid = []
        for found in self._of(*kinds):
            ref, spec = found.ref, found.value.get("spec")
            if ref.kind in ROUTES and not concerns_us(spec):
                continue
            document = found.document or Document("", found.value, {(): (0, 0)})
            at = (*found.at, "spec")
            problems = check(KINDS[ref.kind].spec, document, {} if spec is None else spec, at)[1]
            if not (is_label(ref.namespace) and is_subdomain(ref.name)):
                problems.append(document.problem(found.at, f"{ref} is not a valid name"))
            self.problems += [(ref, problem) for problem in problems]
            if not problems:
                metadata = {"annotations": _labels(found.value, "metadata", "annotations")}
                body = {"metadata": metadata, "kind": ref.kind, "spec": spec or {}}
                valid.append(Resource(ref.kind, ref.namespace, ref.name, body, "", 1, 0, _created(found)))
        return valid


def _in_document(document: Document) -> Iterator[Found]:
    value = document.value
    if not isinstance(value, Mapping):
        return
    if str(value.get("kind", "")).endswith("List") and isinstance(items := value.get("items"), list):
        for index, item in enumerate(items):
            if isinstance(item, Mapping):
                yield Found(item, document, ("items", index))
    else:
        yield Found(value, document)


def _created(found: Found) -> int:
    from datetime import datetime

    stamp = dig(found.value, "metadata.creationTimestamp")
    try:
        # What a file holds is not there yet, so it is the youngest.
        return int(datetime.fromisoformat(stamp).timestamp()) if isinstance(stamp, str) else 1 << 40
    except ValueError:
        return 1 << 40


def _labels(value: Mapping[str, Any], at: str, name: str = "labels") -> dict[str, str]:
    labels = dig(value, f"{at}.{name}")
    return {str(k): str(v) for k, v in labels.items()} if isinstance(labels, Mapping) else {}


def _key_problem(found: Found) -> str:
    """What the controller said of the keys it fetches; a file says nothing."""
    conditions = _list(dig(found.value, "status.conditions")) if found.document is None else []
    failed = (c for c in conditions if c.get("type") == "KeysFetched" and c.get("status") == "False")
    return next((str(c.get("message") or "the keys were not fetched") for c in failed), "")


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _pods(found: Found, known: Container[Any]) -> Pods | None:
    """The pods of a workload of any kind, whose owner may be among the known; None for what is none, or has ended."""
    value, kind = found.value, found.ref.kind
    if kind == "Workload":
        account = dig(value, "spec.serviceAccount") or "default"
        return Pods(found.ref, _labels(value, "metadata"), str(account), {})
    template = dig(value, _TEMPLATES[kind]) if kind in _TEMPLATES else value if kind == "Pod" else None
    if not isinstance(template, Mapping) or dig(value, "status.phase") in ("Succeeded", "Failed"):
        return None
    containers = _list(dig(template, "spec.containers")) + _list(dig(template, "spec.initContainers"))
    ports = [port for container in containers for port in _list(container.get("ports"))]
    return Pods(
        found.ref,
        _labels(template, "metadata"),
        str(dig(template, "spec.serviceAccountName") or "default"),
        {p["containerPort"]: str(p.get("name") or "") for p in ports if isinstance(p.get("containerPort"), int)},
        dig(template, "spec.hostNetwork") is True,
        kind in _TEMPLATES,
        any(owner.get("uid") in known for owner in _list(dig(value, "metadata.ownerReferences"))),
    )


def _service(found: Found) -> ServiceUse | None:
    spec = found.value.get("spec")
    if not isinstance(spec, Mapping) or spec.get("type") == "ExternalName":
        return None
    ports = []
    for index, port in enumerate(_list(spec.get("ports"))):
        number = port.get("port")
        if isinstance(number, int) and port.get("protocol", "TCP") == "TCP":
            target = port.get("targetPort") or number
            name, declared = str(port.get("name") or ""), str(port.get("appProtocol") or "")
            spoken = protocol(ServicePort(name, number, declared))
            ports.append(Port(index, number, target if isinstance(target, int) else str(target), name, spoken))
    selector = spec.get("selector")
    exposed = f"type {spec['type']}" if spec.get("type") in ("NodePort", "LoadBalancer") else ""
    if not exposed and spec.get("externalIPs"):
        exposed = "externalIPs"
    labels = {str(k): str(v) for k, v in selector.items()} if isinstance(selector, Mapping) else None
    return ServiceUse(found.ref, labels or None, tuple(ports), exposed)
