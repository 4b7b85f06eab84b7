"""What the demo says about the mesh, and how each sentence is checked."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from demo.story import Story, until
from demo.wire import Capture
from testbed.mesh import Testbed
from testbed.spec import Node, Pod

ORDER = ("curl", "-sS", "-m", "10", "http://api/order")


class Shop:
    """The pods by name."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.web, self.api, self.api_v2, self.redis, self.db, self.outsider = map(
            bed.spec.pod, ("web", "api", "api-v2", "redis", "db", "outsider")
        )
        self.voucher = f"VOUCHER-{secrets.token_hex(8)}"

    def node(self, pod: Pod) -> Node:
        """The host of a pod."""
        return self.bed.spec.node(pod.node)

    def principal(self, pod: Pod) -> str:
        """A pod's identity."""
        return f"spiffe://cluster.local/ns/{pod.namespace}/sa/{pod.service_account}"

    def wait(self) -> None:
        """Return when all programs answer; MariaDB takes a few seconds to make its tables."""
        deadline = time.monotonic() + 60
        while True:
            answer = self.bed.capture(self.bed.enter(self.web, list(ORDER)))
            second = self.bed.capture(self.bed.enter(self.web, ["curl", "-sS", "-m", "10", "http://api-v2/version"]))
            if ('"umbrellas": "17"' in answer.stdout and '"v2"' in second.stdout) or time.monotonic() > deadline:
                return
            time.sleep(0.5)


def captured(story: Story, shop: Shop) -> None:
    """Unmodified programs talk through the mesh and can't tell."""
    story.chapter(
        "Unmodified programs talk through the mesh",
        "nginx (pod web, node-a) calls a Python API (pod api, node-b), which calls Redis and MariaDB (node-a). "
        "None was configured for a mesh; none links a library of it.",
    )
    story.show(shop.api, "redis-cli", "-h", "redis", "set", "voucher", shop.voucher)
    answer = story.show(shop.web, *ORDER)
    order = _json(answer.stdout)
    story.check(order.get("umbrellas") == "17", "web -> api -> MariaDB: the stock is what the database holds")
    story.check(order.get("voucher") == shop.voucher, "web -> api -> Redis: the voucher came back")
    story.check(order.get("called_by") == shop.web.addresses[0], "the API sees web's own address as its client")
    clients = story.show(shop.redis, "redis-cli", "client", "list")
    story.check(
        f"addr={shop.api.addresses[0]}:" in clients.stdout, "so does Redis: the API's own address, not a proxy's"
    )
    story.tell("The greeting of a server that speaks first (MariaDB) arrives before the client has sent a byte:")
    greet = 'import socket; print(socket.create_connection(("db", 3306), 5).recv(100))'
    greeting = story.show(shop.api, "python3", "-c", greet)
    story.check("MariaDB" in greeting.stdout, "server-first protocols work")
    story.tell("What made it so are rules in the pod's own network namespace, written when it was enrolled:")
    rules = story.show(shop.node(shop.api), "nodectl", "capture", "--verify")
    story.check(rules.returncode == 0 and shop.api.uid in rules.stdout, "capture is in place and verified")


def encrypted(story: Story, shop: Shop) -> None:
    """Nothing readable crosses the fabric between enrolled workloads."""
    story.chapter(
        "Nothing readable crosses the network between hosts",
        "tcpdump listens on the fabric between the hosts, and inside Redis's pod, while the same request is made "
        "again; the outsider, which is not in the mesh, fetches the front page in the meantime.",
    )
    page = "nothing secret here"
    with (
        Capture(partial(shop.bed.enter, "fabric"), "br0", shop.bed.folder / "fabric.pcap") as fabric,
        Capture(partial(shop.bed.enter, shop.redis), "lo", shop.bed.folder / "redis.pcap") as pod,
    ):
        story.show(shop.web, *ORDER, quiet=True)
        story.show(shop.outsider, "curl", "-sS", "-m", "10", "http://web.shop/", quiet=True)
    everything, tunnelled = fabric.packets(), fabric.packets("tcp port 15008")
    story.evidence(
        f"{len(everything)} packets crossed the fabric, {len(tunnelled)} of them in tunnels (port 15008), e.g.:"
    )
    for line in tunnelled[:2]:
        story.evidence(line)
    story.check(len(tunnelled) > 0, "there was traffic in tunnels")
    story.check(pod.holds(shop.voucher), f"in Redis's pod the voucher {shop.voucher} is readable")
    story.check(not fabric.holds(shop.voucher), "on the fabric it is not")
    story.check(fabric.holds(page), "the capture does see plaintext: the outsider's page, which was never in a tunnel")
    strays = fabric.packets(f"tcp and ( port 8000 or port 6379 or port 3306 ) and net {_prefix(shop.web)}")
    story.check(not strays, "no packet to or from the API's, Redis's or MariaDB's own ports crossed the fabric")


def identified(story: Story, shop: Shop) -> None:
    """Each tunnel is mutual TLS between the pods' own identities."""
    story.chapter(
        "Both ends know who the other is",
        "Each tunnel is mutual TLS between the two pods' own SPIFFE identities, not the hosts'.",
    )
    node = shop.node(shop.redis)
    story.show(node, "nodectl", "tunnels")
    tunnels = shop.bed.node_api(node, "GET", "/tunnels")["items"]
    pairs = {(tunnel["local_identity"], tunnel["peer_identity"]) for tunnel in tunnels}
    for pod in (shop.redis, shop.db):
        story.check(
            (shop.principal(pod), shop.principal(shop.api)) in pairs,
            f"{pod.name}'s side ends a tunnel from {shop.principal(shop.api)}",
        )
    story.show(node, "nodectl", "connections")
    connections = shop.bed.node_api(node, "GET", "/connections")["items"]
    held = [
        c for c in connections if c["workload"] == shop.redis.uid and c["source_identity"] == shop.principal(shop.api)
    ]
    story.check(bool(held), "the API's open connection to Redis is listed with the identity it came under")


def enforced(story: Story, shop: Shop) -> None:
    """A policy is applied; a connection is refused; the log says why."""
    story.chapter(
        "Policy by identity",
        "Until now anybody may talk to Redis. This policy lets only the API's service account do so:",
    )
    policy = shop.bed.source.parent / "policy.yaml"
    before = story.show(shop.web, "redis-cli", "-h", "redis", "ping")
    story.check("PONG" in before.stdout, "before, web reaches Redis")
    story.show(None, "apply", "-f", str(policy))
    refused = until(lambda: shop.bed.capture(shop.bed.enter(shop.web, _ping())).returncode != 0)
    after = story.show(shop.web, *_ping())
    story.check(refused and "PONG" not in after.stdout, "after, web's connection is refused")
    outside = story.show(shop.outsider, "redis-cli", "-h", "redis.shop", "ping")
    story.check("PONG" not in outside.stdout, "and so is the outsider's, which has no identity at all")
    order = _json(story.show(shop.web, *ORDER).stdout)
    story.check(order.get("voucher") == shop.voucher, "the API still gets its voucher")
    node = shop.node(shop.redis)
    story.tell(f"The reason, from {node.name}'s access log ({story.testbed} logs {node.name}):")
    denials: list[str] = []

    def logged() -> bool:
        log = shop.bed.processes.log(f"node/{node.name}").read_text(errors="replace")
        denials[:] = [
            line for line in log.splitlines() if "redis-for-the-api" in line and shop.principal(shop.web) in line
        ]
        return bool(denials)

    until(logged)
    for line in denials[-1:]:
        story.evidence(line)
    story.check(bool(denials), "the log names the policy and the identity that was refused")
    verdict = story.show(None, "policy", "check", "--from", "shop/web", "--to", "shop/redis:6379")
    story.check("redis-for-the-api" in verdict.stdout, "meshctl gives the same answer without any traffic")


def observed(story: Story, shop: Shop) -> None:
    """The controller has seen who talks to whom."""
    story.chapter("Who talks to whom", "The nodes report to the controller, which has seen these edges:")

    def edges() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = shop.bed.controller_api("GET", "/v1/edges")["items"]
        return found

    def between(source: Pod, destination: Pod, key: str) -> bool:
        return any(
            edge["source"]["principal"] == shop.principal(source)
            and edge["destination"]["principal"] == shop.principal(destination)
            and edge["security"] == "mutual_tls"
            and edge[key] > 0
            for edge in edges()
        )

    wanted = [(shop.web, shop.api, "opened"), (shop.api, shop.redis, "opened"), (shop.api, shop.db, "opened")]
    wanted.append((shop.web, shop.redis, "denied"))
    until(lambda: all(between(*edge) for edge in wanted))
    story.show(None, "edges")
    for source, destination, key in wanted:
        story.check(between(source, destination, key), f"{source.name} -> {destination.name}: {key}, over mutual TLS")
    story.tell("How their requests fared in the last minute:")
    top = story.show(None, "top", "edges").stdout
    story.check("shop/api-v2" in top, "web -> api-v2: rate, success and latency of its requests, most of which failed")


CLAIMS: tuple[Callable[[Story, Shop], None], ...] = (captured, encrypted, identified, enforced)


def _ping() -> list[str]:
    return ["redis-cli", "-h", "redis", "ping"]


def _prefix(pod: Pod) -> str:
    return ".".join(pod.addresses[0].split(".")[:2]) + ".0.0/16"


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
