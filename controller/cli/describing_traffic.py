"""`meshctl describe` of routes, grants and traffic policies."""

from __future__ import annotations

from typing import Any

from controller.cli import columns
from controller.cli.client import Client
from mesh.present.table import Column, Row, dig


def parent_rows(resource: Row) -> list[Row]:
    """A route's Services, with what became of it there."""
    rows: list[Row] = []
    for entry in dig(resource, "status.parents") or []:
        said = {c["type"]: c for c in entry["conditions"]}
        against = [c["message"] for c in entry["conditions"] if c["status"] != "True"]
        rows.append(
            {
                "parent": columns.parent(resource, entry["parentRef"]),
                "accepted": _word(said.get("Accepted")),
                "resolved": _word(said.get("ResolvedRefs")),
                "why": "; ".join(against),
            }
        )
    return rows


def _word(condition: Any) -> str:
    if condition is None:
        return "-"
    return "yes" if condition["status"] == "True" else f"no ({condition['reason']})"


PARENTS = (
    Column("SERVICE", "parent"),
    Column("ACCEPTED", "accepted"),
    Column("RESOLVED", "resolved"),
    Column("WHY", "why"),
)


def policy_holds(client: Client, resource: Row) -> tuple[str, list[Row]]:
    """Whether a traffic policy is the one that counts for its service, and how it then splits it by version."""
    namespace, name = dig(resource, "metadata.namespace"), dig(resource, "metadata.name")
    target = dig(resource, "spec.targetRef.name")
    for service in client.get("/v1/services")["items"]:
        if (service.get("namespace"), service.get("name")) == (namespace, target):
            holding = service.get("traffic_policy")
            if holding == f"{namespace}/{name}":
                return f"service {namespace}/{target}", service.get("versions") or []
            return f"nothing: {holding} is for service {namespace}/{target}, too, and older", []
    return f"nothing: there is no service {namespace}/{target}", []


VERSIONS = (
    Column("VERSION", "version"),
    Column("WEIGHT", "weight", right=True),
    Column("SHARE", lambda row: f"{row['share'] * 100:.3g}%", right=True),
    Column("ENDPOINTS", "endpoints", right=True),
)
