"""A static pod, which its node knows by another UID than the API: in the mesh as others are."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from kubebed.cluster import Cluster
from tests.kube.mesh import Mesh, idle
from tests.kube.pods import Space, eventually, web

NODE = "node-b"


@contextmanager
def static(cluster: Cluster, space: Space, name: str) -> Iterator[str]:
    """A web server in the folder of the node's own manifests, gone afterwards; what the API calls it."""
    manifest = web(name, NODE)
    del manifest["spec"]["nodeName"]
    manifest["metadata"]["namespace"] = space.name
    path, new = (f"/etc/kubernetes/manifests/{dot}{space.name}.json" for dot in ("", "."))
    try:
        # A file with a dot is none for kubelet. It took any other for a pod at once, and twice when it was renamed.
        write = cluster.enter(NODE, ["sh", "-c", f"cat >{new} && mv {new} {path}"])
        subprocess.run(write, input=json.dumps(manifest), text=True, check=True)
        yield f"{name}-{NODE}"
    finally:
        subprocess.run(cluster.enter(NODE, ["rm", "-f", path]), check=True)
        eventually(lambda: not cluster.get("-n", space.name, "pods", "-l", f"app={name}")["items"])


def test_a_static_pod_is_captured_when_it_starts_and_found_when_it_runs(
    mesh: Mesh, shop: Space, cluster: Cluster
) -> None:
    with static(cluster, shop, "web") as name:
        eventually(lambda: cluster.get("-n", shop.name, "pod", name))
        shop.ready(name)
        assert mesh.meshed(shop.name) == {name}  # before it was ready
        shop.start(idle("client", "node-a"))
        at = f"{shop.address(name)}:8080"
        # Again and again: as long as the client's node has not heard of it, a request goes in plaintext.
        eventually(lambda: shop.fetch("client", at) == name and mesh.opened()["client", name, "destination"])
        cluster.kubectl("label", "namespace", shop.name, "nodemesh.dev/mode-")
        eventually(lambda: mesh.meshed(shop.name) == set())
        cluster.kubectl("label", "namespace", shop.name, "nodemesh.dev/mode=enabled")
        eventually(lambda: mesh.meshed(shop.name) == {name, "client"})
