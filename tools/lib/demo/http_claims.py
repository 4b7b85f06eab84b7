"""What the demo says about requests: policy, routes, retries and faults."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.claims import Shop
from demo.story import Story, until

_SHOP = Path(__file__).parent / "shop"
_CURL = ("curl", "-sS", "-m", "10")
_STATUS = ("-o", "/dev/null", "-w", "%{http_code}\\n")
_REQUESTS = 400
_SECONDS, _RATE = 5, 40


def _apply(story: Story, file: str) -> None:
    """Show a file and apply it; every node has it on return."""
    for line in (_SHOP / file).read_text().splitlines():
        story.evidence(line)
    story.show(None, "apply", "-f", str(_SHOP / file))

    def settled() -> bool:
        nodes = story.bed.controller_api("GET", "/v1/nodes")["items"]
        return all(node["acked_revision"] == node["revision"] for node in nodes)

    until(settled)


def asked(story: Story, shop: Shop) -> None:
    """A policy about requests: the client is told no, the log is told why."""
    story.chapter(
        "Policy by request",
        "A port that is named http is read as HTTP. So a policy may say what somebody may ask for:",
    )
    _apply(story, "reading.yaml")
    allowed = story.show(shop.web, *_CURL, "http://api/version")
    story.check('"v1"' in allowed.stdout, "web still reads from the API")
    for argv, claim in (
        (("-X", "DELETE", "http://api/version"), "it may not DELETE: RBAC: access denied"),
        (("--path-as-is", "http://api/version/%2e%2e/%61dmin"), "nor is /admin, however it is written, its business"),
    ):
        denied = story.show(shop.web, *_CURL, "-w", "%{http_code}\\n", *argv)
        story.check(denied.stdout.split("\n")[:2] == ["RBAC: access denied", "403"], claim)
    node = shop.node(shop.api)
    story.tell(f"The reason, from {node.name}'s access log ({story.testbed} logs {node.name}):")
    found: list[str] = []

    def logged() -> bool:
        log = shop.bed.processes.log(f"node/{node.name}").read_text(errors="replace")
        found[:] = [line for line in log.splitlines() if '"DELETE"' in line and "web-reads" in line]
        return bool(found)

    until(logged)
    for line in found[-1:]:
        story.evidence(line)
    story.check(bool(found), "the log has the request, 403, and the policy that did not match it")
    story.tell("The node remembers what fared ill, and can say what would have helped:")
    denied_ids: list[str] = []

    def remembered() -> bool:
        items = shop.bed.node_api(node, "GET", "/why")["items"]
        denied_ids[:] = [str(one["id"]) for one in items if one.get("method") == "DELETE"]
        return bool(denied_ids)

    until(remembered)
    why = story.show(node, "nodectl", "why", *denied_ids[:1])
    story.check("if method were GET" in why.stdout, "it would have been allowed if its method were GET")


def shared(story: Story, shop: Shop) -> None:
    """A canary: shares by weight, and a header for those who want it."""
    story.chapter(
        "A canary",
        "api-v2 is the API's next version, and labelled as such. One request in ten shall go there; versions is all it "
        "takes:",
    )
    _apply(story, "canary.yaml")
    answers = story.show(shop.web, *_CURL, f"http://api/version?[1-{_REQUESTS}]", quiet=True).stdout
    counts = Counter(re.findall(r'"version": "(\w+)"', answers))
    story.evidence(f"of {counts.total()}, v1 answered {counts['v1']} and v2 {counts['v2']}")
    story.check(counts.total() == _REQUESTS, "every one was answered")
    story.check(4 < counts["v2"] < 76, "about one in ten by v2")  # six standard deviations
    endpoints = story.show(shop.node(shop.web), "nodectl", "endpoints", "--service", "shop/api").stdout
    story.check(bool(re.search(r"shop/api-v2 +v2 +10%", endpoints)), "its node knows each endpoint's version and share")
    story.tell("Those who want to try it now may ask for it, by a header:")
    _apply(story, "preview.yaml")
    chosen = story.show(shop.web, *_CURL, "-H", "X-Version: v2", "http://api/version")
    story.check('"v2"' in chosen.stdout, "who asks for v2 gets v2")
    described = story.show(None, "describe", "httproute", "preview", "--namespace", "shop", quiet=True).stdout
    for line in described.splitlines()[-2:]:
        story.evidence(line.strip())
    story.check(bool(re.search(r"shop/api +yes +yes", described)), "the route says that it was accepted")
    story.show(None, "delete", "httproute", "preview", "--namespace", "shop")


def budgeted(story: Story, shop: Shop) -> None:
    """A backend that fails is not buried under retries."""
    story.chapter(
        "A retry storm that is none",
        "Retries help against what fails now and then. Where everything fails, five of them make six requests out of "
        "one, just when the server can bear it least. A budget keeps them within a share of the requests:",
    )
    _apply(story, "retries.yaml")
    story.show(shop.web, *_CURL[:2], *_STATUS, f"http://api-v2/broken?[1-{_REQUESTS}]", quiet=True)
    tries = json.loads(story.show(shop.web, *_CURL, "http://api-v2/tries").stdout or "{}").get("tries", 0)
    story.evidence(f"web asked {_REQUESTS} times for what always fails; api-v2 was asked {tries} times")
    story.check(tries > _REQUESTS, "it was tried again")
    story.check(tries <= _REQUESTS * 1.2 + 1, f"at most a fifth more, where there might have been {6 * _REQUESTS}")
    node = shop.node(shop.web)
    counts: dict[str, float] = {}

    def counted() -> bool:
        said = shop.bed.capture(shop.bed.enter(node, ["nodectl", "metrics"]), shop.bed.environment(node)).stdout
        counts.update((k, float(v)) for k, v in re.findall(r"^(nodemesh_retries_\S+) (\S+)$", said, re.MULTILINE))
        over = counts.get("nodemesh_retries_over_budget_total", 0)
        return over > 0 and counts["nodemesh_retries_total"] >= tries - _REQUESTS

    held = until(counted)
    story.tell(f"The same in {node.name}'s metrics ({story.testbed} node {node.name} -- nodectl metrics):")
    for name, count in counts.items():
        story.evidence(f"{name} {count:.0f}")
    story.check(held, "both the retries and those that the budget forbade are counted")


def limited(story: Story, shop: Shop) -> None:
    """One limit for clients on both nodes."""
    story.chapter(
        "One limit for all nodes",
        "The API on node-b and its next version on node-a fetch the front page as fast as they can, for some seconds. "
        "Each one's requests are limited by its own node, and yet the limit is one:",
    )
    _apply(story, "limit.yaml")
    clients = (shop.api, shop.api_v2)
    argv = ["timeout", str(_SECONDS), "curl", "-sS", *_STATUS, "http://web/?[1-1000000]"]
    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda pod: shop.bed.capture(shop.bed.enter(pod, argv)), clients))
    most = _RATE * (1 + time.monotonic() - began)
    counts = [Counter(one.stdout.split()) for one in done]
    for pod, answers in zip(clients, counts, strict=True):
        story.evidence(f"{pod.name}: {answers['200']} answered, {answers['429']} refused with 429")
    passed = sum(answers["200"] for answers in counts)
    story.evidence(f"{passed} answered together, in {_SECONDS} seconds at {_RATE} a second, and {_RATE} at once")
    story.check(all(answers["200"] for answers in counts), "both got some of it")
    story.check(all(answers["429"] for answers in counts), "and more than they could have")
    story.check(_RATE * _SECONDS / 2 < passed <= most * 1.05 + 1, "together no more than the limit")
    story.show(None, "delete", "-f", str(_SHOP / "limit.yaml"), quiet=True)


def disturbed(story: Story, shop: Shop) -> None:
    """A fault is injected."""
    story.chapter("A fault on purpose", "How do those who call the API bear it if it hangs, and then fails?")
    _apply(story, "fault.yaml")
    well = story.show(shop.web, *_CURL, *_STATUS, "http://api/version")
    story.check(well.stdout.strip() == "200", "ordinary requests do not notice")
    timed = ("-w", "%{http_code} after %{time_total} s\\n")
    struck = story.show(shop.web, *_CURL, *timed, "-H", "x-chaos: yes", "http://api/version").stdout
    story.check("fault filter abort" in struck, "one that asks for it fails")
    seconds = re.search(r"503 after ([\d.]+) s", struck)
    story.check(seconds is not None and float(seconds[1]) >= 0.5, "after half a second")


CLAIMS: tuple[Callable[[Story, Shop], None], ...] = (asked, shared, budgeted, limited, disturbed)
