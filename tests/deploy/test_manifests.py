"""deploy/daemonset: valid for the versions of Kubernetes it is for, in step with the programs, and with few rights."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator, ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4
from starlette.routing import Route

from controller.api import Api
from controller.cli.kustomize import render
from controller.config import load as load_controller
from noded.config import parse
from noded.control.admin import ready_application
from tests.docs.pages import ROOT

FOLDER = ROOT / "deploy/daemonset"
OVERLAYS = {"current": FOLDER, "1.20": FOLDER / "overlays/kubernetes-1.20"}
"""By the version of Kubernetes."""
CHECKERS = ROOT / ".venv/checkers"
NAMESPACE = "nodemesh-system"


@cache
def objects(overlay: str) -> dict[str, dict[str, Any]]:
    """By `Kind/name`."""
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in render(OVERLAYS[overlay])}


def pod(name: str, overlay: str = "current") -> dict[str, Any]:
    spec: dict[str, Any] = objects(overlay)[name]["spec"]["template"]["spec"]
    return spec


NODED, CONTROLLER = "DaemonSet/noded", "Deployment/nodemesh-controller"


@cache
def schemas(overlay: str) -> Path:
    found = sorted(
        CHECKERS.glob(f"kubernetes-{overlay}/kubernetes_validate/*/*-local-strict/_definitions.json"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)],
    )
    if not found:
        pytest.skip("no Kubernetes schemas: run tools/setup test")
    return found[-1].parent


def errors(thing: dict[str, Any], overlay: str) -> list[ValidationError]:
    folder = schemas(overlay)

    @cache
    def retrieve(uri: str) -> Resource[Any]:
        return Resource.from_contents(json.loads((folder / Path(uri).name).read_text()), DRAFT4)

    group, _, version = thing["apiVersion"].rpartition("/")
    name = "-".join(filter(None, (thing["kind"].lower(), group.partition(".")[0], version)))
    registry: Registry[Any] = Registry(retrieve=retrieve)  # type: ignore[call-arg]  # attrs calls it so
    return list(Draft4Validator(retrieve(f"{name}.json").contents, registry=registry).iter_errors(thing))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_for_its_version_of_kubernetes(overlay: str) -> None:
    wrong = [
        f"{name}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for name, thing in objects(overlay).items()
        for error in errors(thing, overlay)
    ]
    assert wrong == []


def test_a_field_of_another_version_would_be_noticed() -> None:
    assert any("appArmorProfile" in error.message for error in errors(objects("current")[NODED], "1.20"))


def test_all_files_are_part_of_an_overlay() -> None:
    used: set[Path] = set()
    for kustomization in FOLDER.rglob("kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text())
        patches = [entry["path"] for entry in content.get("patches", ())]
        for name in (*content["resources"], *patches, *content.get("patchesStrategicMerge", ())):
            used.add((kustomization.parent / name).resolve())
    manifests = {path for path in FOLDER.rglob("*.yaml") if path.name not in ("kustomization.yaml", "checkov.yaml")}
    assert manifests - used == set()


def test_the_image_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for name in (NODED, CONTROLLER) for container in pod(name)["containers"]}
    assert images == {f"localhost/nodemesh:{version}"}


def test_everything_that_can_be_is_in_one_namespace() -> None:
    cluster_wide = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    for name, thing in objects("current").items():
        expected = None if thing["kind"] in cluster_wide else NAMESPACE
        assert thing["metadata"].get("namespace") == expected, name
        assert thing["metadata"]["labels"]["app.kubernetes.io/part-of"] == "nodemesh", name


def test_noded_accepts_its_configuration() -> None:
    spec = pod(NODED)
    text = objects("current")["ConfigMap/noded"]["data"]["noded.yaml"]
    config = parse("noded.yaml", text, node="n1", controller="10.96.0.7:15012")
    assert (config.node, config.controller_address, config.kubernetes) == ("n1", ("10.96.0.7", 15012), True)
    assert spec["terminationGracePeriodSeconds"] > config.drain_seconds
    container = spec["containers"][0]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes[mounts[str(config.key_dir)]]["emptyDir"]["medium"] == "Memory"
    for folder in (config.kubernetes_cni_bin_dir, config.kubernetes_cni_conf_dir, config.kubernetes_cni_state_dir):
        assert volumes[mounts[str(folder)]]["hostPath"]["path"] == str(folder)
    assert volumes[mounts[str(config.run_dir)]]["hostPath"]["path"] == str(config.run_dir)
    assert config.state_dir.is_relative_to(config.run_dir)
    token, root = volumes[mounts["/var/run/secrets/nodemesh"]]["projected"]["sources"]
    assert config.controller_token_file == Path("/var/run/secrets/nodemesh") / token["serviceAccountToken"]["path"]
    assert config.controller_root_file == Path("/var/run/secrets/nodemesh") / root["configMap"]["items"][0]["path"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert (container[probe]["httpGet"]["host"], container[probe]["httpGet"]["port"]) == config.ready_address
    assert config.metrics_address is not None
    assert config.metrics_address[1] == container["ports"][0]["containerPort"]


def test_the_controller_accepts_its_configuration(tmp_path: Path) -> None:
    file = tmp_path / "controller.yaml"
    file.write_text(objects("current")["ConfigMap/nodemesh-controller"]["data"]["controller.yaml"])
    config = load_controller(file)
    service = objects("current")["Service/nodemesh-controller"]
    assert config.advertise == [f"nodemesh-controller.{NAMESPACE}.svc"]
    ports = [port["containerPort"] for port in pod(CONTROLLER)["containers"][0]["ports"]]
    assert ports == [config.listen.port, config.monitoring_address.port]
    assert [port["port"] for port in service["spec"]["ports"]] == ports
    (policy,) = objects("current")["NetworkPolicy/nodemesh-controller"]["spec"]["ingress"]
    assert [port["port"] for port in policy["ports"]] == ports
    mounts = [mount["mountPath"] for mount in pod(CONTROLLER)["containers"][0]["volumeMounts"]]
    assert str(config.run_dir) in mounts
    assert config.state_dir.is_relative_to(config.run_dir)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_have_the_least_rights(overlay: str) -> None:
    added = {}
    for name in (NODED, CONTROLLER):
        spec = pod(name, overlay)
        (container,) = spec["containers"]
        security = container["securityContext"]
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
        assert "privileged" not in security
        assert security["capabilities"]["drop"] == ["ALL"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        added[name] = security["capabilities"].get("add", [])
    assert added == {NODED: ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"], CONTROLLER: []}
    assert pod(CONTROLLER, overlay)["securityContext"]["runAsNonRoot"] is True
    assert not any("hostPath" in volume for volume in pod(CONTROLLER, overlay)["volumes"])


def test_noded_has_no_right_in_the_api() -> None:
    subjects = [
        (subject["namespace"], subject["name"])
        for thing in objects("current").values()
        for subject in thing.get("subjects", ())
    ]
    assert set(subjects) == {(NAMESPACE, "controller")}
    assert pod(NODED)["automountServiceAccountToken"] is False
    assert objects("current")["ServiceAccount/noded"]["automountServiceAccountToken"] is False


def test_the_controller_may_change_nothing_that_is_not_its_own() -> None:
    """Read the mesh; annotate pods; say what it makes of our kinds and of routes. Secrets only by name."""
    reading = {"get", "list", "watch"}
    changing = {
        (group, resource, verb)
        for rule in objects("current")["ClusterRole/nodemesh-controller"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in set(rule["verbs"]) - reading
    }
    statuses = {
        ("nodemesh.dev", f"{plural}/status", verb)
        for plural in (
            "authorizationpolicies",
            "peerauthentications",
            "requestauthentications",
            "trafficpolicies",
            "workloads",
        )
        for verb in ("patch", "update")
    }
    statuses |= {("gateway.networking.k8s.io", f"{plural}/status", "patch") for plural in ("grpcroutes", "httproutes")}
    assert changing == {("", "pods/status", "patch"), ("authentication.k8s.io", "tokenreviews", "create"), *statuses}
    rules = objects("current")["ClusterRole/nodemesh-controller"]["rules"]
    read = {resource for rule in rules for resource in rule["resources"]}
    assert not read & {"secrets", "configmaps", "*"}
    for rule in objects("current")["Role/nodemesh-controller"]["rules"]:
        assert rule.get("resourceNames") or rule["verbs"] == ["create"]


def test_every_node_is_served_and_in_turn() -> None:
    spec = objects("current")[NODED]["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    assert pod(NODED)["tolerations"] == [{"operator": "Exists"}]
    assert pod(NODED)["priorityClassName"] == "system-node-critical"
    assert (pod(NODED)["hostNetwork"], pod(NODED)["hostPID"]) == (True, True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_controller_is_always_there(overlay: str) -> None:
    labels = {"app.kubernetes.io/name": "nodemesh-controller"}
    budget = objects(overlay)["PodDisruptionBudget/nodemesh-controller"]["spec"]
    assert budget == {"minAvailable": 1, "selector": {"matchLabels": labels}}
    deployment = objects(overlay)[CONTROLLER]["spec"]
    assert deployment["replicas"] > budget["minAvailable"]
    assert labels.items() <= deployment["template"]["metadata"]["labels"].items()
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def scan(framework: str, file: Path) -> set[tuple[str, str]]:
    """What checkov finds: each check with what it is about, `Dockerfile` or the kind of object."""
    scanner = CHECKERS / "checkov/bin/checkov"
    if not scanner.exists():
        pytest.skip("no checkov: run tools/setup test")
    arguments = ["--framework", framework, "--skip-download", "--compact", "--soft-fail", "-o", "json", "-f", str(file)]
    done = subprocess.run([str(scanner), *arguments], capture_output=True, text=True, cwd=file.parent)
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 50
    failed = report["results"]["failed_checks"]
    return {(check["check_id"], check["resource"].partition(".")[0].rpartition("/")[2]) for check in failed}


def explained(*kinds: str) -> set[tuple[str, str]]:
    entries = yaml.safe_load((FOLDER / "checkov.yaml").read_text())
    assert all(len(entry["why"]) > 40 for entry in entries)
    return {(entry["check"], kind) for entry in entries for kind in entry["of"] if kind in kinds}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_policy_scanner_finds_in_the_manifests_is_explained(overlay: str, tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(objects(overlay).values()))
    kinds = {thing["kind"] for thing in objects(overlay).values()}
    assert scan("kubernetes", file) == explained(*kinds, "Pod")


def test_what_the_policy_scanner_finds_in_the_containerfile_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text((FOLDER / "Containerfile").read_text())
    assert scan("dockerfile", file) == explained("Dockerfile")


def test_the_image_gets_every_package_of_the_project() -> None:
    copied = re.findall(r"^COPY (\S+) \1$", (FOLDER / "Containerfile").read_text(), re.MULTILINE)
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(copied) == sorted(pattern.rstrip("*") for pattern in found)


def test_probes_ask_for_what_is_served() -> None:
    parts: Any = None  # the routes do not depend on what answers
    served = {NODED: ready_application(parts).routes, CONTROLLER: Api.__new__(Api).monitoring().routes}
    for name, routes in served.items():
        (container,) = pod(name)["containers"]
        asked = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
        assert asked <= {route.path for route in routes if isinstance(route, Route)}
