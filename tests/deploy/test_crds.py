"""The CustomResourceDefinitions: up to date, structural, and of one mind with the models on what is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

from controller.cli.kinds import singular
from controller.schema.crds import definitions, structural, text
from controller.schema.manifests import KINDS, load
from controller.schema.reference import page
from tests.docs.pages import DOCS, ROOT
from tests.docs.test_resources import examples

FOLDER = ROOT / "deploy/daemonset/base/crds"
DEFINITIONS = {definition["spec"]["names"]["kind"]: definition for definition in definitions().values()}


def spec_schema(kind: str) -> dict[str, Any]:
    (version,) = DEFINITIONS[kind]["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for part in schema.get("properties", {}).values():
        yield from nodes(part)
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key])


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what the API server would prune made an error."""
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        made["additionalProperties"] = False
    elif "additionalProperties" in schema:
        made["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = closed(schema["items"])
    return made


def errors(kind: str, spec: Any) -> list[str]:
    return [error.message for error in Draft4Validator(closed(spec_schema(kind))).iter_errors(spec)]


def test_the_files_are_what_the_models_say() -> None:
    expected = {name: text(definition) for name, definition in definitions().items()}
    there = {path.name: path.read_text() for path in FOLDER.glob("*.yaml")}
    assert there == expected, "run: python -m controller.schema.crds deploy/daemonset/base/crds"
    policies = {"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "TrafficPolicy"}
    assert set(DEFINITIONS) == {"Workload"} | policies


def test_the_reference_is_what_the_definitions_say() -> None:
    there = (DOCS / "reference/custom-resources.md").read_text()
    assert there == page(), "run: python -m controller.schema.reference docs/reference/custom-resources.md"


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_schemas_are_structural(kind: str) -> None:
    """https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/."""
    (version,) = DEFINITIONS[kind]["spec"]["versions"]
    for node in nodes(version["schema"]["openAPIV3Schema"]):
        untyped = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")
        assert "type" in node or any(node.get(name) for name in untyped)
        assert not ("properties" in node and "additionalProperties" in node)
        assert not node.keys() & {"$ref", "anyOf", "default", "x-kubernetes-validations", "title"}
        if node.get("type") == "array":
            assert "items" in node


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_field_of_a_spec_is_explained(kind: str) -> None:
    fields = [field for node in nodes(spec_schema(kind)) for field in node.get("properties", {}).items()]
    assert [name for name, schema in fields if not schema.get("description")] == []
    assert len(fields) >= 4


@pytest.mark.parametrize(("page", "document"), list(examples()))
def test_every_example_in_the_pages_is_accepted(page: str, document: str) -> None:
    for resource in yaml.safe_load_all(document):
        if resource["kind"] in DEFINITIONS:
            assert errors(resource["kind"], resource["spec"]) == [], page


def test_there_are_examples_of_both_policies() -> None:
    kinds = {resource["kind"] for _, document in examples() for resource in yaml.safe_load_all(document)}
    assert kinds >= {"AuthorizationPolicy", "PeerAuthentication"}


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("AuthorizationPolicy", {"action": "LOG"}),
        ("AuthorizationPolicy", {"rules": [{"from": []}]}),
        ("AuthorizationPolicy", {"rules": [{"from": [{"source": {"principal": ["a/ns/b/sa/c"]}}]}]}),
        ("AuthorizationPolicy", {"rules": [{"when": [{"values": ["10.0.0.1"]}]}]}),
        ("AuthorizationPolicy", {"rules": [{"to": [{"operation": {"ports": [8080]}}]}]}),
        ("PeerAuthentication", {"mtls": {"mode": "strict"}}),
        ("PeerAuthentication", {"selector": {"app": "web"}}),
        ("TrafficPolicy", {"timeout": "10s"}),
        ("TrafficPolicy", {"targetRef": {"name": "web"}, "loadBalancing": {"policy": "maglev"}}),
        ("TrafficPolicy", {"targetRef": {"name": "web"}, "retries": {"attempts": "2"}}),
        ("TrafficPolicy", {"targetRef": {"name": "web"}, "timeout": 10}),
        ("TrafficPolicy", {"targetRef": {"name": "web"}, "versions": ["v1"]}),
        ("TrafficPolicy", {"targetRef": {"name": "web"}, "versions": {"v1": "90%"}}),
        ("Workload", {"address": 10}),
        ("Workload", {"addresses": ["10.0.0.1"] * 17}),
    ],
)
def test_what_the_models_refuse_by_type_the_schema_refuses(kind: str, spec: dict[str, Any]) -> None:
    resource = {"apiVersion": "nodemesh.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    assert load([("x.yaml", yaml.safe_dump(resource))])[1]
    assert errors(kind, spec)


def test_a_field_that_is_refused_with_a_reason_reaches_the_controller() -> None:
    assert errors("AuthorizationPolicy", {"targetRef": {"kind": "Service", "name": "web"}}) == []


@pytest.mark.parametrize("percent", [5, "5%"])
def test_a_percentage_is_a_number_or_a_text(percent: object) -> None:
    spec = {"targetRef": {"name": "web"}, "retryBudget": {"percent": percent}}
    assert errors("TrafficPolicy", spec) == []


def test_what_cannot_be_said_in_a_structural_schema_is_an_error() -> None:
    with pytest.raises(ValueError, match="patternProperties"):
        structural({"type": "object", "patternProperties": {"^a": {"type": "string"}}})


def test_kubectl_and_meshctl_know_the_same_short_names() -> None:
    for kind in KINDS.values():
        assert {singular(word) for word in kind.short_names} == {kind.name.lower()}
    assert DEFINITIONS["Workload"]["spec"]["names"]["shortNames"] == ["wl"]


def test_conditions_can_be_applied_one_by_one() -> None:
    for definition in DEFINITIONS.values():
        (version,) = definition["spec"]["versions"]
        conditions = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
        assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
        assert version["subresources"] == {"status": {}}
