"""What `meshctl check` makes of the answers it gets: one result for each thing that can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as version_of_package
from typing import Any

from controller.cli import deployment
from controller.cli.cluster import CONTROLLER, NAMESPACE, NODED
from mesh.present.table import dig
from mesh.present.units import age, count

Json = Mapping[str, Any]
_KERNEL = (4, 19)
_HOUR, _DAY = 3600.0, 86400.0
_APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
_LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{CONTROLLER}"
_LEASE_AGE = 60.0
_RIGHTS = (
    ("", "namespaces", False),
    ("apiextensions.k8s.io", "customresourcedefinitions", False),
    ("rbac.authorization.k8s.io", "clusterroles", False),
    ("rbac.authorization.k8s.io", "clusterrolebindings", False),
    ("rbac.authorization.k8s.io", "roles", True),
    ("rbac.authorization.k8s.io", "rolebindings", True),
    ("", "serviceaccounts", True),
    ("", "configmaps", True),
    ("", "services", True),
    ("apps", "deployments", True),
    ("apps", "daemonsets", True),
    ("policy", "poddisruptionbudgets", True),
    ("networking.k8s.io", "networkpolicies", True),
)
"""API group, resource, and whether it is in our namespace."""
_VERBS = ("get", "list", "create", "patch", "delete")
_OTHERS = {"ztunnel": "Istio's ambient mode", "istio-cni-node": "Istio's CNI plug-in", "linkerd-cni": "Linkerd's"}


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one check."""

    group: str
    check: str
    """What should be so."""
    state: str
    """`ok`, `warning` or `failed`."""
    detail: str
    remedy: str


def passed(group: str, check: str, detail: str = "") -> Result:
    """It is so."""
    return Result(group, check, "ok", detail, "")


def failed(group: str, check: str, detail: str, remedy: str) -> Result:
    """It is not, and the mesh does not work because of it."""
    return Result(group, check, "failed", detail, remedy)


def warned(group: str, check: str, detail: str, remedy: str) -> Result:
    """It is not, or soon will not be."""
    return Result(group, check, "warning", detail, remedy)


def kubernetes_version(answer: Json) -> Result:
    """That the API server is not too old."""
    found, what = deployment.version_of(answer), "Kubernetes is 1.20 or newer"
    stated = str(answer.get("gitVersion") or "")
    if found < deployment.OLDEST:
        return failed("kubernetes", what, stated, "upgrade the cluster")
    return passed("kubernetes", what, stated)


def permissions(allowed: Callable[[str, str, str, str], bool]) -> Iterator[Result]:
    """That the user may do what install, upgrade and uninstall do."""
    lacking = []
    for group, resource, namespaced in _RIGHTS:
        within = NAMESPACE * namespaced
        verbs = [verb for verb in _VERBS if not allowed(verb, group, resource, within)]
        if verbs:
            lacking.append(f"{'/'.join(verbs)} {resource}{'.' * bool(group)}{group}")
    what = "you may install it"
    if lacking:
        yield failed("permissions", what, f"not allowed: {', '.join(lacking)}", "ask for the role cluster-admin")
    else:
        yield passed("permissions", what)
    what = "you may look into its pods"
    if allowed("create", "", "pods/exec", NAMESPACE):
        yield passed("permissions", what)
    else:
        remedy = f"without it meshctl can install, and nothing else: grant pods/exec in {NAMESPACE}"
        yield warned("permissions", what, f"not allowed: create pods/exec in {NAMESPACE}", remedy)


def nodes(found: Sequence[Json]) -> Iterator[Result]:
    """That the nodes' kernels have what capture needs."""
    what = f"kernels are Linux {_KERNEL[0]}.{_KERNEL[1]} or newer"
    linux = [node for node in found if _info(node, "operatingSystem") in ("", "linux")]
    if not linux:
        yield failed("nodes", what, "there is no Linux node", "add one")
        return
    old = [node for node in linux if _kernel(_info(node, "kernelVersion")) < _KERNEL]
    for node in old:
        yield failed("nodes", what, f"{_name(node)} has {_info(node, 'kernelVersion')}", "upgrade its operating system")
    if not old:
        versions = sorted({_info(node, "kernelVersion") for node in linux})
        yield passed("nodes", what, f"{count(len(linux), 'node')}, {', '.join(versions[:3])}")
    runtimes = {_info(node, "containerRuntimeVersion").partition(":")[0] for node in linux}
    what = "the container runtime uses CNI"
    if other := sorted(runtimes - {"containerd", "cri-o", ""}):
        remedy = "pods may start before they are captured there: use containerd or CRI-O"
        yield warned("nodes", what, ", ".join(other), remedy)
    else:
        yield passed("nodes", what, ", ".join(sorted(runtimes)))


def network(found: Sequence[Json], daemonsets: Sequence[Json]) -> Iterator[Result]:
    """That there is a pod network to chain into, and no other mesh that captures the same pods."""
    what = "every node has a pod network"
    lacking = []
    for node in found:
        conditions: Sequence[Json] = dig(node, "status.conditions") or ()
        ready: Json = next((c for c in conditions if c.get("type") == "Ready"), {})
        if ready.get("status") != "True":
            lacking.append(f"{_name(node)} is not ready: {ready.get('message') or 'no reason given'}")
    if lacking:
        yield failed("network", what, "; ".join(lacking), "install a CNI plug-in, and wait until the nodes are ready")
    else:
        yield passed("network", what)
    what = "no other mesh captures traffic"
    others = sorted({_OTHERS[_name(d)] for d in daemonsets if _name(d) in _OTHERS})
    if others:
        remedy = "a namespace may be in one of them only: do not label it for both"
        yield warned("network", what, f"found {' and '.join(others)}", remedy)
    else:
        yield passed("network", what)


def installation(find: Callable[[str], Json | None]) -> Iterator[Result]:
    """That what was installed is there, up to date and running."""
    group = "installation"
    controllers, noded = find(f"{_APPS}/deployments/{CONTROLLER}"), find(f"{_APPS}/daemonsets/{NODED}")
    if controllers is None or noded is None:
        missing = f"no {'Deployment ' + CONTROLLER if controllers is None else 'DaemonSet ' + NODED} in {NAMESPACE}"
        yield failed(group, "it is installed", missing, "meshctl install")
        return
    yield passed(group, "it is installed")
    wanted, ready = dig(controllers, "spec.replicas"), dig(controllers, "status.availableReplicas") or 0
    yield _ready("controllers are ready", ready, wanted or 0, f"deployment/{CONTROLLER}")
    wanted, ready = dig(noded, "status.desiredNumberScheduled"), dig(noded, "status.numberReady") or 0
    yield _ready("noded is ready on every node", ready, wanted or 0, f"daemonset/{NODED}")
    updated = dig(noded, "status.updatedNumberScheduled") or 0
    what = "every noded is of the newest revision"
    if updated < (wanted or 0):
        yield warned(group, what, f"{updated} of {wanted}", "an upgrade is under way, or stuck: meshctl upgrade")
    else:
        yield passed(group, what)
    images = deployment.images([{"kind": "Deployment", **controllers}, {"kind": "DaemonSet", **noded}])
    what = "noded and the controllers are of one image"
    if len(images) > 1:
        yield warned(group, what, ", ".join(sorted(images)), "meshctl upgrade")
    else:
        yield passed(group, what, ", ".join(images))
    yield _leader(find(_LEASE), datetime.now().astimezone())


def _ready(what: str, ready: int, wanted: int, name: str) -> Result:
    detail = f"{ready} of {wanted}"
    if ready >= wanted > 0:
        return passed("installation", what, detail)
    return failed("installation", what, detail, f"kubectl -n {NAMESPACE} describe {name}")


def _leader(lease: Json | None, now: datetime) -> Result:
    what, remedy = "one controller leads", f"kubectl -n {NAMESPACE} logs deployment/{CONTROLLER}"
    holder, renewed = dig(lease or {}, "spec.holderIdentity"), dig(lease or {}, "spec.renewTime")
    if not holder or not renewed:
        return failed("installation", what, "none does", remedy)
    since = (now - datetime.fromisoformat(renewed)).total_seconds()
    if since > _LEASE_AGE:
        return failed("installation", what, f"{holder} was heard of {age(since)} ago", remedy)
    return passed("installation", what, str(holder))


def authority(answer: Json, now: float) -> Iterator[Result]:
    """That the roots will live long enough."""
    what = "the roots are valid for another 30 days"
    lives = [float(root["not_after"]) - now for root in answer.get("roots") or ()]
    left = max(lives, default=0.0)
    remedy = "replace it: docs/explanation/security-model.md"
    if left <= 0:
        yield failed("controller", what, "no root is valid", remedy)
    elif left < 30 * _DAY:
        yield warned("controller", what, f"{age(left)} left", remedy)
    else:
        yield passed("controller", what, f"{age(left)} left")


def joined(found: Sequence[Json], now: float) -> Iterator[Result]:
    """That the nodes are connected, have the newest snapshot, and hold valid certificates of the same version."""
    group = "nodes"
    if not found:
        yield warned(group, "nodes have joined", "none", "on a cluster see its pods; else `meshctl token create`")
        return
    own = version_of_package("nodemesh")
    checks = (
        (
            "are connected",
            lambda n: "" if n.get("connected") else "not connected",
            "`nodectl status` there",
        ),
        (
            "are in step with the controller",
            _behind,
            "noded's log there says why",
        ),
    )
    for what, test, remedy in checks:
        wrong = [f"{node.get('name')}: {why}" for node in found if (why := test(node))]
        yield _judged(group, f"all {what}", wrong, count(len(found), "node"), remedy)
    yield _certificates(found, now)
    others = sorted({str(node.get("version")).removeprefix("noded/") for node in found if node.get("version")} - {own})
    title = "all are of meshctl's version"
    if others:
        yield warned(group, title, f"{', '.join(others)}; meshctl is {own}", "upgrade nodes and meshctl to one version")
    else:
        yield passed(group, title, own)


def _judged(group: str, what: str, wrong: Sequence[str], fine: str, remedy: str) -> Result:
    return failed(group, what, "; ".join(wrong), remedy) if wrong else passed(group, what, fine)


def _behind(node: Json) -> str:
    if node.get("last_nack"):
        return f"rejected: {node['last_nack']}"
    if not node.get("connected") or node.get("revision") is None:
        return ""
    behind = int(node["revision"]) - int(node.get("acked_revision") or 0)
    return f"{behind} behind" if behind > 0 else ""


def _certificates(found: Sequence[Json], now: float) -> Result:
    """Of nodes. They are renewed at half of their life, so with a quarter left that has failed for long."""
    what, remedy = "all have certificates that are not about to expire", "`nodectl certs` there"
    lives = {str(n["name"]): (float(n["certificate_expires"]) - now, n) for n in found if n.get("certificate_expires")}
    ending = [
        f"{name}: {age(left) + ' left' if left > 0 else 'expired'}"
        for name, (left, n) in lives.items()
        if left < float(n.get("certificate_life") or 0) / 4 or left < _HOUR
    ]
    if min((left for left, _node in lives.values()), default=_HOUR) < _HOUR:
        return failed("nodes", what, "; ".join(ending), remedy)
    if ending:
        return warned("nodes", what, "; ".join(ending), remedy)
    shortest = min((left for left, _node in lives.values()), default=None)
    return passed("nodes", what, f"{age(shortest)} left" if shortest is not None else "")


def node(name: str, ask: Callable[..., Any]) -> Iterable[Result]:
    """What noded of one node says. `ask` is nodectl there: its words to its JSON."""
    group, status = f"node {name}", ask("status")
    workers = status.get("workers") or ()
    restarts = sum(int(worker.get("restarts") or 0) for worker in workers)
    if restarts:
        yield warned(group, "its workers run", f"replaced {count(restarts, 'time')}", "its log says why")
    else:
        yield passed(group, "its workers run", count(len(workers), "worker"))
    link = status.get("controller") or {}
    away = [] if link.get("connected") else [str(link.get("last_error") or "no reason given")]
    remedy = "`nodectl status` there"
    yield _judged(group, "it is connected to a controller", away, str(link.get("address") or ""), remedy)
    rows = ask("workloads")["items"]
    broken = [f"{row.get('uid')}: {row.get('reason')}" for row in rows if row.get("state") == "failed"]
    yield _judged(group, "its workloads are enrolled", broken, count(len(rows), "workload"), "see noded's log")
    rows = ask("capture", "--verify")["items"]
    drift = [f"{row.get('uid')}: {row['drift'][0]}" for row in rows if row.get("drift")]
    remedy = "something else changes these pods' rules: see noded's log"
    yield _judged(group, "its rules are intact", drift, count(len(rows), "workload"), remedy)
    rows = ask("certs")["items"]
    bad = [f"{row.get('uid') or 'the node'}: {row['state']}" for row in rows if row.get("state") != "valid"]
    yield _judged(group, "its certificates are valid", bad, count(len(rows), "certificate"), "`nodectl certs` there")


def _info(node: Json, name: str) -> str:
    return str(dig(node, f"status.nodeInfo.{name}") or "")


def _name(body: Json) -> str:
    return str(dig(body, "metadata.name") or "")


def _kernel(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
