"""Our kinds (and Istio's of the same schema) as they come from the API server, checked.

On plain hosts a resource that makes no sense is never stored. Here it is there already, so it closes: what an
unreadable `AuthorizationPolicy` or `RequestAuthentication` selects is denied everything, what an unreadable
`PeerAuthentication` selects is STRICT; its `Accepted` condition says why. Only one of action AUDIT closes nothing, as
it denies nothing however it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.kubernetes.client import Json
from controller.kubernetes.objects import seconds
from controller.schema.documents import Document
from controller.schema.manifests import KINDS
from controller.schema.strict import check
from controller.store import Resource

_CLOSED: dict[str, Json] = {
    "AuthorizationPolicy": {"action": "DENY", "rules": [{}]},
    "PeerAuthentication": {"mtls": {"mode": "STRICT"}},
    "RequestAuthentication": {"action": "DENY", "rules": [{}]},
}
_STAND_INS = {"RequestAuthentication": "AuthorizationPolicy"}
"""Kinds of which nothing says that all is to be refused, and the kind that says so for them."""


_MAX_PARTS = 10_000
"""Lists, mappings and what is in them. An object of etcd's 1.5 MB could hold half a million empty rules, which take
seconds to translate, to send and to take up, in every process of the mesh."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One status condition."""

    kind: str
    status: str
    reason: str
    message: str
    observed: int
    """The generation that it is about."""
    turned: str = ""
    """When `status` changed last, as Kubernetes writes it."""

    @property
    def said(self) -> tuple[str, str, str, int]:
        """All but the time."""
        return self.status, self.reason, self.message, self.observed


@dataclass(frozen=True, slots=True)
class Declared:
    """A resource, or what stands for one that makes no sense (None: nothing does); `problem` says what is wrong."""

    resource: Resource | None
    problem: str
    generation: int
    conditions: tuple[Condition, ...]


def declared(kind: str) -> Callable[[Json], Declared]:
    """The reader of one kind."""
    model, needed = KINDS[kind].spec, KINDS[kind].needs_spec

    def read(body: Json) -> Declared:
        metadata, spec = body["metadata"], body.get("spec")
        problem = ""
        if spec is None and needed:
            problem = "spec: required field is missing"
        elif _parts(spec) > _MAX_PARTS:
            problem = f"spec: more than {_MAX_PARTS} values in it; divide it among several resources"
        elif spec is not None:
            _, problems = check(model, Document("", body, {(): (1, 1)}), spec, ("spec",))
            problem = "; ".join(f"{p.path}: {p.message}" for p in sorted(problems))
        stands = not problem or _closes(kind, spec)
        if problem:
            spec = _closed(kind, spec)
        generation = int(metadata.get("generation") or 1)
        version = int(metadata.get("resourceVersion") or 0)
        kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if metadata.get(key)}
        whole = {"apiVersion": body.get("apiVersion", ""), "kind": kind, "metadata": kept, "spec": spec or {}}
        names = _STAND_INS.get(kind, kind) if problem else kind, metadata["namespace"], metadata["name"]
        resource = Resource(*names, whole, metadata["uid"], generation, version, seconds(metadata))
        return Declared(resource if stands else None, problem, generation, _conditions(body))

    return read


def _parts(value: Any) -> int:
    """How many values there are in it, counted to a little more than is allowed."""
    count, waiting = 0, [value]
    while waiting and count <= _MAX_PARTS:
        each = waiting.pop()
        if isinstance(each, Mapping | list):
            count += len(each)
            waiting += each.values() if isinstance(each, Mapping) else each
    return count


def _closes(kind: str, spec: Any) -> bool:
    """Whether something stands for it where it makes no sense."""
    return kind in _CLOSED and not (isinstance(spec, Mapping) and spec.get("action") == "AUDIT")


def _closed(kind: str, spec: Any) -> Json:
    selector = spec.get("selector") if isinstance(spec, Mapping) else None
    labels = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    readable = isinstance(labels, Mapping) and all(isinstance(v, str) for v in labels.values())
    return {**_CLOSED.get(kind, {}), **({"selector": {"matchLabels": dict(labels)}} if readable and labels else {})}


def _conditions(body: Json) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            str(c.get("type")),
            str(c.get("status")),
            str(c.get("reason")),
            str(c.get("message")),
            int(c.get("observedGeneration") or 0),
            str(c.get("lastTransitionTime") or ""),
        )
        for c in (body.get("status") or {}).get("conditions") or ()
    )
