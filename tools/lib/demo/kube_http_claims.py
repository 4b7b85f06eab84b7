"""What `tools/demo --kube` says about requests: policy, a canary, a limit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.story import until

if TYPE_CHECKING:
    from demo.kube import Demo

_SHOP = Path(__file__).parent / "shop"
_REQUESTS, _LIMIT = 200, 20


def _apply(demo: Demo, kind: str, name: str, file: str) -> None:
    """Show a file and apply it; every node has it on return."""
    for line in (_SHOP / file).read_text().splitlines():
        demo.evidence(line)
    demo.kubectl("apply", "-f", str(_SHOP / file))

    def programmed() -> bool:
        body = demo.bed.get("-n", "shop", f"{kind}.nodemesh.dev", name)
        said = [c for c in (body.get("status") or {}).get("conditions") or () if c["type"] == "Programmed"]
        return any((c["status"], c["observedGeneration"]) == ("True", body["metadata"]["generation"]) for c in said)

    until(programmed, 30)


def _answers(demo: Demo, requests: int) -> Counter[str]:
    """Of so many requests of web for the orders, how often which page or problem."""
    loop = f"for i in $(seq {requests}); do timeout 5 wget -q -O - http://{demo.orders()}/ 2>&1; done; true"
    return Counter(demo.kubectl("-n", "shop", "exec", "web", "--", "sh", "-c", loop, quiet=True).stdout.splitlines())


def asked(demo: Demo) -> None:
    """A policy about requests: the client is told no, and the node says what it saw."""
    demo.chapter(
        "Policy by request",
        "The Service's port is named http, so its requests are read, and a policy may say what somebody may ask for:",
    )
    before = demo.fetch("web", path="admin")
    demo.check("404 Not Found" in before, "before, orders itself says that it has no /admin")
    _apply(demo, "authorizationpolicy", "no-admin", "kube-requests.yaml")
    for path in ("admin", "x/../%61dmin/users"):
        demo.check("403 Forbidden" in demo.fetch("web", path=path), f"after, /{path} is refused with 403")
    demo.check(demo.voucher in demo.fetch("web"), "the orders are not")
    demo.tell("orders' node remembers them, and can say what would have helped:")

    def refused() -> list[dict[str, Any]]:
        return demo.node_items("node-b", "requests", "--code", "403", "--path", "/admin*")

    until(lambda: len(refused()) == 2)
    demo.nodectl("node-b", "requests", "--code", "403")
    why = demo.nodectl("node-b", "why", *[str(one["id"]) for one in refused()][:1]).stdout
    demo.check("shop/no-admin" in why, "it names the policy and the clause that matched")


def shared(demo: Demo) -> None:
    """A canary by the label of its pods."""
    demo.chapter("A canary", "Nine requests in ten are for v1 from now on, and one for v2, which is not there yet:")
    _apply(demo, "trafficpolicy", "orders", "kube-canary.yaml")
    demo.check(demo.voucher in demo.fetch("web"), "as long as there is no v2, v1 answers all")
    demo.tell("v2 is a pod like the first one, behind the same Service; what differs is its label `version`:")
    demo.start("kube-v2.yaml")
    demo.kubectl("-n", "shop", "wait", "--for=condition=Ready", "--timeout=60s", "pod/orders-v2")
    until(lambda: demo.fetches("web", version="v2"), 30)
    counts = _answers(demo, _REQUESTS)
    v1, v2 = counts[demo.voucher], counts[f"{demo.voucher} v2"]
    demo.evidence(f"of {_REQUESTS} requests, v1 answered {v1} and v2 {v2}")
    demo.check(v1 + v2 == _REQUESTS, "every one was answered")
    demo.check(0 < v2 < _REQUESTS / 4, "about one in ten by v2")  # more than six standard deviations


def limited(demo: Demo) -> None:
    """A limit of requests."""
    demo.chapter("A limit", "The same policy may say how much the Service bears:")
    _apply(demo, "trafficpolicy", "orders", "kube-limit.yaml")
    began = time.monotonic()
    counts = _answers(demo, 3 * _LIMIT)
    most = _LIMIT * (1 + (time.monotonic() - began) / 60) + 1
    served = counts[demo.voucher] + counts[f"{demo.voucher} v2"]
    refused = sum(n for line, n in counts.items() if "429 Too Many Requests" in line)
    demo.evidence(f"of {3 * _LIMIT} requests at once, {served} were answered and {refused} refused with 429")
    demo.check(served + refused == 3 * _LIMIT, "each was one or the other")
    demo.check(_LIMIT <= served <= most, f"{_LIMIT} at once, and then one every three seconds")


CLAIMS: tuple[Callable[[Demo], None], ...] = (asked, shared, limited)
