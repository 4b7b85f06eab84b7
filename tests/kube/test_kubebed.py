"""The cluster of `tools/kubebed` is one in which the mesh can be tested: real where the mesh looks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial

import pytest

from kubebed import product
from kubebed.cluster import Cluster
from kubebed.images import PYTHON
from tests.kube.pods import Space, eventually, pod, space, web

NODES = ("node-a", "node-b")
AGENT = {
    "hostNetwork": True,
    "hostPID": True,
    "container": {
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]},
        },
        "volumeMounts": [
            {"name": "run", "mountPath": "/host/run"},
            {"name": "plug-ins", "mountPath": "/host/opt/cni/bin"},
            {"name": "networks", "mountPath": "/host/etc/cni/net.d"},
            {"name": "namespaces", "mountPath": "/run/netns", "mountPropagation": "HostToContainer"},
        ],
    },
    "volumes": [
        {"name": name, "hostPath": {"path": path, "type": "Directory"}}
        for name, path in (
            ("run", "/run"),
            ("plug-ins", "/opt/cni/bin"),
            ("networks", "/etc/cni/net.d"),
            ("namespaces", "/run/netns"),
        )
    ],
}
"""What noded's DaemonSet asks for."""
ENTER = """\
import ctypes, os, pathlib, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in pathlib.Path("/run/netns").iterdir():
    with path.open() as namespace:
        if libc.setns(namespace.fileno(), 0x40000000):
            sys.exit(f"setns {path}: {os.strerror(ctypes.get_errno())}")
    with socket.socket() as probe:
        try:
            probe.bind((sys.argv[1], 15001))
        except OSError:
            continue
        print("bound", probe.getsockname()[0])
"""


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Iterator[Space]:
    """A web server on each node."""
    with space(cluster, "shop") as made:
        made.start(web("web-a", "node-a"), web("web-b", "node-b"))
        yield made


def test_every_node_is_ready_and_has_its_range_of_pod_addresses(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.get("nodes")["items"]}
    assert tuple(sorted(nodes)) == NODES
    for name, node in nodes.items():
        assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"
        assert node["spec"]["podCIDR"] == cluster.spec.node(name).pods
        assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.20.2"


def test_pods_on_both_nodes_reach_each_other(shop: Space) -> None:
    for client in ("web-a", "web-b"):
        for server in ("web-a", "web-b"):
            assert shop.fetch(client, f"{shop.address(server)}:8080") == server


def test_a_services_address_leads_to_its_pod_from_both_nodes(shop: Space) -> None:
    ports = [{"port": 80, "targetPort": 8080}]
    for name in ("web-a", "web-b"):
        spec = {"selector": {"app": name}, "ports": ports}
        shop.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    for server in ("web-a", "web-b"):
        address = shop.cluster.get("-n", shop.name, "service", server)["spec"]["clusterIP"]
        for client in ("web-a", "web-b"):
            eventually(partial(_serves, shop, client, address, server))


def _serves(shop: Space, client: str, address: str, page: str) -> bool:
    return shop.fetch(client, address) == page


def test_exec_passes_output_and_exit_codes(shop: Space) -> None:
    done = shop.run("web-b", "sh", "-c", "echo here; echo there >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "here\n")
    assert "there\n" in done.stderr


def test_the_projects_programs_run_from_its_image(shop: Space) -> None:
    shop.start(pod("product", "node-a", ["sleep", "3600"], image=product.reference()))
    for program in ("noded", "nodectl", "mesh-controller", "meshctl"):
        done = shop.run("product", program, "--help")
        assert (done.returncode, done.stdout.lower()[:6]) == (0, "usage:"), done.stderr
    loads = shop.run("product", "python3", "-c", "import iptc, pyroute2, cryptography.x509, trio; print(iptc.__file__)")
    assert loads.stdout.startswith("/usr/local/lib/"), loads.stderr


def test_an_agent_sees_a_pod_that_came_after_it_and_enters_its_network_namespace(shop: Space) -> None:
    shop.start(pod("agent", "node-b", ["sleep", "3600"], image=PYTHON, **AGENT))
    shop.start(web("late", "node-b"))
    address = shop.address("late")
    done = shop.run("agent", "python3", "-c", ENTER, address)
    assert (done.returncode, done.stdout) == (0, f"bound {address}\n"), done.stderr
    uid = shop.cluster.get("-n", shop.name, "pod", "late")["metadata"]["uid"]
    found = shop.run("agent", "sh", "-c", f"grep -l /kubepods/.*pod{uid} /proc/[0-9]*/cgroup")
    assert found.stdout.split(), "the pod's processes are not to be found by its UID"


def test_what_an_agent_installs_on_its_node_is_on_that_node_alone_and_is_run(shop: Space) -> None:
    shop.start(pod("installer", "node-a", ["sleep", "3600"], image=PYTHON, **AGENT))
    plug_in = "#!/bin/sh\ntouch /run/seen-$CNI_COMMAND\nexec /opt/cni/bin/tuning\n"
    conf = json.loads(shop.run("installer", "cat", "/host/etc/cni/net.d/10-kubebed.conflist").stdout)
    before = json.dumps(conf)
    conf["plugins"].append({"type": "probe"})
    try:
        _write(shop, "/host/opt/cni/bin/probe", plug_in, executable=True)
        _write(shop, "/host/etc/cni/net.d/10-kubebed.conflist", json.dumps(conf))
        eventually(lambda: _starts_a_pod(shop) and shop.run("installer", "ls", "/host/run/seen-ADD").returncode == 0)
        assert shop.cluster.host("node-b").run(["ls", "/opt/cni/bin/probe"]).returncode != 0
        assert not os.path.exists("/opt/cni/bin/probe")
    finally:
        _write(shop, "/host/etc/cni/net.d/10-kubebed.conflist", before)
        shop.run("installer", "rm", "/host/opt/cni/bin/probe")


def _starts_a_pod(shop: Space) -> bool:
    shop.start(web("probed", "node-a"))
    shop.kubectl("delete", "pod", "probed")
    return True


def _write(shop: Space, path: str, text: str, *, executable: bool = False) -> None:
    mode = 0o755 if executable else 0o644
    script = "import os, sys; p, t, m = sys.argv[1:]; open(p, 'w').write(t); os.chmod(p, int(m))"
    done = shop.run("installer", "python3", "-c", script, path, text, str(mode))
    assert done.returncode == 0, done.stderr
