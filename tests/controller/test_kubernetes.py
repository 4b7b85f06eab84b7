"""The controller on a (fake) cluster, with nodes over real TLS."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from cryptography import x509

from controller import limits
from controller.config import Address
from controller.daemon import Daemon, Ports
from controller.forwarding import Asked, FromReplica
from controller.kubernetes.home import ClusterHome
from controller.kubernetes.objects import ENROLLED
from controller.rotation import NotYet
from controller.trust import new_root
from mesh.model import Enrolment
from mesh.ratelimit import Report as LimitReport
from mesh.sync import (
    POD_UID,
    Ack,
    Assign,
    FromController,
    FromNode,
    Join,
    Joined,
    LimitGrants,
    LimitReports,
    Reader,
    Refused,
    Signed,
    Trust,
    Withdraw,
    frame,
)
from tests.controller.client import (
    Credential,
    NodeClient,
    connected,
    csr_for,
    dial,
    new_key,
    pem_of,
    receive,
    uris_of,
)
from tests.controller.conftest import config_in
from tests.controller.fake_kubernetes import FakeKubernetes, fake_kubernetes, pod

PODS, SECRETS = "api/v1/pods", "api/v1/secrets"
OURS = "apis/nodemesh.dev/v1alpha1"
NS = "nodemesh-system"


async def until(true: Callable[[], Any]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.sleep(0.01)


def token_of(cluster: FakeKubernetes, node: str, **changes: Any) -> str:
    """Put noded's pod on a node, and return its token."""
    if cluster.get(PODS, f"noded-{node}", NS) is None:
        cluster.put("api/v1/nodes", {"metadata": {"name": node}, "spec": {"podCIDRs": ["10.77.0.0/24"]}})
        cluster.put(PODS, pod(f"noded-{node}", "10.0.0.1", namespace=NS, node=node, account="noded", hostNetwork=True))
    body = cluster.get(PODS, f"noded-{node}", NS)
    assert body is not None
    token = f"head.{node}{len(cluster.tokens)}.signature"
    extra = {"pod-name": [f"noded-{node}"], "pod-uid": [body["metadata"]["uid"]]}
    cluster.tokens[token] = {
        "username": f"system:serviceaccount:{NS}:noded",
        "extra": {f"authentication.kubernetes.io/{key}": value for key, value in extra.items()},
        **changes,
    }
    return token


class Replica:
    def __init__(self, daemon: Daemon, ports: Ports) -> None:
        self.daemon, self.port, self.monitoring = daemon, ports.link, ports.monitoring

    @property
    def world(self) -> Any:
        return self.daemon.publisher.world

    def meshed(self, uid: str) -> bool:
        return uid in self.world.workloads and self.world.workloads[uid].meshed

    async def join(self, token: str, node: str) -> Credential | Refused:
        key = new_key()
        async with await dial(self.port) as stream:
            await stream.send_all(frame(Join(token, node, csr_for(key)), FromNode))
            (answer,) = await receive(stream, Reader(FromController))
        if isinstance(answer, Refused):
            return answer
        assert isinstance(answer, Joined)
        return Credential(answer.chain, pem_of(key), answer.roots)

    async def joined(self, cluster: FakeKubernetes, node: str) -> Credential:
        credential = await self.join(token_of(cluster, node), node)
        assert isinstance(credential, Credential), credential
        await until(lambda: node in self.daemon.home.register.nodes)
        return credential

    async def ask(self, path: str) -> list[Any]:
        """The items that its API lists."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.daemon.config.run_dir / "controller.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://controller", timeout=10) as client:
            answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        items: list[Any] = answer.json()["items"]
        return items


Start = Callable[[], Any]


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with fake_kubernetes() as server:
        server.put("api/v1/namespaces", {"metadata": {"name": "shop", "labels": {"nodemesh.dev/mode": "enabled"}}})
        yield server


@asynccontextmanager
async def running(cluster: FakeKubernetes, folder: Path) -> AsyncIterator[Replica]:
    kubeconfig = folder / "kubeconfig"
    folder.mkdir()  # noqa: ASYNC240 (nothing else runs yet)
    kubeconfig.write_text(
        f"""current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "{cluster.url}"}}}}]
users: [{{name: u, user: {{token: t}}}}]
"""
    )
    config = config_in(folder, store="kubernetes", kubeconfig=str(kubeconfig), meshRanges=[])
    daemon = Daemon(config)
    async with trio.open_nursery() as nursery:
        try:
            with trio.fail_after(60):
                ports = await nursery.start(daemon.run)
            yield Replica(daemon, ports)
        finally:
            nursery.cancel_scope.cancel()
            daemon.close()


@pytest.fixture
async def replica(cluster: FakeKubernetes, tmp_path: Path) -> AsyncIterator[Replica]:
    async with running(cluster, tmp_path / "a") as found:
        yield found


def home_of(replica: Replica) -> ClusterHome:
    assert isinstance(replica.daemon.home, ClusterHome)
    return replica.daemon.home


def assigned(node: NodeClient) -> Assign | None:
    return next((m for m in reversed(node.messages) if isinstance(m, Assign)), None)


def web(*addresses: str, **labels: str) -> Enrolment:
    return Enrolment("web", "shop", "web", labels, addresses)


async def test_the_ca_is_made_once_and_its_roots_are_published(cluster: FakeKubernetes, tmp_path: Path) -> None:
    async with running(cluster, tmp_path / "a") as first, running(cluster, tmp_path / "b") as second:
        bundle = first.daemon.authority.bundle
        assert second.daemon.authority.bundle == bundle
        await until(lambda: cluster.get("api/v1/configmaps", "nodemesh-root", NS))
        published = cluster.get("api/v1/configmaps", "nodemesh-root", NS)
        assert published is not None
        assert published["data"]["roots.pem"].encode() == bundle
        assert [r for r in cluster.requests if r == f"POST /api/v1/namespaces/{NS}/secrets"] != []
    async with running(cluster, tmp_path / "c") as third:
        assert third.daemon.authority.bundle == bundle


async def test_a_node_comes_in_with_the_token_of_its_own_noded_pod_only(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    assert uris_of((await replica.joined(cluster, "node-a")).chain) == ["spiffe://cluster.local/node/node-a"]
    token_of(cluster, "node-b")
    others = {
        "not accept": "head.unknown.signature",
        "runs on node 'node-b', not 'node-a'": token_of(cluster, "node-b"),
        "not of 'system:serviceaccount": token_of(cluster, "node-a", username="system:serviceaccount:shop:noded"),
        "not bound to a pod": token_of(cluster, "node-a", extra={}),
        "audience": token_of(cluster, "node-a", audiences=["api"]),
        "own token": "",
        "service-account token": "nm1.x.y",
    }
    for why, token in others.items():
        answer = await replica.join(token, "node-a")
        assert isinstance(answer, Refused), why
        if why != "own token":
            assert why in answer.reason
    old = token_of(cluster, "node-a")
    cluster.remove(PODS, "noded-node-a", NS)
    answer = await replica.join(old, "node-a")
    assert isinstance(answer, Refused)


async def test_a_node_is_told_what_to_enrol_as_labels_and_pods_change(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    cluster.put(PODS, pod("web", "10.77.0.5"))
    cluster.put(PODS, pod("out", "10.77.0.6", labels={"nodemesh.dev/mode": "disabled"}))
    cluster.put(PODS, pod("in", "10.77.0.7", namespace="other", labels={"nodemesh.dev/mode": "enabled"}))
    cluster.put(PODS, pod("host", "10.0.0.1", hostNetwork=True))
    cluster.put(PODS, pod("done", "10.77.0.8", phase="Succeeded"))
    cluster.put(PODS, pod("elsewhere", "10.77.1.1", node="node-b"))
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:

        def names() -> list[str]:
            return [p.name for p in (assigned(node) or Assign((), ())).pods]

        await node.until(lambda: names() == ["in", "web"], "both")
        told = assigned(node)
        assert told is not None
        assert told.namespaces == ("shop",)
        uid = {name: (cluster.get(PODS, name, "shop") or {})["metadata"]["uid"] for name in ("web", "out", "host")}
        assert told.pods[1].pod == uid["web"]
        assert told.pods[1].addresses == ("10.77.0.5",)
        assert {uid["out"], uid["host"]} <= set(told.others)
        cluster.put("api/v1/namespaces", {"metadata": {"name": "shop"}})
        await node.until(lambda: names() == ["in"], "the namespace's leaving")
        cluster.remove(PODS, "in", "other")
        await node.until(lambda: names() == [], "nothing")


async def test_a_static_pod_is_told_of_by_the_name_that_its_node_has_for_it(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    hashed, mirror = "a19fcb739f339de24b29821f43a9b821", "kubernetes.io/config.mirror"
    cluster.put(PODS, pod("in", "10.77.0.5", annotations={mirror: hashed}))
    out = {"nodemesh.dev/mode": "disabled"}
    cluster.put(PODS, pod("out", "10.77.0.6", labels=out, annotations={mirror: hashed[::-1]}))
    # Whoever can create a pod can say that it stands for any; the UUID of a pod it cannot be.
    victim = "6f1c2d3e-0a1b-4c2d-8e3f-123456789abc"
    lie = cluster.put(PODS, pod("lie", "10.77.0.7", annotations={mirror: victim}))
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        await node.until(lambda: (told := assigned(node)) and len(told.pods) == 2 and told.others, "all")
        told = assigned(node)
        assert told is not None
        assert {p.name: p.pod for p in told.pods} == {"in": hashed, "lie": lie["metadata"]["uid"]}
        assert f"{hashed[::-1]}/shop/out" in told.others
        static = Enrolment("in", "shop", "web", {POD_UID: hashed}, ("10.77.0.5",))
        assert not isinstance(await node.enrol(static), Refused)
        body = cluster.get(PODS, "in", "shop") or {}
        assert body["metadata"]["annotations"][ENROLLED] == body["metadata"]["uid"]


async def test_an_enrolled_pod_is_known_to_all_replicas_and_gets_a_certificate(
    cluster: FakeKubernetes, replica: Replica, tmp_path: Path
) -> None:
    cluster.put(PODS, pod("web", "10.77.0.5"))
    async with running(cluster, tmp_path / "b") as other:
        async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
            await node.until(lambda: assigned(node), "Assign")
            refused = await node.sign("shop/web", csr_for(new_key()))
            assert isinstance(refused, Refused)
            assert not isinstance(await node.enrol(web("10.77.0.5")), Refused)
            body = cluster.get(PODS, "web", "shop") or {}  # before the node hears of it, whatever becomes of this one
            assert body["metadata"]["annotations"] == {ENROLLED: body["metadata"]["uid"]}
            signed = await node.sign("shop/web", csr_for(new_key()))
            assert isinstance(signed, Signed)
            assert uris_of(signed.chain) == ["spiffe://cluster.local/ns/shop/sa/web"]
            await until(lambda: other.meshed("shop/web"))
        assert replica.meshed("shop/web")  # the node's being away changes nothing
        async with connected(other.port, await other.joined(cluster, "node-a")) as node:  # it lists no workload
            await until(lambda: not replica.meshed("shop/web"))
            await node.until(lambda: not node.updates[-1].full or not other.meshed("shop/web"), "its leaving")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (web("10.77.0.9"), "has 10.77.0.5"),
        (Enrolment("web", "shop", "admin", {}, ("10.77.0.5",)), "has service account 'web'"),
        (Enrolment("none", "shop", "web", {}, ("10.77.0.5",)), "no pod"),
        (Enrolment("far", "shop", "web", {}, ("10.77.1.1",)), "runs on node 'node-b'"),
        (Enrolment("host", "shop", "web", {}, ("10.0.0.1",)), "node's network"),
        (web("10.77.0.5", **{"nodemesh.dev/pod-uid": "another"}), "another one now"),
        (Enrolment("young", "shop", "web", {}, ("10.77.1.1",)), "that is pod shop/far"),
        (Enrolment("young", "shop", "web", {}, ("10.96.0.1",)), "that is service shop/web"),
    ],
)
async def test_a_node_cannot_enrol_what_the_cluster_does_not_say(
    cluster: FakeKubernetes, replica: Replica, given: Enrolment, why: str
) -> None:
    cluster.put(PODS, pod("web", "10.77.0.5"))
    cluster.put(PODS, pod("young"))
    cluster.put(PODS, pod("far", "10.77.1.1", node="node-b"))
    cluster.put(PODS, pod("host", hostNetwork=True))
    cluster.put(
        "api/v1/services", {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.1"}}
    )
    known = home_of(replica).cluster
    await until(lambda: known.services.objects and "shop/host" in known.pods.objects)
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        answer = await node.enrol(given)
        assert isinstance(answer, Refused)
        assert why in answer.reason


async def test_a_pod_is_enrolled_before_the_cluster_knows_its_address(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    cluster.put(PODS, pod("web"))
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        await node.until(lambda: assigned(node), "Assign")
        assert not isinstance(await node.enrol(web("10.77.0.5")), Refused)
        assert replica.world.workloads["shop/web"].addresses == ("10.77.0.5",)
        await until(lambda: (cluster.get(PODS, "web", "shop") or {})["metadata"].get("annotations"))
        cluster.put(PODS, {**(cluster.get(PODS, "web", "shop") or {}), "status": {"podIP": "10.77.0.5"}})
        await until(lambda: not home_of(replica).register._claims)
        assert replica.meshed("shop/web")


async def test_a_successor_of_the_same_name_inherits_nothing(cluster: FakeKubernetes, replica: Replica) -> None:
    cluster.put(PODS, pod("web", "10.77.0.5"))
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        await node.until(lambda: assigned(node), "Assign")
        await node.enrol(web("10.77.0.5"))
        await until(lambda: (cluster.get(PODS, "web", "shop") or {})["metadata"].get("annotations"))
        annotations = (cluster.get(PODS, "web", "shop") or {})["metadata"]["annotations"]
        cluster.remove(PODS, "web", "shop")
        await until(lambda: "shop/web" not in replica.world.workloads)
        assert isinstance(await node.sign("shop/web", csr_for(new_key())), Refused)
        cluster.put(PODS, pod("web", "10.77.0.5", annotations=annotations))
        await until(lambda: "shop/web" in replica.world.workloads)
        assert not replica.meshed("shop/web")
        assert isinstance(await node.sign("shop/web", csr_for(new_key())), Refused)


async def test_while_the_api_server_is_away_nodes_are_served_but_no_pod_joins_that_others_would_not_know_of(
    cluster: FakeKubernetes, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.kubernetes.register._KEPT_SECONDS", 0.2)
    known = Enrolment("known", "shop", "web", {}, ("10.77.0.4",))
    for name, address in (("known", "10.77.0.4"), ("web", "10.77.0.5")):
        cluster.put(PODS, pod(name, address))
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        await node.until(lambda: assigned(node), "Assign")
        assert not isinstance(await node.enrol(known), Refused)
        await until(lambda: home_of(replica).cluster.pods.objects["shop/known"].enrolled)
        cluster.stop()
        refused = await node.enrol(web("10.77.0.5"))
        assert isinstance(refused, Refused)
        assert "does not take the annotation of pod shop/web" in refused.reason
        await until(lambda: not replica.meshed("shop/web"))
        await node.send(Withdraw("shop/known"))  # its sandbox is made anew, say
        assert not isinstance(await node.enrol(known), Refused)
        assert isinstance(await node.sign("shop/known", csr_for(new_key())), Signed)
        assert isinstance(await replica.join("head.x.y", "node-a"), Refused)
        cluster.put(PODS, pod("late", "10.77.0.6"))
        cluster.compact()
        cluster.start()
        await until(lambda: "shop/late" in replica.world.workloads)
        monkeypatch.undo()
        assert not isinstance(await node.enrol(web("10.77.0.5")), Refused)
        for name in ("known", "web"):
            body = cluster.get(PODS, name, "shop") or {}
            assert body["metadata"]["annotations"] == {ENROLLED: body["metadata"]["uid"]}
            assert replica.meshed(f"shop/{name}")


async def test_a_pod_that_is_gone_before_others_know_of_it_is_refused(
    cluster: FakeKubernetes, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put(PODS, pod("web", "10.77.0.5"))
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        await node.until(lambda: assigned(node), "Assign")
        cluster.remove(PODS, "web", "shop")
        cluster.put(PODS, pod("web", "10.77.0.5"))  # of the same name, and another
        answer = await node.enrol(web("10.77.0.5", **{POD_UID: assigned(node).pods[0].pod}))  # type: ignore[union-attr]  # it came
        assert isinstance(answer, Refused)


async def test_conditions_say_whether_a_policy_is_accepted_and_in_force(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    policies = f"{OURS}/authorizationpolicies"

    def conditions(name: str) -> dict[str, tuple[str, str]]:
        found = ((cluster.get(policies, name, "shop") or {}).get("status") or {}).get("conditions") or []
        assert all(c["message"] for c in found)
        return {c["type"]: (c["status"], c["reason"]) for c in found}

    cluster.put(PODS, pod("web", "10.77.0.5"))
    async with connected(replica.port, await replica.joined(cluster, "node-a"), ack=False) as node:
        good = {"spec": {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["x"]}}]}]}}
        cluster.put(policies, {"metadata": {"name": "good", "namespace": "shop"}, **good})
        bad = {"spec": {"action": "DENNY", "selector": {"matchLabels": {"app": "web"}}}}
        cluster.put(policies, {"metadata": {"name": "bad", "namespace": "shop"}, **bad})
        await until(lambda: conditions("good") == {"Accepted": ("True", "Valid"), "Programmed": ("Unknown", "Pending")})
        await until(lambda: conditions("bad") == {"Accepted": ("False", "Invalid"), "Programmed": ("False", "Invalid")})
        node.ack = True
        await node.send(Ack(node.updates[-1].revision))
        await until(lambda: conditions("good").get("Programmed") == ("True", "Acknowledged"))
    closed = {p.name: p for p in replica.world.policies}["bad"]
    assert (closed.action.value, closed.selector, len(closed.rules)) == ("DENY", {"app": "web"}, 1)


async def test_a_condition_says_whether_an_issuers_keys_were_fetched(cluster: FakeKubernetes, replica: Replica) -> None:
    kind = f"{OURS}/requestauthentications"

    def conditions(name: str) -> dict[str, str]:
        found = ((cluster.get(kind, name, "shop") or {}).get("status") or {}).get("conditions") or []
        return {c["type"]: c["reason"] for c in found}

    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/keys"
    for name, rule in (("fetched", {"issuer": "a", "jwksUri": nobody}), ("bad", {"issuer": "a", "jwks": "{}"})):
        cluster.put(kind, {"metadata": {"name": name, "namespace": "shop"}, "spec": {"jwtRules": [rule]}})
    await until(lambda: conditions("fetched").get("KeysFetched") == "FetchFailed")
    await until(lambda: conditions("bad") == {"Accepted": "Invalid", "Programmed": "Invalid"})
    await until(lambda: replica.world.request_auths[0].rules[0].problem.startswith(nobody))
    assert [policy.action.value for policy in replica.world.policies] == ["DENY"]


async def test_a_policy_is_in_force_only_when_the_nodes_of_all_replicas_have_it(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies, lease = f"{OURS}/authorizationpolicies", "apis/coordination.k8s.io/v1/leases"

    def programmed() -> str:
        found = ((cluster.get(policies, "good", "shop") or {}).get("status") or {}).get("conditions") or []
        return next((c["status"] for c in found if c["type"] == "Programmed"), "")

    def told() -> set[str]:
        annotations = (cluster.get(lease, "nodemesh-controller", NS) or {})["metadata"].get("annotations") or {}
        return {key.rpartition("/")[2] for key in annotations}

    async def policy(name: str) -> None:
        rules = [{"from": [{"source": {"namespaces": [name]}}]}]
        cluster.put(policies, {"metadata": {"name": "good", "namespace": "shop"}, "spec": {"rules": rules}})

    def controller(name: str, ready: str = "True") -> None:
        body = pod(name, "10.77.3.3", namespace=NS, account="controller")
        body["status"]["conditions"] = [{"type": "Ready", "status": ready}]
        cluster.put(PODS, body)

    monkeypatch.setenv("POD_NAME", "controller-a")
    controller("controller-a")
    async with running(cluster, tmp_path / "a") as leader:
        monkeypatch.setenv("POD_NAME", "controller-b")
        async with running(cluster, tmp_path / "b") as other:
            controller("controller-b")
            assert told() == {"controller-a", "controller-b"}
            credential = await other.joined(cluster, "node-b")
            async with connected(leader.port, await leader.joined(cluster, "node-a")):
                async with connected(other.port, credential, ack=False) as node:
                    await node.until(lambda: node.updates, "Update")
                    await policy("x")
                    await until(lambda: programmed() == "Unknown")
                    await node.until(lambda: other.world.policies, "the policy")
                    node.ack = True
                    await node.send(Ack(node.updates[-1].revision))
                    await until(lambda: programmed() == "True")
                # A node that comes back, and has not yet acknowledged anything, turns nothing back.
                async with connected(other.port, credential, ack=False) as node:
                    await node.until(lambda: node.updates, "Update")
                    cluster.put(policies, {"metadata": {"name": "z", "namespace": "shop"}, "spec": {"rules": [{}]}})
                    await until(lambda: (cluster.get(policies, "z", "shop") or {}).get("status"))
                    assert programmed() == "True"
        await policy("y")
        await until(lambda: programmed() == "Unknown")  # it is ready, says the cluster, so it may have nodes
        controller("controller-b", "False")
        await until(lambda: programmed() == "True")
        cluster.remove(PODS, "controller-b", NS)
        await policy("w")
        await until(lambda: programmed() == "True" and told() == {"controller-a"})


async def test_new_roots_are_pushed_to_connected_nodes_and_published(cluster: FakeKubernetes, replica: Replica) -> None:
    async with connected(replica.port, await replica.joined(cluster, "node-a")) as node:
        await node.until(lambda: [m for m in node.messages if isinstance(m, Trust)], "Trust")
        secret = cluster.get(SECRETS, "nodemesh-ca", NS)
        assert secret is not None
        _key, extra = new_root("cluster.local", replica.daemon.clock())
        roots = base64.b64decode(secret["data"]["roots.pem"]) + extra
        cluster.put(SECRETS, {**secret, "data": {**secret["data"], "roots.pem": base64.b64encode(roots).decode()}})
        await node.until(lambda: [m for m in node.messages if m == Trust(roots)], "the new roots")
        await until(
            lambda: (cluster.get("api/v1/configmaps", "nodemesh-root", NS) or {})["data"]["roots.pem"] == roots.decode()
        )
        assert len(x509.load_pem_x509_certificates(roots)) == 2


async def test_the_clusters_own_services_are_shown_with_what_the_api_server_says(
    cluster: FakeKubernetes, replica: Replica
) -> None:
    for namespace, name in (("shop", "web"), ("shop", "db"), ("other", "web")):
        metadata = {"name": name, "namespace": namespace, "labels": {"app": name}, "managedFields": [{"manager": "m"}]}
        ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
        cluster.put(
            "api/v1/services",
            {"metadata": metadata, "spec": {"clusterIP": "10.96.0.1", "selector": {"app": name}, "ports": ports}},
        )
    cluster.page = 2

    async def names(query: str = "") -> list[tuple[str, str]]:
        rows = await replica.ask("/v1/resources/services" + query)
        return [(row["metadata"]["namespace"], row["metadata"]["name"]) for row in rows]

    assert await names() == [("other", "web"), ("shop", "db"), ("shop", "web")]
    assert await names("?namespace=shop&selector=app%3Dweb") == [("shop", "web")]
    assert await names("?namespace=..") == []
    (row,) = await replica.ask("/v1/resources/services?namespace=other")
    assert (row["kind"], row["spec"]["selector"], row["spec"]["ports"][0]["targetPort"]) == (
        "Service",
        {"app": "web"},
        "http",
    )
    assert row["metadata"].keys() == {
        *("name", "namespace", "labels", "uid", "resourceVersion", "generation", "creationTimestamp")
    }


async def test_a_nodes_certificate_is_known_where_the_node_is(cluster: FakeKubernetes, replica: Replica) -> None:
    credential = await replica.joined(cluster, "node-a")
    assert (await replica.ask("/v1/nodes"))[0]["certificate_expires"] is None
    async with connected(replica.port, credential) as node:
        await node.until(lambda: node.updates, "Update")
        (row,) = await replica.ask("/v1/nodes")
        shown = x509.load_pem_x509_certificate(credential.chain).not_valid_after_utc.timestamp()
        assert (row["certificate_expires"], row["certificate_life"]) == (shown, 86400.0)
        signed = await node.sign("", csr_for(new_key()))
        assert isinstance(signed, Signed)
        (row,) = await replica.ask("/v1/nodes")
        assert row["certificate_expires"] == signed.not_after
    (row,) = await replica.ask("/v1/nodes")
    assert row["certificate_expires"] == signed.not_after


async def test_it_is_not_ready_before_it_has_read_the_cluster(cluster: FakeKubernetes, replica: Replica) -> None:
    async with httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{replica.monitoring}/readyz"
        assert (await http.get(url)).status_code == 200
        replica.daemon.ready = False
        assert (await http.get(url)).status_code == 503


async def test_a_root_is_rotated_with_nodes_on_several_replicas(
    cluster: FakeKubernetes, replica: Replica, tmp_path: Path
) -> None:
    async with running(cluster, tmp_path / "b") as other:
        first, second = await replica.joined(cluster, "node-a"), await other.joined(cluster, "node-b")
        await until(lambda: len(replica.daemon.home.register.nodes) == 2)
        async with connected(replica.port, first) as a, connected(other.port, second) as b:
            rotation = replica.daemon.rotation
            await rotation.take("add")
            with pytest.raises(NotYet, match="node-b"):
                await rotation.take("sign")
            await until(lambda: not rotation.progress().waiting)
            await rotation.take("sign")
            await until(lambda: other.daemon.rotation.phase == "signing")
            for node in (a, b):
                assert not isinstance(await node.sign("", csr_for(new_key())), Refused)
            await until(lambda: not rotation.progress().waiting)
            await rotation.take("drop")
            for node in (a, b):
                await node.until(
                    lambda n=node: (
                        [m for m in n.messages if isinstance(m, Trust)][-1].roots == replica.daemon.authority.bundle
                    ),
                    "the new root alone",
                )
        lease = "apis/coordination.k8s.io/v1/leases"
        await until(lambda: "rotation." not in str(cluster.get(lease, "nodemesh-controller", NS)))


async def ask_for_tokens(node: NodeClient, wanted: int) -> int:
    """How many of them come before there is an answer that says that there are no more for now."""
    seen = len(node.messages)
    await node.send(LimitReports({"shop/web/all": LimitReport(1.0, wanted)}))
    await node.until(lambda: any(isinstance(m, LimitGrants) for m in node.messages[seen:]), "LimitGrants")
    grants = (m.grants["shop/web/all"] for m in node.messages[seen:] if isinstance(m, LimitGrants))
    return sum(grant.tokens for grant in grants)


async def test_nodes_of_all_replicas_have_one_bucket_which_the_leader_keeps(
    cluster: FakeKubernetes, replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten tokens an hour: those that one node has, another does not get until they are given back."""
    monkeypatch.setattr(limits, "FORGET", 0.0)
    cluster.put("api/v1/services", {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"ports": []}})
    rate_limit = {"name": "all", "requests": 10, "per": "1h", "scope": "Mesh"}
    spec = {"targetRef": {"name": "web"}, "rateLimits": [rate_limit]}
    cluster.put(f"{OURS}/trafficpolicies", {"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
    first = home_of(replica)
    await until(lambda: replica.daemon.limits.kept and replica.world.traffic)
    async with running(cluster, tmp_path / "b") as other:
        second = home_of(other)
        await until(lambda: second.leadership.leader == first.leadership.me)
        assert not other.daemon.limits.kept
        cluster.put(PODS, pod(first.leadership.me.rpartition("_")[0], "10.77.0.9", namespace=NS))
        await until(lambda: second.leader() == Address("10.77.0.9", 0))
        assert first.leader() is None
        monkeypatch.setattr(second._forwarder, "_leader", lambda: Address("127.0.0.1", replica.port))
        await until(lambda: second._forwarder._outbox)
        async with (
            connected(replica.port, await replica.joined(cluster, "node-a")) as near,
            connected(other.port, await other.joined(cluster, "node-b")) as far,
        ):
            assert await ask_for_tokens(near, 3) == 3
            assert await ask_for_tokens(far, 7) == 7
            assert await ask_for_tokens(far, 1) == 0
            assert await ask_for_tokens(near, 1) == 0
            seen = len(near.messages)
            await far.send(LimitReports({"shop/web/all": LimitReport(1.0, 0, returned=7)}))
            await near.until(lambda: any(isinstance(m, LimitGrants) for m in near.messages[seen:]), "its turn")


async def test_a_replica_that_does_not_lead_gives_no_tokens_to_another(
    cluster: FakeKubernetes, replica: Replica, tmp_path: Path
) -> None:
    await until(lambda: replica.daemon.limits.kept)
    async with running(cluster, tmp_path / "b") as other:
        tls = other.daemon.tls.client_context()
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", other.port), tls, https_compatible=True)
        async with stream:
            await stream.send_all(frame(Asked("node-a", LimitReports({})), FromReplica))
            with trio.fail_after(60):
                assert await stream.receive_some() == b""
