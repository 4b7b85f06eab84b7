"""meshctl on Kubernetes, against a fake of its API: install, upgrade, uninstall, check, and asking the controller."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli import clean_up, deployment, main
from controller.cli.kustomize import MANIFESTS, render
from tests.controller.fake_cluster import FakeCluster, node, serving
from tests.unix_api import Result, invoke

NS = "nodemesh-system"
DAEMONSETS = "apis/apps/v1/daemonsets"
Meshctl = Callable[..., Result]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setattr("controller.cli.rollout._LONGEST_PAUSE", 0.01)
    with serving() as found:
        yield found


@pytest.fixture
def kubeconfig(cluster: FakeCluster, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    return path


@pytest.fixture
def meshctl(kubeconfig: Path, capsys: pytest.CaptureFixture[str]) -> Meshctl:
    def run(*args: str) -> Result:
        limit = ("--timeout", "20s") if args[0] in ("install", "upgrade", "uninstall") else ()
        return invoke(main, capsys, "--kubeconfig", str(kubeconfig), *args, *limit)

    return run


def replies(answers: dict[str, Any]) -> Callable[[str, list[str], bytes], tuple[int, bytes, bytes]]:
    """`exec` of nodectl by its words, and of meshctl relay by method and path."""

    def command(pod: str, words: list[str], line: bytes) -> tuple[int, bytes, bytes]:
        if words == ["meshctl", "relay"]:
            asked = json.loads(line)
            found = answers.get(f"{asked['method']} {asked['path']}")
            content = json.dumps({"error": {"message": "nothing there"}} if found is None else found)
            return 0, json.dumps({"status": 404 if found is None else 200, "content": content}).encode() + b"\n", b""
        found = answers.get(" ".join(words), (0, b'{"items": []}', b""))
        assert isinstance(found, tuple)
        return found

    return command


STATUS = {"workers": [{"restarts": 0}], "controller": {"connected": True, "address": "10.96.0.9:15012"}}
NODES = [
    {
        "name": n,
        "connected": True,
        "revision": 3,
        "acked_revision": 3,
        "version": f"noded/{version('nodemesh')}",
        "certificate_expires": 4e9,
        "certificate_life": 86400.0,
    }
    for n in ("n1", "n2")
]
WELL = {
    "GET /v1/nodes": {"items": NODES},
    "GET /v1/ca": {"trust_domain": "cluster.local", "roots": [{"not_after": 4e9}]},
    "GET /v1/config": {"trust_domain": "cluster.local", "providers": []},
    "GET /v1/edges": {"items": []},
    "nodectl status -o json": (0, json.dumps(STATUS).encode(), b""),
}


@pytest.fixture
def installed(meshctl: Meshctl, cluster: FakeCluster) -> None:
    assert meshctl("install").status == 0
    cluster.commands = replies(dict(WELL))
    cluster.put(
        "apis/coordination.k8s.io/v1/leases",
        {
            "metadata": {"name": "nodemesh-controller", "namespace": NS},
            "spec": {"holderIdentity": "nodemesh-controller-0", "renewTime": "2999-01-01T00:00:00.000000Z"},
        },
    )


# Rendering


def kubectl() -> str | None:
    found = sorted(Path.home().glob(".cache/nodemesh/kubebed/kubernetes-*/bin/kubectl"))
    return str(found[0]) if found else None


@pytest.mark.skipif(kubectl() is None, reason="needs a kubectl: tools/kubebed build")
def test_the_manifests_are_rendered_as_kubectl_renders_them() -> None:
    overlay = MANIFESTS / "overlays" / "kubernetes-1.20"  # the one that the kubectl of this version understands
    output = subprocess.run([kubectl() or "", "kustomize", str(overlay)], capture_output=True, check=True).stdout
    wanted = [body for body in yaml.safe_load_all(output) if body]
    assert sorted(render(overlay), key=deployment.name_of) == sorted(wanted, key=deployment.name_of)


def test_both_overlays_have_the_same_objects() -> None:
    old, new = (render(MANIFESTS / "overlays" / name) for name in ("kubernetes-1.20", "current"))
    assert [deployment.name_of(body) for body in old] == [deployment.name_of(body) for body in new]
    assert old[0]["kind"] == "Namespace"


def test_what_a_kustomization_holds_beyond_what_is_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


@pytest.mark.parametrize(
    ("version", "budget", "field"),
    [("1.20", "policy/v1beta1", False), ("1.27", "policy/v1", False), ("1.31", "policy/v1", True)],
)
def test_the_dry_run_prints_what_fits_the_version(meshctl: Meshctl, version: str, budget: str, field: bool) -> None:
    result = meshctl("install", "--dry-run", "-o", "yaml", "--kubernetes-version", version)
    bodies = {body["kind"]: body for body in yaml.safe_load_all(result.out)}
    assert bodies["PodDisruptionBudget"]["apiVersion"] == budget
    (container,) = bodies["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert ("appArmorProfile" in container["securityContext"]) is field


def test_a_dry_run_asks_nobody(meshctl: Meshctl, cluster: FakeCluster) -> None:
    result = meshctl("install", "--dry-run", "--set", "image=x/y:2", "--set", "trustDomain=example.org")
    assert cluster.requests == []
    bodies = list(yaml.safe_load_all(result.out))
    assert deployment.images(bodies) == {"x/y:2"}
    (config,) = [body["data"]["controller.yaml"] for body in bodies if "controller.yaml" in body.get("data", {})]
    assert yaml.safe_load(config)["trustDomain"] == "example.org"


@pytest.mark.parametrize("text", ["image", "image=", "imege=x", "controllerReplicas=many", "imagePullPolicy=Sometimes"])
def test_a_setting_that_makes_no_sense_is_a_usage_error(meshctl: Meshctl, text: str, cluster: FakeCluster) -> None:
    assert meshctl("install", "--set", text).status == 2
    assert cluster.applied == []


# Install


def test_install_applies_everything_in_order_and_waits(meshctl: Meshctl, cluster: FakeCluster) -> None:
    result = meshctl("install")
    assert result.status == 0, result.err
    kinds = list(dict.fromkeys(kind for kind, _ in cluster.applied))
    assert kinds[:2] == ["Namespace", "CustomResourceDefinition"]
    assert kinds[-2:] == ["Deployment", "DaemonSet"]
    assert "noded on n1: ready" in result.err
    assert "noded on n2: ready" in result.err


def test_installing_again_changes_nothing(meshctl: Meshctl, cluster: FakeCluster, installed: None) -> None:
    before = list(cluster.applied)
    result = meshctl("install")
    assert result.status == 0
    assert cluster.applied == before
    assert "Namespace nodemesh-system: unchanged" in result.err


def test_another_version_that_is_there_already_is_for_upgrade(meshctl: Meshctl, installed: None) -> None:
    result = meshctl("install", "--set", "image=x/y:2")
    assert result.status == 1
    assert "meshctl upgrade" in result.err


def test_an_image_that_is_not_there_ends_the_wait_with_a_remedy(meshctl: Meshctl, cluster: FakeCluster) -> None:
    cluster.broken.add("x/y:2")
    result = meshctl("install", "--set", "image=x/y:2")
    assert result.status == 1
    assert "ErrImageNeverPull" in result.err
    assert "imagePullPolicy" in result.err


def test_a_cluster_that_cannot_take_it_is_left_alone(meshctl: Meshctl, cluster: FakeCluster) -> None:
    cluster.put("api/v1/nodes", node("n2", kernel="3.10.0"))
    result = meshctl("install")
    assert result.status == 1
    assert "n2 has 3.10.0" in result.err
    assert cluster.applied == []
    assert meshctl("install", "--skip-checks").status == 0


# Upgrade


def test_upgrade_shows_what_changes_then_rolls(
    meshctl: Meshctl, cluster: FakeCluster, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.applied.clear()
    shown = meshctl("upgrade", "--set", "image=x/y:2", "--diff")
    assert shown.status == 1
    assert "+        image: x/y:2\n" in shown.out
    assert cluster.applied == []
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert meshctl("upgrade", "--set", "image=x/y:2").status == 1
    assert cluster.applied == []
    result = meshctl("upgrade", "--set", "image=x/y:2", "--yes")
    assert result.status == 0, result.err
    assert {kind for kind, _ in cluster.applied} == {"Namespace", "Deployment", "DaemonSet"}


def test_settings_outlive_an_upgrade(meshctl: Meshctl, cluster: FakeCluster) -> None:
    assert meshctl("install", "--set", "trustDomain=example.org", "--set", "controllerReplicas=3").status == 0
    result = meshctl("upgrade", "--yes")
    assert "nothing changes" in result.err
    assert meshctl("upgrade", "--set", "image=x/y:2", "--yes").status == 0
    body = cluster.get("api/v1/configmaps", "nodemesh-controller", NS)
    assert body is not None
    assert "example.org" in body["data"]["controller.yaml"]


def test_keys_added_to_the_daemons_files_outlive_an_upgrade(
    meshctl: Meshctl, cluster: FakeCluster, installed: None
) -> None:
    maps, name = "api/v1/configmaps", "controller.yaml"

    def data() -> dict[str, str]:
        body = cluster.get(maps, "nodemesh-controller", NS)
        assert body is not None
        found: dict[str, str] = body["data"]
        return found

    packaged = data()[name]
    data()[name] = packaged.replace("store: kubernetes", "store: sqlite") + "pathNormalization: NONE\n"
    assert meshctl("upgrade", "--yes").status == 0
    assert yaml.safe_load(data()[name]) == yaml.safe_load(packaged) | {"pathNormalization": "NONE"}
    assert "nothing changes" in meshctl("upgrade").err


def test_upgrade_deletes_what_the_release_dropped_and_nothing_else(
    meshctl: Meshctl, cluster: FakeCluster, installed: None
) -> None:
    mark = {"labels": {"app.kubernetes.io/part-of": "nodemesh"}}
    ours = {**mark, "managedFields": [{"manager": "meshctl", "operation": "Apply"}]}
    rules, roles = "apis/networking.k8s.io/v1/networkpolicies", "apis/rbac.authorization.k8s.io/v1/clusterroles"
    crds = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for collection, name, namespace, metadata in (
        (rules, "old", NS, ours),
        (roles, "old", "", ours),
        (rules, "mine", NS, mark),  # somebody else's with our label
        (rules, "unmarked", NS, {}),
        (rules, "elsewhere", "shop", ours),
        (crds, "old.nodemesh.dev", "", ours),
        ("api/v1/secrets", "nodemesh-ca", NS, ours),
    ):
        kind = cluster.kinds[collection]
        where = {"namespace": namespace} if namespace else {"namespace": ""}
        cluster.put(collection, {"kind": kind, "metadata": {**metadata, "name": name, **where}})

    def there() -> set[tuple[str, str]]:
        return {(of, name) for of, objects in cluster.objects.items() for _ns, name in objects}

    before = there()
    shown = meshctl("upgrade", "--diff")
    assert shown.status == 1
    assert [line for line in shown.out.splitlines() if line.startswith("+++")] == [
        "+++ ClusterRole old (deleted)",
        f"+++ NetworkPolicy {NS}/old (deleted)",
    ]
    assert there() == before
    result = meshctl("upgrade", "--yes")
    assert result.status == 0, result.err
    assert f"NetworkPolicy {NS}/old: deleted" in result.err
    assert before - there() == {(rules, "old"), (roles, "old")}
    assert "nothing changes" in meshctl("upgrade").err


def test_upgrade_of_nothing_says_install(meshctl: Meshctl) -> None:
    result = meshctl("upgrade")
    assert result.status == 1
    assert "meshctl install" in result.err


# Uninstall


def test_uninstall_leaves_nothing(meshctl: Meshctl, cluster: FakeCluster, installed: None) -> None:
    pod = {"metadata": {"name": "web", "namespace": "shop", "annotations": {"nodemesh.dev/enrolled": "u", "a": "b"}}}
    cluster.put("api/v1/pods", pod)
    result = meshctl("uninstall", "--yes")
    assert result.status == 0, result.err
    left = [body for of in cluster.objects.values() for body in of.values() if body.get("kind") != "Node"]
    assert [(body["metadata"]["name"], body["metadata"].get("annotations")) for body in left] == [("web", {"a": "b"})]


def test_uninstall_takes_back_what_it_said_of_routes(meshctl: Meshctl, cluster: FakeCluster, installed: None) -> None:
    routes = "apis/gateway.networking.k8s.io/v1/httproutes"
    cluster.kinds[routes] = "HTTPRoute"
    theirs = {"controllerName": "edge.example/gateway", "parentRef": {"name": "edge"}}
    ours = {"controllerName": "nodemesh.dev/controller", "parentRef": {"name": "web"}}
    metadata = {"name": "r", "namespace": "shop"}
    cluster.put(routes, {"metadata": metadata, "status": {"parents": [theirs, ours]}})
    assert meshctl("uninstall", "--yes").status == 0
    body = cluster.get(routes, "r", "shop")
    assert body is not None
    assert body["status"] == {"parents": [theirs]}


def test_uninstall_cleans_nodes_after_noded_and_before_the_rest(
    meshctl: Meshctl, cluster: FakeCluster, installed: None
) -> None:
    cluster.requests.clear()
    cluster.seen.clear()
    assert meshctl("uninstall", "--yes").status == 0
    waiting, running = cluster.seen
    assert clean_up._NOWHERE.items() <= waiting["spec"]["template"]["spec"]["nodeSelector"].items()
    pod = running["spec"]["template"]["spec"]
    undo = pod["initContainers"][0]
    assert undo["command"] == ["noded"]
    assert undo["args"][-2:] == ["--clean-up", "--pods"]
    assert undo["securityContext"]["capabilities"]["add"]
    assert pod["hostPID"]
    # Nothing that only a running controller makes, such as nodemesh-root: there may never have been one.
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    kinds = {kind for volume in volumes.values() for kind in volume.keys() - {"name"}}
    assert kinds == {"configMap", "emptyDir", "hostPath"}
    assert [volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume] == ["noded"]
    assert {mount["name"] for step in pod["initContainers"] for mount in step["volumeMounts"]} <= volumes.keys()
    deleted = [line.rpartition("/")[2] for line in cluster.requests if line.startswith("DELETE")]
    assert deleted[:3] == ["noded", clean_up.NAME, "nodemesh-controller"]
    assert deleted[-1] == NS


def test_an_uninstall_that_was_interrupted_is_taken_up_again(
    meshctl: Meshctl, cluster: FakeCluster, installed: None
) -> None:
    there = cluster.get(DAEMONSETS, "noded", NS)
    assert there is not None
    paused = clean_up.daemonset(there, paused=True)
    cluster.put(DAEMONSETS, {**paused, "metadata": {**paused["metadata"], "generation": 1}})
    cluster.remove(DAEMONSETS, "noded", NS)
    cluster.seen.clear()
    assert meshctl("uninstall", "--yes").status == 0
    (again,) = cluster.seen
    assert again["spec"] == clean_up.daemonset(there, paused=False)["spec"]


def test_a_node_that_is_away_stands_in_the_way_unless_forced(
    meshctl: Meshctl, cluster: FakeCluster, installed: None
) -> None:
    cluster.put("api/v1/nodes", node("n2", ready="Unknown"))
    cluster.applied.clear()
    cluster.seen.clear()
    result = meshctl("uninstall", "--yes")
    assert result.status == 1
    assert "n2" in result.err
    assert cluster.applied == []
    result = meshctl("uninstall", "--yes", "--force")
    assert result.status == 0, result.err
    assert "not cleaned: n2" in result.err
    affinity = cluster.seen[-1]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["n2"]}]


def test_uninstall_may_keep_the_resources(meshctl: Meshctl, cluster: FakeCluster, installed: None) -> None:
    assert meshctl("uninstall", "--yes", "--keep-resources").status == 0
    assert len(cluster.objects["apis/apiextensions.k8s.io/v1/customresourcedefinitions"]) == 5


# Check


def states(result: Result) -> dict[str, str]:
    return {item["check"]: item["state"] for item in json.loads(result.out)["items"]}


def test_check_before_an_installation(meshctl: Meshctl, cluster: FakeCluster) -> None:
    result = meshctl("check", "--pre", "-o", "json")
    assert set(states(result).values()) == {"ok"}
    assert result.status == 0


@pytest.mark.parametrize(
    ("make", "check", "state"),
    [
        (lambda c: setattr(c, "minor", "18"), "Kubernetes is 1.20 or newer", "failed"),
        (lambda c: c.denied.add(("create", "customresourcedefinitions")), "you may install it", "failed"),
        (lambda c: c.denied.add(("create", "pods/exec")), "you may look into its pods", "warning"),
        (lambda c: c.put("api/v1/nodes", node("n1", "4.4.0")), "kernels are Linux 4.19 or newer", "failed"),
        (lambda c: c.put("api/v1/nodes", node("n1", ready="False")), "every node has a pod network", "failed"),
        (
            lambda c: c.put(DAEMONSETS, {"metadata": {"name": "ztunnel", "namespace": "istio-system"}}),
            "no other mesh captures traffic",
            "warning",
        ),
    ],
)
def test_what_stands_against_an_installation_is_said(
    meshctl: Meshctl, cluster: FakeCluster, make: Callable[[FakeCluster], Any], check: str, state: str
) -> None:
    make(cluster)
    result = meshctl("check", "--pre", "-o", "json")
    assert {name for name, found in states(result).items() if found != "ok"} == {check}
    assert states(result)[check] == state
    assert result.status == (1 if state == "failed" else 0)
    remedy = [item["remedy"] for item in json.loads(result.out)["items"] if item["check"] == check]
    assert all(remedy)


def test_check_of_a_mesh_that_is_well(meshctl: Meshctl, installed: None) -> None:
    result = meshctl("check")
    assert result.status == 0, result.out
    assert "0 failed, 0 warnings" in result.out
    assert [line for line in result.out.splitlines() if line and not line.startswith(" ")][:-1] == [
        "kubernetes",
        "installation",
        "controller",
        "nodes",
        "node n1",
        "node n2",
    ]


@pytest.mark.parametrize(
    ("answer", "value", "check"),
    [
        ("GET /v1/nodes", {"items": [{**NODES[0], "connected": False}]}, "all are connected"),
        ("GET /v1/nodes", {"items": [{**NODES[0], "acked_revision": 1}]}, "all are in step with the controller"),
        (
            "GET /v1/nodes",
            {"items": [{**NODES[0], "certificate_expires": 1}]},
            "all have certificates that are not about to expire",
        ),
        ("GET /v1/ca", {"roots": [{"not_after": 1}]}, "the roots are valid for another 30 days"),
        (
            "nodectl capture --verify -o json",
            (1, b'{"items": [{"uid": "shop/web", "drift": ["mangle: gone"]}]}', b""),
            "its rules are intact",
        ),
        (
            "nodectl certs -o json",
            (0, b'{"items": [{"uid": "shop/web", "state": "expired"}]}', b""),
            "its certificates are valid",
        ),
        (
            "nodectl workloads -o json",
            (0, b'{"items": [{"uid": "shop/web", "state": "failed", "reason": "no tproxy"}]}', b""),
            "its workloads are enrolled",
        ),
        ("nodectl status -o json", (3, b"", b"error: cannot reach noded"), "noded answers"),
    ],
)
def test_what_is_wrong_with_a_mesh_is_said(
    meshctl: Meshctl, cluster: FakeCluster, installed: None, answer: str, value: Any, check: str
) -> None:
    cluster.commands = replies({**WELL, answer: value})
    result = meshctl("check", "-o", "json")
    assert {name for name, state in states(result).items() if state != "ok"} == {check}
    assert result.status == 1


@pytest.mark.parametrize(
    ("change", "check", "detail"),
    [
        ({"certificate_expires": 5.5 * 3600}, "all have certificates that are not about to expire", "n1: 5h"),
        ({"version": "noded/0.0.9"}, "all are of meshctl's version", "0.0.9"),
    ],
)
def test_what_will_be_wrong_with_a_mesh_is_a_warning(
    meshctl: Meshctl, cluster: FakeCluster, installed: None, change: dict[str, Any], check: str, detail: str
) -> None:
    if "certificate_expires" in change:
        change = {"certificate_expires": time.time() + change["certificate_expires"]}
    cluster.commands = replies({**WELL, "GET /v1/nodes": {"items": [{**NODES[0], **change}, NODES[1]]}})
    result = meshctl("check", "-o", "json")
    wrong = [row for row in json.loads(result.out)["items"] if row["state"] != "ok"]
    assert [(row["check"], row["state"]) for row in wrong] == [(check, "warning")]
    assert detail in wrong[0]["detail"]
    assert result.status == 0


def test_check_without_an_installation_fails_and_says_install(meshctl: Meshctl) -> None:
    result = meshctl("check")
    assert result.status == 1
    assert "meshctl install" in result.out


def test_a_leader_that_is_silent_is_noticed(meshctl: Meshctl, cluster: FakeCluster, installed: None) -> None:
    lease = cluster.get("apis/coordination.k8s.io/v1/leases", "nodemesh-controller", NS)
    assert lease is not None
    lease["spec"]["renewTime"] = "2020-01-01T00:00:00.000000Z"
    assert states(meshctl("check", "-o", "json"))["one controller leads"] == "failed"


# The controller through a pod


def test_commands_ask_the_controller_from_inside_its_pod(
    meshctl: Meshctl, cluster: FakeCluster, installed: None
) -> None:
    result = meshctl("nodes", "--no-headers")
    assert result.status == 0, result.err
    assert [line.split()[:3] for line in result.out.splitlines()] == [
        ["n1", "connected", "in-step"],
        ["n2", "connected", "in-step"],
    ]
    result = meshctl("node", "forget", "n3")
    assert result.status == 1
    assert "nothing there" in result.err


def test_no_controller_is_said_with_status_3(meshctl: Meshctl) -> None:
    result = meshctl("nodes")
    assert result.status == 3
    assert "meshctl install" in result.err


def test_a_cluster_that_is_away_is_said_with_status_3(meshctl: Meshctl, kubeconfig: Path) -> None:
    kubeconfig.write_text(kubeconfig.read_text().replace("http://127.0.0.1:", "http://127.0.0.1:1"))
    assert meshctl("nodes").status in (2, 3)
    kubeconfig.write_text("nonsense: [")
    assert meshctl("nodes").status == 2


def test_analyze_live_reads_the_clusters_own_objects(meshctl: Meshctl, cluster: FakeCluster, installed: None) -> None:
    cluster.put("api/v1/namespaces", {"metadata": {"name": "shop", "labels": {"nodemesh.dev/mode": "on"}}})
    policy = {
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"rules": [{"from": [{"source": {"principals": ["other/ns/shop/sa/x"]}}]}]},
    }
    cluster.put("apis/nodemesh.dev/v1alpha1/authorizationpolicies", policy)
    result = meshctl("analyze", "--live", "-o", "json")
    assert {(item["code"], item["name"]) for item in json.loads(result.out)["items"]} == {
        ("NM0401", "shop"),
        ("NM0104", "p"),
    }
    assert result.status == 1


def test_the_relay_answers_a_line_with_a_line(tmp_path: Path) -> None:
    from tests.unix_api import serving as api

    with api(tmp_path / "c.sock", {"GET /v1/nodes": {"items": []}}):
        asked: dict[str, Any] = {"method": "GET", "path": "/v1/nodes", "query": {}, "body": None, "patience": 5}
        lines = json.dumps(asked) + "\n" + json.dumps({**asked, "path": "/no"}) + "\n"
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from controller.cli import main; main()",
                "--socket",
                str(tmp_path / "c.sock"),
                "relay",
            ],
            input=lines.encode(),
            capture_output=True,
            check=True,
        )
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["status"], json.loads(first["content"])) == (200, {"items": []})
    assert second["status"] == 404
