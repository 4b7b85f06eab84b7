"""SPIFFE identities of workloads and nodes, and when a certificate is to be renewed.

Sources: the SPIFFE-ID specification (https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/) for syntax and lengths;
Istio's `ns/<namespace>/sa/<service account>` path convention for workloads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_URI = 2048
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,253}\Z")


class IdentityError(ValueError):
    """A string is not the SPIFFE id of a workload (or node) of this mesh; the message says why."""


def check_trust_domain(name: str) -> str:
    """Return `name` if it is a valid SPIFFE trust domain; raise `IdentityError` otherwise."""
    if not _TRUST_DOMAIN.match(name):
        raise IdentityError(f"trust domain {name!r} may hold only lower-case letters, digits, '.', '-' and '_'")
    return name


def _segment(what: str, value: str) -> str:
    if not _SEGMENT.match(value) or value in (".", ".."):
        raise IdentityError(f"{what} {value!r} may hold only letters, digits, '.', '-' and '_'")
    return value


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who a workload is: `spiffe://<trust_domain>/ns/<namespace>/sa/<service_account>`."""

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        _segment("namespace", self.namespace)
        _segment("service account", self.service_account)

    @property
    def principal(self) -> str:
        """The id without its scheme, as Istio's `principals` and metrics write it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def uri(self) -> str:
        """The full SPIFFE id, as a certificate's URI SAN holds it."""
        return "spiffe://" + self.principal

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Read a workload's SPIFFE id; raise `IdentityError` for anything else."""
        trust_domain, path = _split(uri)
        match path:
            case ["ns", namespace, "sa", service_account]:
                return cls(trust_domain, namespace, service_account)
        raise IdentityError(f"{uri!r} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")


def controller_identity(trust_domain: str) -> Identity:
    """Who the controller is. A node believes nobody else at its address."""
    return Identity(trust_domain, "nodemesh-system", "controller")


def node_uri(trust_domain: str, node: str) -> str:
    """The SPIFFE id of a node's own certificate, with which `noded` authenticates to the controller."""
    return f"spiffe://{check_trust_domain(trust_domain)}/node/{_segment('node', node)}"


def parse_node_uri(uri: str) -> tuple[str, str]:
    """Return (trust domain, node name); raise `IdentityError` if `uri` does not name a node."""
    trust_domain, path = _split(uri)
    match path:
        case ["node", node]:
            return trust_domain, _segment("node", node)
    raise IdentityError(f"{uri!r} is not of the form spiffe://<trust domain>/node/<name>")


def _split(uri: str) -> tuple[str, list[str]]:
    if len(uri) > _MAX_URI or not uri.startswith("spiffe://"):
        raise IdentityError(f"{uri[:80]!r} is not a SPIFFE id")
    trust_domain, *path = uri[len("spiffe://") :].split("/")
    return check_trust_domain(trust_domain), path


def renew_at(not_before: float, not_after: float, jitter: float) -> float:
    """When to renew a certificate: at half its life, moved back by up to a tenth of it.

    `jitter` in [0, 1) spreads the renewals of workloads that were enrolled together. Times are in seconds of one clock.
    """
    life = not_after - not_before
    return not_before + life * (0.5 - 0.1 * jitter)
