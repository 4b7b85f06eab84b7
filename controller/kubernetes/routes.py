"""Gateway API's routes as they come from the API server, checked; without a Service as parent they are left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.kubernetes.client import Json
from controller.kubernetes.objects import seconds
from controller.schema.documents import Document
from controller.schema.manifests import KINDS
from controller.schema.strict import check
from controller.store import Resource
from controller.translate import CONTROLLER, is_ours

_MAX_PROBLEMS = 8
"""That a route's status names; the rest is seen once these are mended."""


@dataclass(frozen=True, slots=True)
class DeclaredRoute:
    """A route that concerns the mesh, or did: then it is among those that the mesh has given a status."""

    resource: Resource | None
    """None if it makes no sense, or has no Service as parent any more. Its version is left out."""
    problem: str
    generation: int
    version: str
    references: tuple[tuple[int, Json], ...]
    """Those of `spec.parentRefs` that are Services, with their places."""
    parents: tuple[Json, ...]
    """`status.parents`, everybody's."""
    path: str

    @property
    def ours(self) -> list[Json]:
        """The mesh's own entries of its status."""
        return [entry for entry in self.parents if entry.get("controllerName") == CONTROLLER]


def declared_route(kind: str) -> Callable[[Json], DeclaredRoute | None]:
    """The reader of one kind; None for what does not concern the mesh."""
    model, plural = KINDS[kind].spec, KINDS[kind].plural

    def read(body: Json) -> DeclaredRoute | None:
        metadata, spec = body["metadata"], body.get("spec") or {}
        stated = spec.get("parentRefs") if isinstance(spec, Mapping) else None
        references = tuple((i, r) for i, r in enumerate(stated or ()) if isinstance(r, dict) and is_ours(r))
        parents = tuple((body.get("status") or {}).get("parents") or ())
        if not references and all(entry.get("controllerName") != CONTROLLER for entry in parents):
            return None
        problems = check(model, Document("", body, {(): (1, 1)}), spec, ("spec",))[1] if references else []
        problem = "; ".join(f"{p.path}: {p.message}" for p in sorted(problems)[:_MAX_PROBLEMS])
        generation, version = (
            int(metadata.get("generation") or 1),
            body.get("apiVersion") or KINDS[kind].api_versions[0],
        )
        kept = {key: metadata[key] for key in ("name", "namespace", "labels", "annotations") if metadata.get(key)}
        whole = {"apiVersion": version, "kind": kind, "metadata": kept, "spec": spec}
        names = kind, metadata["namespace"], metadata["name"]
        resource = Resource(*names, whole, metadata["uid"], generation, 0, seconds(metadata))
        return DeclaredRoute(
            resource if references and not problem else None,
            problem,
            generation,
            str(metadata.get("resourceVersion") or ""),
            references,
            parents,
            f"/apis/{version}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}/status",
        )

    return read
