"""CustomResourceDefinitions, from the models that check the same resources on plain hosts.

`python -m controller.schema.crds FOLDER` writes one file a kind. The schemas are structural in the sense of
apiextensions.k8s.io/v1 as Kubernetes 1.20 has it: no CEL. They say which fields there are, of which types; what a
validator of the models says beyond that (a principal's form, what excludes what) the controller says in the condition
`Accepted`. A field that a model refuses with a reason is kept unpruned, so that the controller sees it and refuses the
resource: pruned, a policy with `targetRef` would become one for its whole namespace.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from controller.schema.manifests import KINDS, Kind

GROUP = "nodemesh.dev"
ACCEPTED, PROGRAMMED = "Accepted", "Programmed"
"""Types of status conditions, as in Gateway API: the resource makes sense; nodes that it concerns have it."""
_HEADER = "# Generated: python -m controller.schema.crds deploy/daemonset/base/crds\n"
_UNPRUNED = {"x-kubernetes-preserve-unknown-fields": True}
_KEPT = ("type", "description", "enum", "required", "minItems", "maxItems", "minimum", "maximum", "pattern")
_NUMBER_OR_TEXT = "x-kubernetes-int-or-string"
_UNDERSTOOD = {*_KEPT, "$ref", "$defs", "anyOf", "properties", "items", "additionalProperties", "default", "title"}
_UNDERSTOOD |= {"const", _NUMBER_OR_TEXT}
_COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Workload": (
        ("Address", ".spec.address", "The address, if there is one."),
        ("Addresses", ".spec.addresses", "The addresses, if there are several."),
        ("Service-Account", ".spec.serviceAccount", "Whose identity it is taken for."),
    ),
    "AuthorizationPolicy": (("Action", ".spec.action", "ALLOW if empty."),),
    "TrafficPolicy": (("Service", ".spec.targetRef.name", "The service that it is for."),),
    "RequestAuthentication": (("Issuer", ".spec.jwtRules[0].issuer", "The first one."),),
    "PeerAuthentication": (("Mode", ".spec.mtls.mode", "UNSET if empty."),),
}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write out what stands in two places: an alias would be hard to read, and to compare."""
        return True


def definitions() -> dict[str, dict[str, Any]]:
    """Every CustomResourceDefinition by the name of its file."""
    own = [kind for kind in KINDS.values() if f"{GROUP}/v1alpha1" in kind.api_versions]
    return {f"{kind.plural}.yaml": _definition(kind) for kind in own}


def text(definition: dict[str, Any]) -> str:
    """The file's content."""
    return _HEADER + yaml.dump(definition, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def structural(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON schema of pydantic's as a structural one. Raises `ValueError` for what cannot be said in one."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    if unknown := schema.keys() - _UNDERSTOOD:
        raise ValueError(f"{', '.join(sorted(unknown))} has no counterpart in a structural schema")
    if "$ref" in schema:
        outer = {key: value for key, value in schema.items() if key != "$ref"}
        return structural({**definitions[schema["$ref"].rpartition("/")[2]], **outer}, definitions)
    if "anyOf" in schema:
        # Optional: the API server drops or refuses a null, so that only the other alternative matters.
        (only,) = [part for part in schema["anyOf"] if part.get("type") != "null"]
        outer = {key: value for key, value in schema.items() if key != "anyOf"}
        return structural({**only, **outer}, definitions)
    made = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        made["enum"] = [schema["const"]]
    if _NUMBER_OR_TEXT in schema:
        return {**made, _NUMBER_OR_TEXT: True}
    if "type" not in schema:
        return {**made, **_UNPRUNED}
    if "properties" in schema:
        made["properties"] = {name: structural(part, definitions) for name, part in schema["properties"].items()}
    if "items" in schema:
        made["items"] = structural(schema["items"], definitions)
    if isinstance(values := schema.get("additionalProperties"), dict):
        made["additionalProperties"] = structural(values, definitions)
    return made


def _definition(kind: Kind) -> dict[str, Any]:
    spec = structural(kind.spec.model_json_schema())
    metadata = {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "nodemesh"}}
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "shortNames": list(kind.short_names),
        "categories": ["nodemesh"],
    }
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _object(kind, spec)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": _columns(kind),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _object(kind: Kind, spec: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
        "status": _status(),
    }
    description = spec.pop("description")
    required = {"required": ["spec"]} if kind.needs_spec else {}
    return {"type": "object", "description": description, **required, "properties": properties}


def _status() -> dict[str, Any]:
    condition = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string", "maxLength": 316, "description": f"{ACCEPTED} or {PROGRAMMED}."},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string", "maxLength": 1024, "description": "One word, for programs."},
            "message": {"type": "string", "maxLength": 32768, "description": "What is wrong and what to do."},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {
                "type": "integer",
                "format": "int64",
                "minimum": 0,
                "description": "The metadata.generation that this is about; an older one has not been looked at yet.",
            },
        },
    }
    return {
        "type": "object",
        "description": "What the controller makes of it.",
        "properties": {
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": condition,
            }
        },
    }


def _columns(kind: Kind) -> list[dict[str, Any]]:
    def column(name: str, path: str, description: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "type": "string", "jsonPath": path, "description": description, **more}

    def condition(name: str, field: str) -> str:
        return f'.status.conditions[?(@.type=="{name}")].{field}'

    return [
        *(column(*entry) for entry in _COLUMNS[kind.name]),
        column(ACCEPTED, condition(ACCEPTED, "status"), "Whether it makes sense."),
        column(PROGRAMMED, condition(PROGRAMMED, "status"), "Whether the nodes that it concerns have it."),
        column("Message", condition(ACCEPTED, "message"), "Why it was accepted or not.", priority=1),
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]


def main(folder: Path) -> None:
    """Write the files."""
    for name, definition in definitions().items():
        (folder / name).write_text(text(definition))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
