"""The mesh on a real cluster, from `meshctl install` to `meshctl uninstall`."""

from __future__ import annotations

from typing import Any

import pytest

from kubebed.cluster import Cluster
from kubebed.images import BUSYBOX
from tests.kube import grpc_health
from tests.kube.grpc_health import health
from tests.kube.load import echo, held, load, unharmed
from tests.kube.mesh import STRICT, Mesh, idle, service, vip
from tests.kube.pods import Space, eventually, pod, space, web


def test_a_request_between_nodes_goes_through_a_tunnel(mesh: Mesh, shop: Space) -> None:
    shop.apply(service("web"))
    shop.start(web("web", "node-b"), idle("client", "node-a"))
    at = vip(shop, "web")
    # Again and again: as long as the client's node has not heard of web, a request goes in plaintext.
    eventually(lambda: shop.fetch("client", at) == "web" and mesh.opened()["client", "web", "destination"])
    assert mesh.meshed(shop.name) == {"web", "client"}


def test_a_job_whose_first_act_is_to_connect_is_captured_and_completes(mesh: Mesh, shop: Space) -> None:
    shop.apply(service("web"), STRICT)
    shop.start(web("web", "node-b"))
    template = pod("first", "node-a", ["wget", "-q", "-O", "-", f"http://{vip(shop, 'web')}/"], restartPolicy="Never")
    template.pop("apiVersion"), template.pop("kind")
    template["metadata"].pop("name")
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "first"},
        "spec": {"backoffLimit": 0, "template": template},
    }
    shop.apply(job)
    shop.kubectl("wait", "--for=condition=Complete", "--timeout=60s", "job/first")
    assert shop.kubectl("logs", "job/first").strip() == "web"


def test_under_strict_kubelets_probes_pass_and_plaintext_does_not(mesh: Mesh, shop: Space, cluster: Cluster) -> None:
    shop.apply(STRICT)
    by_tcp = web("by-tcp", "node-a")
    by_tcp["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    by_exec = web("by-exec", "node-b")
    by_exec["spec"]["containers"][0]["readinessProbe"] = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    shop.start(web("by-http", "node-b"), by_tcp, by_exec, idle("client", "node-a"))
    assert shop.fetch("client", f"{shop.address('by-http')}:8080") == "by-http"
    with space(cluster, "outside") as outside:
        outside.start(idle("outsider", "node-b"))
        assert outside.fetch("outsider", f"{shop.address('by-http')}:8080") == ""
        assert outside.fetch("outsider", f"{shop.address('by-tcp')}:8080") == ""


def test_under_strict_a_probe_fails_for_what_is_wrong_with_the_pod(mesh: Mesh, shop: Space) -> None:
    shop.apply(STRICT)
    probes: dict[str, dict[str, Any]] = {
        "http": {"httpGet": {"port": 8080, "path": "/missing"}},
        "tcp": {"tcpSocket": {"port": 9}},
        "exec": {"exec": {"command": ["test", "-e", "/missing"]}},
    }
    for name, probe in probes.items():
        server = web(name, "node-b")
        server["spec"]["containers"][0]["readinessProbe"] = {**probe, "periodSeconds": 1}
        shop.apply(server)
    shop.kubectl("wait", "--for=condition=Initialized", *(f"pod/{name}" for name in probes))

    def problems(name: str) -> str:
        about = f"--field-selector=involvedObject.name={name}"
        return shop.kubectl("get", "events", about, "-o", "jsonpath={..message}")

    eventually(lambda: "statuscode: 404" in problems("http"))
    eventually(lambda: "connection refused" in problems("tcp"))
    eventually(lambda: "Readiness probe failed" in problems("exec"))
    assert mesh.meshed(shop.name) == set(probes)
    assert "True" not in shop.kubectl("get", "pods", "-o", 'jsonpath={..conditions[?(@.type=="Ready")].status}')
    shop.run("http", "touch", "/www/missing")
    shop.run("tcp", "httpd", "-p", "9", "-h", "/www")
    shop.run("exec", "touch", "/missing")
    shop.ready(*probes)


def test_under_strict_a_nodes_grpc_probes_get_the_pods_answer(mesh: Mesh, shop: Space, cluster: Cluster) -> None:
    shop.apply(STRICT)
    shop.start(health("well", "node-a", grpc_health.SERVING), health("ill", "node-b", grpc_health.NOT_SERVING))
    assert grpc_health.probe(cluster, "node-a", shop.address("well")) == grpc_health.SERVING
    assert grpc_health.probe(cluster, "node-b", shop.address("ill")) == grpc_health.NOT_SERVING
    shop.start(idle("none", "node-b"))
    with pytest.raises(ConnectionRefusedError):
        grpc_health.probe(cluster, "node-b", shop.address("none"))
    with pytest.raises(OSError):  # another node is a stranger
        grpc_health.probe(cluster, "node-a", shop.address("ill"))


def test_a_headless_service_leads_to_each_of_its_pods(mesh: Mesh, shop: Space) -> None:
    """There is no DNS in this cluster: what a client would get from it is the list of endpoints."""
    shop.apply(STRICT, service("web", clusterIP="None", selector={"part": "web"}))
    servers = [web("web-a", "node-a"), web("web-b", "node-b")]
    for server in servers:
        server["metadata"]["labels"]["part"] = "web"
    shop.start(*servers, idle("client", "node-a"))

    def endpoints() -> set[str]:
        subsets = shop.cluster.get("-n", shop.name, "endpoints", "web").get("subsets") or []
        return {f"{a['ip']}:{s['ports'][0]['port']}" for s in subsets for a in s.get("addresses", ())}

    eventually(lambda: len(endpoints()) == 2)
    assert {shop.fetch("client", endpoint) for endpoint in endpoints()} == {"web-a", "web-b"}


def test_an_init_container_has_network_and_identity(mesh: Mesh, shop: Space) -> None:
    shop.apply(STRICT)
    shop.start(web("web", "node-b"))
    look = {
        "name": "look",
        "image": BUSYBOX,
        "command": ["wget", "-q", "-O", "-", f"http://{shop.address('web')}:8080/"],
    }
    shop.start(idle("client", "node-a", initContainers=[look]))
    assert shop.kubectl("logs", "client", "-c", "look").strip() == "web"


def test_a_pod_leaves_and_joins_by_its_label_and_no_connection_fails(mesh: Mesh, shop: Space) -> None:
    """Those in a tunnel may stay for `drainSeconds`; those that began in plaintext, for as long as they live."""

    def server(name: str, node: str) -> dict[str, Any]:
        """Pages on port 8080, an echo on 7000."""
        made = web(name, node)
        made["spec"]["containers"].append(echo(name, node)["spec"]["containers"][0] | {"name": "echo"})
        return made

    joiner = server("joiner", "node-b")
    joiner["metadata"]["labels"]["nodemesh.dev/mode"] = "disabled"
    shop.start(server("leaver", "node-a"), server("stayer", "node-b"), joiner)
    at = {name: shop.address(name) for name in ("leaver", "stayer", "joiner")}
    clients = [
        held("far", "node-b", f"{at['leaver']}:7000"),
        held("near", "node-a", f"{at['leaver']}:7000"),
        held("early", "node-a", f"{at['joiner']}:7000"),
        held("out", "node-a", f"{at['stayer']}:7000"),
        load("far-anew", "node-b", f"{at['leaver']}:8080"),
        load("near-anew", "node-a", f"{at['leaver']}:8080"),
        load("out-anew", "node-a", f"{at['stayer']}:8080"),
        load("joiner-anew", "node-a", f"{at['joiner']}:8080"),
    ]
    names = {client["metadata"]["name"] for client in clients}
    shop.start(*clients)
    eventually(lambda: mesh.meshed(shop.name) == {"leaver", "stayer", *names})
    with unharmed(shop, *names):
        shop.kubectl("label", "pod", "leaver", "out", "out-anew", "nodemesh.dev/mode=disabled")
        shop.kubectl("label", "pod", "joiner", "nodemesh.dev/mode=enabled", "--overwrite")
        eventually(lambda: mesh.meshed(shop.name) == {"stayer", "joiner", *names} - {"out", "out-anew"})
    shop.kubectl("label", "pod", "out-anew", "nodemesh.dev/mode-")
    eventually(lambda: "out-anew" in mesh.meshed(shop.name))


def test_pods_outside_the_mesh_and_on_the_hosts_network_are_left_alone(
    mesh: Mesh, cluster: Cluster, shop: Space
) -> None:
    shop.start(idle("host", "node-a", hostNetwork=True), web("in", "node-a"), idle("inner", "node-a"))
    with space(cluster, "plain") as plain:
        plain.start(web("web", "node-b"), idle("client", "node-a"))
        outside = f"{plain.address('web')}:8080"
        for client in ("host", "inner"):
            assert shop.fetch(client, outside) == "web"
        for server in (outside, f"{shop.address('in')}:8080"):
            assert plain.fetch("client", server) != ""
        assert mesh.meshed(plain.name) == set()
    eventually(lambda: mesh.meshed(shop.name) == {"in", "inner"})


def test_check_finds_the_mesh_well(mesh: Mesh) -> None:
    assert "0 failed" in mesh.ctl("check")
