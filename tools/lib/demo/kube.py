"""`tools/demo --kube`: a real cluster, from `meshctl install` to `meshctl uninstall`."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from difflib import unified_diff
from functools import partial
from pathlib import Path
from typing import Any

from demo import kube_claims, kube_http_claims
from demo.story import Telling, until
from kubebed import cache, cluster, machine, product
from kubebed.cluster import Cluster, without_proxies
from kubebed.errors import KubebedError
from kubebed.images import BUSYBOX
from testbed.network import NetworkError

_SHOP = Path(__file__).parent / "shop"
_MESHCTL = str(Path(sys.executable).with_name("meshctl"))
_TRY = """
The cluster stays up, without the mesh. Things to try:
   export KUBECONFIG={kubeconfig}
   {meshctl} install
   {kubebed} kubectl get pods -A
   {kubebed} kubectl -n shop exec web -- wget -q -O - http://{orders}/
   {meshctl} workloads
   {kubebed} node node-a -- ip address
   {kubebed} down          when you are done
"""


class Demo(Telling):
    """The telling of what happens on a cluster."""

    def __init__(self, bed: Cluster) -> None:
        super().__init__()
        self.bed = bed
        self.kubebed = f"tools/kubebed -n {bed.spec.name}"
        self.voucher = f"VOUCHER-{secrets.token_hex(8)}"
        self.before: dict[str, str] = {}
        self._environment = without_proxies() | {"KUBECONFIG": str(bed.kubeconfig)}

    # Commands, shown as they are typed and with what they say.

    def kubectl(self, *argv: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """kubectl, shown."""
        done = self._run(self.bed.kubectl_command(argv))
        self.ran(f"{self.kubebed} kubectl {shlex.join(argv)}", done, quiet)
        return done

    def meshctl(self, *argv: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        """meshctl, shown."""
        done = self._run([_MESHCTL, *argv])
        self.ran(f"meshctl {shlex.join(argv)}", done, quiet)
        return done

    def fetch(self, pod: str, namespace: str = "shop", path: str = "") -> str:
        """The page of the orders, or another of their paths, fetched in a pod, or why there is none; shown."""
        done = self.kubectl("-n", namespace, "exec", pod, "--", *self._wget(path))
        return done.stdout + done.stderr

    def nodectl(self, node: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """nodectl in noded's pod on a node, shown."""
        return self.kubectl("-n", "nodemesh-system", "exec", self.noded(node), "--", "nodectl", *argv)

    # The same without being shown, to check claims with.

    def fetches(self, pod: str, namespace: str = "shop", version: str = "") -> bool:
        """Whether a pod gets the orders, of this version if one is given."""
        argv = self.bed.kubectl_command(["-n", namespace, "exec", pod, "--", *self._wget()])
        return f"{self.voucher} {version}".strip() in self._run(argv).stdout

    def items(self, *argv: str) -> list[dict[str, Any]]:
        """A list of meshctl's; empty while it has none to give."""
        return _items(self._run([_MESHCTL, *argv, "-o", "json"]).stdout)

    def node_items(self, node: str, *argv: str) -> list[dict[str, Any]]:
        """A list of nodectl's on a node."""
        argv = ("-n", "nodemesh-system", "exec", self.noded(node), "--", "nodectl", *argv, "-o", "json")
        return _items(self._run(self.bed.kubectl_command(argv)).stdout)

    def noded(self, node: str) -> str:
        """The name of noded's pod on a node. Raises `KubebedError`."""
        for pod in self.bed.get("-n", "nodemesh-system", "pods", f"--field-selector=spec.nodeName={node}")["items"]:
            if pod["metadata"]["name"].startswith("noded-"):
                return str(pod["metadata"]["name"])
        raise KubebedError(f"no pod of noded is on {node}")

    def pod(self, name: str) -> dict[str, Any]:
        """A pod of the shop."""
        found: dict[str, Any] = self.bed.get("-n", "shop", "pod", name)
        return found

    def orders(self) -> str:
        """The address of the Service."""
        return str(self.bed.get("-n", "shop", "service", "orders")["spec"]["clusterIP"])

    def left(self) -> dict[str, str]:
        """Everything an installation could leave: CNI files, rules and folders of the hosts, objects of the cluster."""
        look = (
            "cat /etc/cni/net.d/*; ls /etc/cni/net.d /opt/cni/bin; "
            "for table in raw nat mangle filter; do iptables-legacy-save -t $table | grep -i nodemesh; done; "
            "ls /run/nodemesh /var/lib/cni/nodemesh 2>/dev/null; true"
        )
        found = {node: self._run(self.bed.enter(node, ["sh", "-c", look])).stdout for node in self.bed.hosts}
        kinds = "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings"
        names = self.bed.kubectl("get", kinds, "-o", "name").splitlines()
        return found | {"objects": "\n".join(name for name in names if "nodemesh" in name)}

    def changes(self) -> list[str]:
        """What is different from before the installation: `PLACE: -line` or `PLACE: +line`."""
        return [
            f"{place}: {line}"
            for place, now in self.left().items()
            for line in unified_diff(self.before[place].splitlines(), now.splitlines(), n=0, lineterm="")
            if not line.startswith(("---", "+++", "@@"))
        ]

    # Before the story.

    def start(self, file: str) -> None:
        """Create what is in a file of the shop."""
        manifest = (_SHOP / file).read_text().replace("{image}", BUSYBOX).replace("{voucher}", self.voucher)
        self.bed.kubectl("apply", "-f", "-", stdin=manifest)

    def open_shop(self) -> None:
        """Create the pods and wait until they are Ready. Raises `KubebedError`."""
        for namespace, accounts in (("shop", ("orders", "web", "intern", "default")), ("elsewhere", ("default",))):
            self.bed.kubectl("create", "namespace", namespace)
            for account in accounts[:-1]:
                self.bed.kubectl("-n", namespace, "create", "serviceaccount", account)
            for account in accounts:  # Pods are refused until their account's token is there.
                until(partial(self._has_secret, namespace, account))
        self.start("kube.yaml")
        for namespace in ("shop", "elsewhere"):
            self.bed.kubectl("-n", namespace, "wait", "--for=condition=Ready", "--timeout=90s", "pods", "--all")

    def _has_secret(self, namespace: str, account: str) -> bool:
        name = f"--field-selector=metadata.name={account}"
        items = self.bed.get("-n", namespace, "serviceaccounts", name)["items"]
        return any(item.get("secrets") for item in items)

    def _wget(self, path: str = "") -> list[str]:
        return ["timeout", "5", "wget", "-q", "-O", "-", f"http://{self.orders()}/{path}"]

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, env=self._environment)


def main(name: str, once: bool) -> int:
    """Make a cluster and tell the story; 0 if every claim held."""
    try:
        machine.check()
        failed = _tour(name, once)
    except (KubebedError, NetworkError, subprocess.TimeoutExpired) as error:
        print(f"tools/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntools/demo: interrupted, and taken down again", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _tour(name: str, once: bool) -> list[str]:
    """Bring it up and tell; the claims that did not hold. Taken down again if `once`, or if it can't be told."""
    began = time.monotonic()
    if cluster.down(name):
        print("(removed the cluster that was still up)")
    print("A Kubernetes cluster of two nodes on this machine, with this checkout's image on both:", flush=True)
    up = False
    try:
        bed = cluster.make(name, 2, cache.build())
        with tempfile.TemporaryDirectory() as folder:
            product.build(Path(folder) / "nodemesh.tar")
            bed.load(Path(folder) / "nodemesh.tar")
        demo = Demo(bed)
        demo.open_shop()
        for claim in (*kube_claims.CLAIMS, *kube_http_claims.CLAIMS, *kube_claims.LAST):
            claim(demo)
        up = not once
    finally:
        if not up:
            cluster.down(name)
    if once:
        demo.check(name not in cluster.names(), "taken down, and nothing is left of the cluster")
    demo.verdict(time.monotonic() - began)
    if up:
        meshctl = os.path.relpath(_MESHCTL)
        print(_TRY.format(kubeconfig=bed.kubeconfig, meshctl=meshctl, kubebed=demo.kubebed, orders=demo.orders()))
    return demo.failed


def _items(text: str) -> list[dict[str, Any]]:
    try:
        items: list[dict[str, Any]] = json.loads(text)["items"]
    except (ValueError, KeyError, TypeError):
        return []
    return items
