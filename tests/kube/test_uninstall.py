"""Taking the mesh away from pods that are in it. This is the last test: the others need the mesh."""

from __future__ import annotations

from kubebed.cluster import Cluster
from tests.kube.load import echo, held, unharmed
from tests.kube.mesh import STRICT, Mesh, idle, left, pod_networks
from tests.kube.pods import eventually, space, web


def test_uninstalling_leaves_nothing_and_pods_run_on(mesh: Mesh, cluster: Cluster) -> None:
    with space(cluster, "shop") as shop:
        shop.start(web("web", "node-b"), idle("client", "node-a"), echo("echo", "node-b"))
        shop.start(held("held", "node-a", f"{shop.address('echo')}:7000"))
        before = {node: pod_networks(cluster, node) for node in cluster.hosts}
        at = f"{shop.address('web')}:8080"
        cluster.kubectl("label", "namespace", shop.name, "nodemesh.dev/mode=enabled")
        shop.apply(STRICT)
        eventually(lambda: len(mesh.meshed(shop.name)) == 4)
        assert shop.fetch("client", at) == "web"
        assert all("NODEMESH" in str(pod_networks(cluster, node)) for node in cluster.hosts)
        with unharmed(shop, "held"):  # it began in plaintext
            mesh.uninstall()
        for node in cluster.hosts:
            after = pod_networks(cluster, node)
            assert "NODEMESH" not in str(after)
            # Not those of pods of the tests before, which may still be ending and were in the mesh.
            ours = {name: rules for name, rules in before[node].items() if "NODEMESH" not in rules and name in after}
            assert len(ours) >= 2
            assert {name: after[name] for name in ours} == ours
        eventually(lambda: not any("nodemesh" in text.lower() for text in left(cluster).values()))
        assert "nodemesh" not in shop.kubectl("get", "pods", "-o", "jsonpath={..annotations}")
        assert shop.fetch("client", at) == "web"
        shop.start(idle("new", "node-a"))
        assert shop.fetch("new", at) == "web"
        assert set(shop.kubectl("get", "pods", "-o", "jsonpath={..restartCount}").split()) == {"0"}
