"""What `tools/bench l7` asks of every proxy: the same protocols, routes and policies, in nobody's own words yet."""

from __future__ import annotations

from dataclasses import dataclass

VIP = "10.96.100.1"
"""The service's address, which only a proxy knows what to do with."""
CANARY = ("x-canary", "always")
"""A header that none of the load's requests has."""
OTHER_ROUTES = ("/basket", "/checkout", "/search")
"""Prefixes of routes that come before the load's, and that none of its requests has."""
ROUTE = "/bench"
POLICIES = 100
METHODS = ("GET", "POST")


@dataclass(frozen=True)
class Protocol:
    """One kind of load: which port of the service it goes to, and where in the server's pod that is served."""

    name: str
    """As `--json` has it."""
    port: int
    target_port: int
    app_protocol: str
    path: str
    http2: bool

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the load's requests may call the service; wrk names port 80, too."""
        return (f"{VIP}:{self.port}", *((VIP,) if self.port == 80 else ()))


HTTP1 = Protocol("http/1.1", 80, 8080, "http", "/bench/item", False)
HTTP2 = Protocol("http/2", 81, 8081, "kubernetes.io/h2c", "/bench/item", True)
GRPC = Protocol("grpc", 82, 8082, "grpc", "/bench/Get.grpc", True)
PROTOCOLS = (HTTP1, HTTP2, GRPC)


def policy_name(number: int) -> str:
    """Names in the order in which proxies look at them."""
    return f"policy-{number:05}"


def policy_paths(number: int, of: int = POLICIES) -> tuple[str, ...]:
    """Prefixes that a policy permits, each ending with `/`: only the last of them all permits the load's requests."""
    return (f"/service-{number:05}/", f"/v2/service-{number:05}/") if number < of - 1 else (f"{ROUTE}/",)
