"""Pods for tests, in a namespace of their own."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kubebed.cluster import Cluster, without_proxies
from kubebed.images import BUSYBOX


def eventually(check: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `check` is true. Raises what it last raised, or `AssertionError`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
            problem: Exception = AssertionError(f"not true within {seconds:.0f} s")
        except Exception as error:
            problem = error
        if time.monotonic() > deadline:
            raise problem
        time.sleep(0.2)


def pod(name: str, node: str, command: list[str], image: str = BUSYBOX, **spec: Any) -> dict[str, Any]:
    """A pod's manifest; labelled `app: <name>` and gone at once when deleted."""
    container = {"name": "main", "image": image, "command": command} | spec.pop("container", {})
    settings = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": settings | spec,
    }


def web(name: str, node: str) -> dict[str, Any]:
    """A pod that answers HTTP on port 8080 with its own name."""
    script = "mkdir /www && hostname >/www/index.html && exec httpd -f -p 8080 -h /www"
    probe = {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1}
    return pod(name, node, ["sh", "-c", script], container={"readinessProbe": probe})


class Space:
    """A namespace of a cluster."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def kubectl(self, *argv: str, stdin: str = "") -> str:
        """kubectl in this namespace. Raises `KubebedError`."""
        return self.cluster.kubectl("-n", self.name, *argv, stdin=stdin)

    def start(self, *pods: dict[str, Any]) -> None:
        """Create pods and wait until they are Ready."""
        self.apply(*pods)
        self.ready(*(manifest["metadata"]["name"] for manifest in pods))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def ready(self, *names: str) -> None:
        """Wait until these pods are Ready."""
        self.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names))

    def address(self, name: str) -> str:
        """A pod's."""
        return str(self.cluster.get("-n", self.name, "pod", name)["status"]["podIP"])

    def run(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in a pod."""
        command = self.cluster.kubectl_command(["-n", self.name, "exec", name, "--", *argv])
        return subprocess.run(command, capture_output=True, text=True, env=without_proxies())

    def fetch(self, name: str, address: str) -> str:
        """The page at `http://<address>/`, fetched in a pod; "" if there is none."""
        # Not its own -T: with it, this busybox crashes.
        return self.run(name, "timeout", "3", "wget", "-q", "-O", "-", f"http://{address}/").stdout.strip()


@contextmanager
def space(cluster: Cluster, prefix: str) -> Iterator[Space]:
    """A new namespace, removed with all that is in it."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    try:
        # Pods are refused until it is there.
        eventually(lambda: cluster.get("-n", name, "serviceaccount", "default"))
        yield Space(cluster, name)
    finally:
        # Pods end now. With the rest of a namespace Kubernetes begins after five seconds, in which nobody need wait.
        cluster.kubectl("-n", name, "delete", "deployments,jobs", "--all", "--timeout=60s")
        cluster.kubectl("-n", name, "delete", "pods", "--all", "--force", "--grace-period=0", "--timeout=60s")
        cluster.kubectl("delete", "namespace", name, "--wait=false")
