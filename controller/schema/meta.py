"""What every resource has: apiVersion, kind and metadata."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from controller.schema.names import Label, Labels, Subdomain
from controller.schema.strict import Strict, wrong

DRY_RUN = "istio.io/dry-run"
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


class Metadata(Strict):
    """Object metadata. What the controller itself assigns is accepted, so that `get -o yaml` can be applied again."""

    name: Subdomain
    namespace: Label | None = None
    labels: Labels | None = None
    annotations: dict[str, str] | None = None
    resource_version: str | None = None
    """If given, the stored object must still have it."""
    uid: Any = None
    generation: Any = None
    creation_timestamp: Any = None
    managed_fields: Any = None
    owner_references: Any = None
    finalizers: Any = None
    self_link: Any = None

    @field_validator("annotations")
    @classmethod
    def _dry_run(cls, annotations: dict[str, str] | None) -> dict[str, str] | None:
        value = (annotations or {}).get(DRY_RUN, "false")
        if value not in _TRUE + _FALSE:
            raise wrong(f"the annotation {DRY_RUN} is {value!r}", 'set it to "true" or "false"')
        return annotations


class Envelope(Strict):
    """A document; its kind's own model checks `spec`."""

    api_version: str
    kind: str
    metadata: Metadata
    spec: Any = None
    status: Any = None


class ItemList(Strict):
    """`kind: List`, as `kubectl get -o yaml` writes several objects."""

    api_version: Literal["v1"]
    kind: Literal["List"]
    metadata: Any = None
    items: list[Any] = Field(max_length=100_000)


class Selector(Strict):
    """Workloads by their labels."""

    match_labels: Labels | None = None
    """All of these labels; whole values only, no `*`."""


def is_dry_run(annotations: dict[str, str] | None) -> bool:
    """Whether the annotation says that a policy is only to be logged."""
    return (annotations or {}).get(DRY_RUN) in _TRUE
