"""What is put on a cluster: the packaged manifests, for its version and with the user's settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from controller.cli.kustomize import MANIFESTS, render
from mesh.present.failure import Exit, Failure

Json = dict[str, Any]
OLDEST = (1, 20)
_APPARMOR_FIELD = (1, 30)
_POLICY_V1 = (1, 21)
SETTINGS_ANNOTATION = "nodemesh.dev/settings"
"""On the namespace: the settings of the last installation, for the next upgrade."""
TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"
"""A DaemonSet's annotation; its pods have the number as the label `pod-template-generation`."""
PART_OF = "app.kubernetes.io/part-of=nodemesh"
SETTINGS = {
    "image": "of noded and the controller",
    "imagePullPolicy": "Always, IfNotPresent or Never",
    "trustDomain": "of identities; cannot be changed later",
    "cluster": "its name in metrics and logs",
    "controllerReplicas": "how many controllers",
}


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """`key=value` each. Raises `Failure`."""
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise Failure(f"--set {text}: write KEY=VALUE", _known(), Exit.USAGE)
        if key not in SETTINGS:
            raise Failure(f"--set {text}: there is no setting {key!r}", _known(), Exit.USAGE)
        if key == "controllerReplicas" and not (value.isascii() and value.isdigit() and 1 <= int(value[:4]) <= 99):
            raise Failure(f"--set {text}: {value!r} is not a number from 1 to 99", "", Exit.USAGE)
        if key == "imagePullPolicy" and value not in ("Always", "IfNotPresent", "Never"):
            raise Failure(f"--set {text}: {value!r} is none of Always, IfNotPresent, Never", "", Exit.USAGE)
        settings[key] = value
    return settings


def _known() -> str:
    return "known: " + ", ".join(f"{key} ({what})" for key, what in SETTINGS.items())


def version_of(answer: Mapping[str, Any]) -> tuple[int, int]:
    """From the API's `/version`; providers write the minor as `27+`."""
    minor = "".join(c for c in str(answer.get("minor", "")) if c.isdigit())
    return int(answer.get("major") or 0), int(minor or 0)


def objects(version: tuple[int, int], settings: Mapping[str, str]) -> list[Json]:
    """All objects, in the order in which they are to be applied; with no settings just as they are packaged."""
    overlay = "current" if version >= _APPARMOR_FIELD else "kubernetes-1.20"
    found = render(MANIFESTS / "overlays" / overlay)
    for body in found:
        if body["kind"] == "PodDisruptionBudget":  # v1beta1 went with 1.25, before the overlays' border
            body["apiVersion"] = "policy/v1" if version >= _POLICY_V1 else "policy/v1beta1"
        elif body["kind"] == "Namespace" and settings:
            text = json.dumps(dict(sorted(settings.items())))
            body["metadata"].setdefault("annotations", {})[SETTINGS_ANNOTATION] = text
        elif body["kind"] in ("Deployment", "DaemonSet"):
            _set_workload(body, settings)
        elif "controller.yaml" in body.get("data", {}) and (stated := _of_controller(settings)):
            config = yaml.safe_load(body["data"]["controller.yaml"])
            body["data"]["controller.yaml"] = yaml.safe_dump(config | stated, sort_keys=False)
    return found


def with_added(body: Json, there: Mapping[str, Any] | None) -> Json:
    """A ConfigMap of the daemons' files, with the keys that people have added to those that are there."""
    data = dict(body["data"])
    for name, text in data.items():
        packaged, now = yaml.safe_load(text), _mapping(((there or {}).get("data") or {}).get(name) or "")
        if added := {key: value for key, value in now.items() if key not in packaged}:
            data[name] = yaml.safe_dump(packaged | added, sort_keys=False)
    return {**body, "data": data}


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _of_controller(settings: Mapping[str, str]) -> dict[str, str]:
    """Those that are in its configuration file."""
    return {key: settings[key] for key in ("trustDomain", "cluster") if key in settings}


def _set_workload(body: Json, settings: Mapping[str, str]) -> None:
    template = body["spec"]["template"]
    for container in template["spec"]["containers"]:
        for key in ("image", "imagePullPolicy"):
            container[key] = settings.get(key, container[key])
    if body["kind"] == "Deployment":
        body["spec"]["replicas"] = int(settings.get("controllerReplicas", body["spec"]["replicas"]))
        if stated := _of_controller(settings):  # a change of the file alone would not restart what has read it
            template["metadata"]["annotations"][SETTINGS_ANNOTATION] = json.dumps(dict(sorted(stated.items())))


def settings_of(namespace: Mapping[str, Any]) -> dict[str, str]:
    """Those of the last installation, from the namespace's annotation; unknown ones are left out."""
    text = ((namespace.get("metadata") or {}).get("annotations") or {}).get(SETTINGS_ANNOTATION) or "{}"
    try:
        return {key: str(value) for key, value in json.loads(text).items() if key in SETTINGS}
    except (ValueError, AttributeError):
        return {}


def images(bodies: Iterable[Mapping[str, Any]]) -> set[str]:
    """The images that workloads among these run."""
    return {
        container["image"]
        for body in bodies
        if body["kind"] in ("Deployment", "DaemonSet")
        for container in body["spec"]["template"]["spec"]["containers"]
    }


def name_of(body: Mapping[str, Any]) -> str:
    """`Deployment nodemesh-system/nodemesh-controller`."""
    metadata = body["metadata"]
    return f"{body['kind']} {'/'.join(p for p in (metadata.get('namespace'), metadata['name']) if p)}"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, as people write them."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data.strip("\n") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def as_yaml(bodies: Iterable[Mapping[str, Any]]) -> str:
    """All as one stream of documents."""
    return str(yaml.dump_all(bodies, Dumper=_Dumper, sort_keys=False, explicit_start=True))


def comparable(body: Mapping[str, Any]) -> str:
    """As YAML, without what the API server assigns, for a diff."""
    shown = {key: value for key, value in body.items() if key != "status"}
    assigned = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink")
    shown["metadata"] = {key: value for key, value in body["metadata"].items() if key not in assigned}
    if annotations := shown["metadata"].get("annotations"):
        shown["metadata"]["annotations"] = {k: v for k, v in annotations.items() if k != TEMPLATE_GENERATION}
    return str(yaml.dump(shown, Dumper=_Dumper, sort_keys=True))
