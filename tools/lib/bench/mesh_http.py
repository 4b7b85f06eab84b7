"""What `tools/bench l7` asks of proxies, as resources of the mesh: a Service, its routes, and policies."""

from __future__ import annotations

from typing import Any

from bench import work
from bench.work import PROTOCOLS

Resource = dict[str, Any]
NAMESPACE = "bench"
SERVICE = "server"


def service(selector: dict[str, str]) -> Resource:
    """The service, for a testbed's file."""
    ports = [
        {"name": f"p{p.port}", "port": p.port, "targetPort": p.target_port, "appProtocol": p.app_protocol}
        for p in PROTOCOLS
    ]
    return {"name": SERVICE, "namespace": NAMESPACE, "clusterIP": work.VIP, "selector": selector, "ports": ports}


def route(name: str, prefixes: tuple[str, ...], *, canary: bool = False) -> Resource:
    """A route for each port of the service with a rule for each prefix, after one for the canary's header."""
    rules = [{"path": {"type": "PathPrefix", "value": prefix}} for prefix in prefixes]
    header, value = work.CANARY
    matches = [{"headers": [{"name": header, "value": value}]}, *rules] if canary else rules
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": SERVICE, "port": PROTOCOLS[0].port}],
            "rules": [
                {"matches": [match], "backendRefs": [{"name": SERVICE, "port": PROTOCOLS[0].port}]} for match in matches
            ],
        },
    }


def routes() -> list[Resource]:
    """A few rules for each protocol's port."""
    made = []
    for protocol in PROTOCOLS:
        resource = route(f"port-{protocol.port}", (*work.OTHER_ROUTES, work.ROUTE), canary=True)
        resource["spec"]["parentRefs"][0]["port"] = protocol.port
        for rule in resource["spec"]["rules"]:
            rule["backendRefs"][0]["port"] = protocol.port
        made.append(resource)
    return made


def policies(selector: dict[str, str], identity: str, number: int = work.POLICIES) -> list[Resource]:
    """AuthorizationPolicies for the server's pods, of which only the last permits the load."""
    return [
        {
            "apiVersion": "nodemesh.dev/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": work.policy_name(at), "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": selector},
                "action": "ALLOW",
                "rules": [
                    {
                        "from": [{"source": {"principals": [identity]}}],
                        "to": [
                            {
                                "operation": {
                                    "methods": list(work.METHODS),
                                    "paths": [f"{prefix}*" for prefix in work.policy_paths(at, number)],
                                }
                            }
                        ],
                    }
                ],
            },
        }
        for at in range(number)
    ]
