"""Files to checked resources: every document of every file is validated, and everything wrong with any is reported."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controller.schema.documents import Document, Path, read
from controller.schema.gateway import GATEWAY, GRPCRouteSpec, HTTPRouteSpec, ReferenceGrantSpec
from controller.schema.meta import Envelope, ItemList, Metadata
from controller.schema.problem import Problem
from controller.schema.request_authentication import RequestAuthenticationSpec
from controller.schema.security import AuthorizationPolicySpec, PeerAuthenticationSpec
from controller.schema.service import ServiceSpec
from controller.schema.strict import Strict, check
from controller.schema.traffic_policy import TrafficPolicySpec
from controller.schema.workload import WorkloadSpec

_SECURITY = ("security.istio.io/v1", "security.istio.io/v1beta1", "nodemesh.dev/v1alpha1")
_V1, _V1BETA1, _V1ALPHA2 = (f"{GATEWAY}/{version}" for version in ("v1", "v1beta1", "v1alpha2"))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource that can be stored."""

    name: str
    plural: str
    api_versions: tuple[str, ...]
    """The preferred one first."""
    spec: type[Strict]
    needs_spec: bool
    short_names: tuple[str, ...]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("Service", "services", ("v1",), ServiceSpec, True, ("svc",)),
        Kind("Workload", "workloads", ("nodemesh.dev/v1alpha1",), WorkloadSpec, True, ("wl",)),
        Kind(
            "AuthorizationPolicy", "authorizationpolicies", _SECURITY, AuthorizationPolicySpec, False, ("ap", "authz")
        ),
        Kind("PeerAuthentication", "peerauthentications", _SECURITY, PeerAuthenticationSpec, False, ("pa", "peerauth")),
        Kind(
            "RequestAuthentication",
            "requestauthentications",
            _SECURITY,
            RequestAuthenticationSpec,
            False,
            ("ra", "requestauth"),
        ),
        Kind("HTTPRoute", "httproutes", (_V1, _V1BETA1, _V1ALPHA2), HTTPRouteSpec, True, ("hr",)),
        Kind("GRPCRoute", "grpcroutes", (_V1, _V1ALPHA2), GRPCRouteSpec, True, ("gr",)),
        Kind("ReferenceGrant", "referencegrants", (_V1BETA1, _V1, _V1ALPHA2), ReferenceGrantSpec, True, ("refgrant",)),
        Kind("TrafficPolicy", "trafficpolicies", ("nodemesh.dev/v1alpha1",), TrafficPolicySpec, True, ("tp",)),
    )
}


def kind_named(text: str) -> Kind | None:
    """The kind that a user means, by kind or plural in any case."""
    word = text.lower()
    return next((kind for kind in KINDS.values() if word in (kind.name.lower(), kind.plural)), None)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One resource as a user wrote it, checked, and where."""

    kind: str
    namespace: str
    name: str
    body: dict[str, Any]
    """apiVersion, kind, metadata (name, namespace, labels, annotations) and spec, as written."""
    resource_version: str | None
    document: Document
    at: Path

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, namespace, name)."""
        return self.kind, self.namespace, self.name

    @property
    def line(self) -> int:
        """Where it starts."""
        return self.document.places[self.at][0]

    def problem(self, path: Path, message: str, remedy: str = "") -> Problem:
        """A problem with one of its fields."""
        return self.document.problem((*self.at, *path), message, remedy)


def load(files: Iterable[tuple[str, str]], *, with_spec: bool = True) -> tuple[list[Manifest], list[Problem]]:
    """Read (name, text) pairs. `with_spec` off checks only what names a resource, which is enough to delete it."""
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, str, str], Manifest] = {}
    for name, text in files:
        documents, bad = read(name, text)
        problems += bad
        for document in documents:
            for manifest, found in _manifests(document, document.value, (), with_spec):
                problems += found
                if manifest is None:
                    continue
                if (first := seen.setdefault(manifest.key, manifest)) is not manifest:
                    where = f"{first.document.file}:{first.line}"
                    problems.append(
                        manifest.problem((), f"{manifest.kind} {manifest.name} is here twice", f"first: {where}")
                    )
                manifests.append(manifest)
    return manifests, sorted(problems)


def _manifests(
    document: Document, value: Any, at: Path, with_spec: bool
) -> Iterator[tuple[Manifest | None, list[Problem]]]:
    if isinstance(value, Mapping) and value.get("kind") == "List" and not at:
        items, problems = check(ItemList, document, value)
        yield None, problems
        for index, item in enumerate(items.items if items else ()):
            yield from _manifests(document, item, ("items", index), with_spec)
        return
    yield _manifest(document, value, at, with_spec)


def _manifest(document: Document, value: Any, at: Path, with_spec: bool) -> tuple[Manifest | None, list[Problem]]:
    envelope, problems = check(Envelope, document, value, at)
    kind, wrong_kind = _kind(document, value, at)
    problems += wrong_kind
    spec = value.get("spec") if isinstance(value, Mapping) else None
    if with_spec and kind is not None and isinstance(value, Mapping):
        if spec is None and kind.needs_spec:
            problems.append(document.problem((*at, "spec"), "required field is missing", "add 'spec'"))
        elif spec is not None:
            problems += check(kind.spec, document, spec, (*at, "spec"))[1]
    if problems or envelope is None or kind is None:
        return None, problems
    metadata = envelope.metadata
    namespace = metadata.namespace or "default"
    body = {
        "apiVersion": envelope.api_version,
        "kind": kind.name,
        "metadata": _metadata(metadata, namespace),
        "spec": spec or {},
    }
    manifest = Manifest(kind.name, namespace, metadata.name, body, metadata.resource_version, document, at)
    return manifest, []


def _metadata(metadata: Metadata, namespace: str) -> dict[str, Any]:
    kept: dict[str, Any] = {"name": metadata.name, "namespace": namespace}
    if metadata.labels:
        kept["labels"] = metadata.labels
    if metadata.annotations:
        kept["annotations"] = metadata.annotations
    return kept


_INSTEAD = {
    "VirtualService": "write an HTTPRoute or a GRPCRoute, and a TrafficPolicy for retries, faults and limits",
    "DestinationRule": "write a TrafficPolicy; subsets are Services of their own in an HTTPRoute",
    "ServiceEntry": "write a Service and, for each address, a Workload",
    "WorkloadEntry": "write a Workload",
}
"""What does here what a kind of Istio's does."""


def _kind(document: Document, value: Any, at: Path) -> tuple[Kind | None, list[Problem]]:
    """The document's kind if it is known, whatever else is wrong with it."""
    name, version = (value.get("kind"), value.get("apiVersion")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(version, str):
        return None, []  # the envelope's own check has said so
    kind = KINDS.get(name)
    if kind is None:
        near = [known for known in KINDS if known.lower() == name.lower()]
        near = near or difflib.get_close_matches(name, KINDS, 1, cutoff=0.75)
        remedy = f"did you mean {near[0]!r}?" if near else _INSTEAD.get(name) or f"known: {', '.join(KINDS)}"
        return None, [document.problem((*at, "kind"), f"kind {name!r} is not known here", remedy)]
    if version not in kind.api_versions:
        message = f"{name} has no apiVersion {version!r}"
        return kind, [document.problem((*at, "apiVersion"), message, f"use {kind.api_versions[0]}")]
    return kind, []
