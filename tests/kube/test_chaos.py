"""The mesh on a real cluster while things end, restart, and change places."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kubebed.cluster import Cluster
from kubebed.errors import KubebedError
from kubebed.images import PYTHON
from tests.kube.load import REQUESTS, answers, await_answers, echo, held, load, unharmed
from tests.kube.mesh import STRICT, Mesh, idle, service, vip
from tests.kube.pods import Space, eventually, space, web

SYSTEM = "nodemesh-system"
RESERVED = "/var/lib/cni/networks/kubebed"
"""Here host-local has a file for each address in use, and in `last_reserved_ip.0` the one after which it looks next."""
DENY = {
    "apiVersion": "nodemesh.dev/v1alpha1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "nobody"},
    "spec": {"action": "DENY", "rules": [{}]},
}


def scale(shop: Space, deployment: str, replicas: int) -> None:
    """Change it and wait until there are so many pods, all Ready."""
    shop.kubectl("scale", f"deployment/{deployment}", f"--replicas={replicas}")
    eventually(lambda: len(shop.cluster.get("-n", shop.name, "pod", "-l", f"app={deployment}")["items"]) == replicas)
    shop.kubectl("rollout", "status", f"deployment/{deployment}", "--timeout=60s")


def noded(cluster: Cluster, node: str) -> str:
    """The name of the noded that runs on a node."""
    (item,) = cluster.get(
        "-n", SYSTEM, "pod", "-l", "app.kubernetes.io/name=noded", f"--field-selector=spec.nodeName={node}"
    )["items"]
    return str(item["metadata"]["name"])


def ready(cluster: Cluster, node: str) -> str:
    """Whether a node is: True, False or Unknown."""
    conditions = cluster.get("node", node)["status"]["conditions"]
    return str(next(c["status"] for c in conditions if c["type"] == "Ready"))


@contextmanager
def paused(cluster: Cluster, process: str) -> Iterator[None]:
    """A part of the control plane does nothing meanwhile."""
    record = cluster.processes.record(process)
    assert record is not None
    os.kill(record.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(record.pid, signal.SIGCONT)


def test_no_request_fails_while_a_deployment_grows_and_shrinks(mesh: Mesh, shop: Space) -> None:
    template = web("web", "")
    del template["apiVersion"], template["kind"], template["metadata"]["name"], template["spec"]["nodeName"]
    # As people do: nobody is told before a pod ends, so it goes on serving while the word spreads.
    template["spec"]["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
    template["spec"]["terminationGracePeriodSeconds"] = 20
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    }
    shop.apply(STRICT, service("web"), deployment)
    shop.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    at = vip(shop, "web")
    eventually(lambda: len(shop.cluster.get("-n", shop.name, "endpoints", "web")["subsets"][0]["addresses"]) == 2)
    shop.start(idle("client", "node-a"))
    eventually(lambda: shop.fetch("client", at))
    shop.start(load("load", "node-a", at), load("other", "node-b", at))
    with unharmed(shop, "load", "other"):
        for replicas in (6, 1, 4):
            scale(shop, "web", replicas)
    assert len(answers(shop, "load")[0]) >= 4, "new pods get requests"


def test_an_address_that_another_pod_gets_never_comes_with_the_old_identity(mesh: Mesh, shop: Space) -> None:
    only_alice = {
        "apiVersion": "nodemesh.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "only-alice"},
        "spec": {
            "selector": {"matchLabels": {"app": "vault"}},
            "rules": [{"from": [{"source": {"principals": [f"cluster.local/ns/{shop.name}/sa/alice"]}}]}],
        },
    }
    for account in ("alice", "bob"):
        shop.kubectl("create", "serviceaccount", account)
    eventually(lambda: len(shop.cluster.get("-n", shop.name, "serviceaccount", "bob").get("secrets", ())))
    shop.apply(STRICT, only_alice)
    shop.start(web("vault", "node-a"))
    vault = f"{shop.address('vault')}:8080"

    def serving(name: str) -> dict[str, Any]:
        """Serves, and requests the vault's page from the first moment."""
        made = web(name, "node-b")
        made["spec"]["serviceAccountName"] = name
        made["spec"]["containers"].append(
            {"name": "caller", "image": PYTHON, "command": ["python3", "-c", REQUESTS, vault]}
        )
        return made

    shop.start(serving("alice"))
    address = shop.address("alice")
    eventually(lambda: "answer vault" in shop.kubectl("logs", "alice", "-c", "caller"))
    callers = ("near", "far")
    shop.start(load("near", "node-b", f"{address}:8080"), load("far", "node-a", f"{address}:8080"))
    for caller in callers:
        await_answers(shop, caller, "alice", 20)
    shop.kubectl("delete", "pod", "alice")
    before, host = ipaddress.ip_address(address) - 1, shop.cluster.host("node-b")
    eventually(lambda: host.run(["test", "-e", f"{RESERVED}/{address}"]).returncode == 1)
    host.run(["sh", "-c", f"printf %s {before} >{RESERVED}/last_reserved_ip.0"])
    shop.start(serving("bob"))
    assert shop.address("bob") == address
    for caller in callers:
        await_answers(shop, caller, "bob", 50)
    calls = shop.kubectl("logs", "bob", "-c", "caller")
    assert "failure" in calls
    assert "answer" not in calls
    # Every answer of bob's was one of bob, to both ends of the tunnel.
    got = {caller: answers(shop, caller)[0]["bob"] for caller in callers}

    def reported() -> bool:
        opened = mesh.opened()
        return all(opened[caller, "bob", end] >= got[caller] for caller in callers for end in ("source", "destination"))

    eventually(reported)


def test_when_the_leading_controller_is_killed_traffic_goes_on_and_another_leads(
    mesh: Mesh, shop: Space, cluster: Cluster
) -> None:
    def leader() -> str:
        """The pod's name."""
        holder = cluster.get("-n", SYSTEM, "lease", "nodemesh-controller")["spec"]["holderIdentity"]
        return str(holder).partition("_")[0]

    shop.apply(STRICT)
    shop.start(web("web", "node-b"))
    at = f"{shop.address('web')}:8080"
    shop.start(load("load", "node-a", at), idle("client", "node-a"))
    first = leader()
    with unharmed(shop, "load"):
        cluster.kubectl("-n", SYSTEM, "delete", "pod", first, "--force", "--grace-period=0")
        eventually(lambda: leader() not in ("", first))
    shop.apply(DENY)
    eventually(lambda: shop.fetch("client", at) == "")
    cluster.kubectl("-n", SYSTEM, "rollout", "status", "deployment/nodemesh-controller", "--timeout=60s")


def test_without_an_api_server_traffic_goes_on_and_afterwards_it_is_caught_up(
    mesh: Mesh, shop: Space, cluster: Cluster
) -> None:
    shop.apply(STRICT)
    leaver = idle("leaver", "node-b")
    leaver["spec"]["terminationGracePeriodSeconds"] = 3
    shop.start(web("web", "node-b"), leaver)
    # Not by a Service: Kubernetes itself may take its pods out when it hears of the nodes again.
    at = f"{shop.address('web')}:8080"
    shop.start(load("load", "node-a", at), idle("client", "node-a"))
    eventually(lambda: "leaver" in mesh.meshed(shop.name))
    with unharmed(shop, "load"):
        shop.kubectl("delete", "pod", "leaver", "--wait=false")
        cluster.control.stop_api_server()
        try:
            with pytest.raises(KubebedError):
                cluster.get("nodes")
            time.sleep(60)
        finally:
            cluster.control.start_api_server()
    shop.apply(DENY)
    eventually(lambda: shop.fetch("client", at) == "")
    eventually(
        lambda: "leaver" not in {row["name"] for row in mesh.items("workloads") if row["namespace"] == shop.name}
    )


def test_pods_of_a_node_that_was_off_come_back_into_the_mesh(mesh: Mesh, shop: Space, cluster: Cluster) -> None:
    shop.apply(STRICT, service("web"))
    stay: dict[str, Any] = {"tolerations": [{"operator": "Exists"}]}
    server, client = web("web", "node-b"), idle("returner", "node-b", **stay)
    server["spec"] |= stay
    shop.start(server, client, web("other", "node-a"), idle("client", "node-a"))
    at, other = vip(shop, "web"), f"{shop.address('other')}:8080"
    eventually(lambda: shop.fetch("client", at) == "web")
    cluster.stop_node("node-b")
    try:
        assert shop.fetch("client", at) == ""
        with pytest.raises(KubebedError, match="start-node node-b"):
            cluster.enter("node-b", ["true"])
        eventually(lambda: ready(cluster, "node-b") == "Unknown")
    finally:
        cluster.start_node("node-b")
    assert ready(cluster, "node-b") == "True"
    eventually(lambda: shop.fetch("client", at) == "web", 90)
    eventually(lambda: shop.fetch("returner", other) == "other")


def test_no_connection_fails_while_the_root_is_rotated(mesh: Mesh, shop: Space, cluster: Cluster) -> None:
    def roots() -> list[str]:
        return [str(root["sha256"]) for root in json.loads(mesh.ctl("ca", "-o", "json"))["roots"]]

    shop.apply(STRICT, service("web"))
    shop.start(web("web", "node-b"), echo("echo", "node-b"))
    shop.start(
        load("far", "node-a", vip(shop, "web")),
        load("near", "node-b", vip(shop, "web")),
        held("held", "node-a", f"{shop.address('echo')}:7000"),
    )
    before = roots()
    with unharmed(shop, "far", "near", "held"):
        mesh.ctl("ca", "rotate")
        after = roots()
        assert (len(after), set(after) & set(before)) == (1, set())
        # One that is new learns the new root and nothing else.
        shop.start(load("late", "node-a", vip(shop, "web")))
        await_answers(shop, "late", "web", 20)
    assert answers(shop, "late")[1] == []
    shop.kubectl("delete", "pod", "far", "held", "late")
    # A noded that joins anew has only what was published.
    cluster.kubectl("-n", SYSTEM, "delete", "pod", noded(cluster, "node-a"), "--timeout=60s")
    cluster.kubectl("-n", SYSTEM, "rollout", "status", "daemonset/noded", "--timeout=60s")
    shop.start(load("last", "node-a", vip(shop, "web")))
    await_answers(shop, "last", "web", 20)


def test_while_noded_is_away_a_pod_of_the_mesh_waits_and_another_does_not(
    mesh: Mesh, shop: Space, cluster: Cluster
) -> None:
    shop.apply(STRICT)
    shop.start(web("web", "node-b"), web("local", "node-a"), idle("client", "node-a"))
    far, near = f"{shop.address('web')}:8080", f"{shop.address('local')}:8080"
    eventually(lambda: shop.fetch("client", far) == "web")
    with space(cluster, "plain") as plain:
        eventually(lambda: plain.kubectl("get", "configmap", "kube-root-ca.crt"))
        # Nobody replaces the pod meanwhile.
        with paused(cluster, "kube-controller-manager"):
            cluster.kubectl("-n", SYSTEM, "delete", "pod", noded(cluster, "node-a"), "--timeout=60s")
            shop.apply(idle("late", "node-a"))
            plain.start(idle("outsider", "node-a"))
            eventually(lambda: "nodemesh" in shop.kubectl("get", "events", "-o", "jsonpath={..message}"))
            assert shop.cluster.get("-n", shop.name, "pod", "late")["status"]["phase"] == "Pending"
            assert plain.fetch("outsider", near) == ""
        shop.ready("late")
    eventually(lambda: shop.fetch("client", far) == "web")
    eventually(lambda: shop.fetch("late", near) == "local")
    assert noded(cluster, "node-a")
