"""What `tools/demo --kube` says about the mesh on a cluster, and how each sentence is checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.story import until
from demo.wire import Capture
from kubebed.spec import CONTROL

if TYPE_CHECKING:
    from demo.kube import Demo

_SHOP = Path(__file__).parent / "shop"
_PODS = ("orders", "web", "intern")


def _principal(account: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{account}"


def _wire(demo: Demo, name: str) -> Capture:
    """A capture on the network between the nodes."""
    return Capture(partial(demo.bed.enter, CONTROL), "br0", demo.bed.folder / f"{name}.pcap")


def _lives(demo: Demo) -> dict[str, Any]:
    """What changes if a pod or its container is replaced or restarted."""
    pods = {name: demo.pod(name) for name in _PODS}
    return {
        name: (
            pod["metadata"]["uid"],
            [(c["containerID"], c["restartCount"]) for c in pod["status"]["containerStatuses"]],
        )
        for name, pod in pods.items()
    }


def unprotected(demo: Demo) -> None:
    """Without a mesh, everything is readable."""
    demo.chapter(
        "Before",
        "Pod web on node-a fetches the orders from pod orders on node-b, through a Service; busybox's wget and httpd. "
        "tcpdump listens on the network between the nodes.",
    )
    demo.kubectl("-n", "shop", "get", "pods", "-o", "wide")
    with _wire(demo, "before") as wire:
        page = demo.fetch("web")
    demo.check(demo.voucher in page, "the request works")
    demo.check(wire.holds(demo.voucher), f"and whoever is on the network reads {demo.voucher}")


def installed(demo: Demo) -> None:
    """One command installs it, and nothing that runs is touched."""
    demo.chapter("Install", "A DaemonSet with noded, a controller, kinds of resource. No pod is in the mesh yet.")
    demo.before, lives = demo.left(), _lives(demo)
    done = demo.meshctl("install")
    demo.check(done.returncode == 0, "meshctl install says that all of it is ready")
    demo.check(demo.left() != demo.before, "it is on the nodes: plug-in, rules, objects")
    demo.tell("Pods join by a label on their namespace:")
    demo.kubectl("label", "namespace", "shop", "nodemesh.dev/mode=enabled")

    def joined() -> bool:
        meshed = {row["name"] for row in demo.items("workloads") if row["namespace"] == "shop" and row["meshed"]}
        return meshed == set(_PODS)

    held = until(joined, 60)
    demo.meshctl("workloads")
    demo.check(held, "the three pods that were running are in the mesh")
    demo.check(_lives(demo) == lives, "none of them was replaced or restarted")


def encrypted(demo: Demo) -> None:
    """The same request is in a tunnel."""
    demo.chapter("The same request again", "Same pods, same programs, same address, same tcpdump.")
    with _wire(demo, "after") as wire:
        page = demo.fetch("web")
    tunnelled, bare = wire.packets("tcp port 15008"), wire.packets("tcp port 8080")
    demo.evidence(f"{len(tunnelled)} packets in tunnels (port 15008), {len(bare)} to or from orders' own port, e.g.:")
    for line in tunnelled[:2]:
        demo.evidence(line)
    demo.check(demo.voucher in page, "the request works")
    demo.check(bool(tunnelled), "it went through a tunnel")
    demo.check(not wire.holds(demo.voucher), "nobody on the network can read the voucher")
    demo.check(not bare, "no packet to or from orders' own port was on the network")


def identified(demo: Demo) -> None:
    """Each tunnel is between the pods' service accounts."""
    demo.chapter(
        "Both ends know who the other is",
        "Each tunnel is mutual TLS between the two pods' service accounts, not between the nodes:",
    )
    demo.nodectl("node-b", "tunnels")

    def there() -> bool:
        return any(
            (tunnel["local_identity"], tunnel["peer_identity"]) == (_principal("orders"), _principal("web"))
            for tunnel in demo.node_items("node-b", "tunnels")
        )

    demo.check(until(there), f"node-b ends a tunnel for {_principal('orders')} from {_principal('web')}")


def strict(demo: Demo) -> None:
    """Plaintext is refused, kubelet's probes are not."""
    demo.chapter(
        "Only from the mesh",
        "A pod of another namespace, outside the mesh, still reaches the orders in plaintext. STRICT ends that; "
        "kubelet probes orders every second, over HTTP and TCP, and must go on being let in.",
    )
    demo.check(demo.voucher in demo.fetch("outsider", "elsewhere"), "before, the outsider reaches the orders")
    demo.kubectl("apply", "-f", str(_SHOP / "kube-strict.yaml"))
    until(lambda: not demo.fetches("outsider", "elsewhere"), 30)
    lives = _lives(demo)
    demo.check(demo.voucher not in demo.fetch("outsider", "elsewhere"), "after, it does not")
    demo.check(demo.voucher in demo.fetch("web"), "web does")
    time.sleep(5)
    demo.kubectl("-n", "shop", "get", "pod", "orders")
    conditions = {one["type"]: one["status"] for one in demo.pod("orders")["status"]["conditions"]}
    ready = conditions["Ready"] == "True" and _lives(demo) == lives
    demo.check(ready, "orders is still Ready after five more probes of either kind, and was not restarted")


def enforced(demo: Demo) -> None:
    """A policy is applied; a connection is refused; the log says why."""
    demo.chapter(
        "Policy by identity", "intern is in the mesh, so it reaches the orders. This policy lets only web do so:"
    )
    demo.check(demo.voucher in demo.fetch("intern"), "before, intern reaches the orders")
    demo.kubectl("apply", "-f", str(_SHOP / "kube-policy.yaml"))
    until(lambda: not demo.fetches("intern"), 30)
    demo.check(demo.voucher not in demo.fetch("intern"), "after, intern is refused")
    demo.check(demo.voucher in demo.fetch("web"), "web is not")
    noded = demo.noded("node-b")
    demo.tell(f"The reason, from the log of noded on node-b ({demo.kubebed} kubectl -n nodemesh-system logs {noded}):")
    denials: list[str] = []

    def logged() -> bool:
        log = demo.bed.kubectl("-n", "nodemesh-system", "logs", noded, "--tail=500")
        denials[:] = [line for line in log.splitlines() if "orders-for-web" in line and _principal("intern") in line]
        return bool(denials)

    until(logged)
    for line in denials[-1:]:
        demo.evidence(line)
    demo.check(bool(denials), "the log names the policy and the identity that was refused")


def observed(demo: Demo) -> None:
    """The controller has seen who talks to whom."""
    demo.chapter("Who talks to whom", "The nodes report to the controller, which has seen these edges:")

    def seen(source: str, key: str) -> bool:
        wanted = (_principal(source), _principal("orders"), "mutual_tls")
        return any(
            (edge["source"]["principal"], edge["destination"]["principal"], edge["security"]) == wanted
            and edge[key] > 0
            for edge in demo.items("edges")
        )

    until(lambda: seen("web", "opened") and seen("intern", "denied"), 30)
    demo.meshctl("edges")
    demo.check(seen("web", "opened"), "web -> orders: opened, over mutual TLS")
    demo.check(seen("intern", "denied"), "intern -> orders: denied, over mutual TLS")
    demo.tell("and how the requests to each Service fared, in the last minute and altogether:")

    def counted() -> bool:
        return any(row["requests"] > 200 for row in demo.items("top") if row["service"] == "shop/orders")

    until(counted, 30)
    demo.meshctl("top")
    demo.check(counted(), "orders has had more than 200")


def uninstalled(demo: Demo) -> None:
    """One command removes it, and nothing is left."""
    demo.chapter("Uninstall", "Nothing of the mesh may be left, and the pods must go on running.")
    lives = _lives(demo)
    done = demo.meshctl("uninstall", "--yes")
    demo.check(done.returncode == 0, "meshctl uninstall says that all of it is removed")
    changes = demo.changes()
    for line in changes:
        demo.evidence(line)
    nodes = [line for line in changes if not line.startswith("objects: ")]
    demo.check(not nodes, "plug-ins, rules and folders of both nodes are what they were before")
    demo.check(len(nodes) == len(changes), "so are the cluster's own objects")
    with _wire(demo, "uninstalled") as wire:
        demo.check(demo.voucher in demo.fetch("web"), "the request works")
    demo.check(wire.holds(demo.voucher), "and is as readable as it was")
    demo.check(_lives(demo) == lives, "no pod was replaced or restarted")


CLAIMS: tuple[Callable[[Demo], None], ...] = (
    unprotected,
    installed,
    encrypted,
    identified,
    strict,
    enforced,
)
LAST: tuple[Callable[[Demo], None], ...] = (observed, uninstalled)
