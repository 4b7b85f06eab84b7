"""What an analysis finds: a code that never changes its meaning, where, what is wrong, and what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

Path = tuple[str | int, ...]


class Severity(enum.Enum):
    """How bad; an analysis with an ERROR fails."""

    ERROR = "error"
    """It does not do what it says."""
    WARNING = "warning"
    """It is likely not meant."""
    INFO = "info"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A resource."""

    kind: str
    namespace: str
    """`""` for what is in none."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with `object`, at the field `path`."""

    code: str
    object: Ref
    path: Path
    message: str
    remedy: str

    @property
    def severity(self) -> Severity:
        """That of its code."""
        return CODES[self.code][0]

    @property
    def documentation(self) -> str:
        """Where the code is explained, in the project's repository."""
        return f"docs/reference/analyze.md#{self.code.lower()}"


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

CODES: dict[str, tuple[Severity, str]] = {
    "NM0001": (_E, "not a valid resource"),
    "NM0101": (_W, "the policy's selector matches no workload"),
    "NM0102": (_E, "clauses contradict each other"),
    "NM0103": (_W, "no such namespace"),
    "NM0104": (_E, "principal of another trust domain"),
    "NM0105": (_E, "ALLOW rule that needs HTTP, at TCP ports"),
    "NM0106": (_W, "ALLOW without rules denies everything"),
    "NM0107": (_W, "DENY rule that needs HTTP, at TCP ports"),
    "NM0108": (_W, "no such service account"),
    "NM0109": (_W, "a service's port where a target port is meant"),
    "NM0110": (_E, "CUSTOM with a provider that is not there"),
    "NM0111": (_E, "a provider that is an absent service"),
    "NM0201": (_W, "the PeerAuthentication's selector matches no workload"),
    "NM0202": (_E, "port modes without a selector"),
    "NM0203": (_W, "STRICT, but used from outside the mesh"),
    "NM0204": (_W, "two PeerAuthentications for the same workloads"),
    "NM0205": (_E, "a selector in the root namespace"),
    "NM0206": (_I, "DISABLE is taken as PERMISSIVE"),
    "NM0301": (_W, "the service selects nothing"),
    "NM0302": (_W, "nobody listens on the target port"),
    "NM0303": (_E, "no such named port"),
    "NM0304": (_W, "services disagree whether a port is HTTP"),
    "NM0401": (_E, "mode is neither enabled nor disabled"),
    "NM0402": (_W, "opted in, but never in the mesh"),
    "NM0501": (_E, "route to an absent backend"),
    "NM0502": (_E, "backend of another namespace without a grant"),
    "NM0503": (_E, "backend that is no Service"),
    "NM0504": (_E, "weights that sum to 0"),
    "NM0505": (_W, "rule without backends"),
    "NM0506": (_E, "route for an absent service or port"),
    "NM0507": (_E, "layer-7 route on a TCP port"),
    "NM0508": (_W, "rule that never takes a request"),
    "NM0509": (_W, "HTTPRoute beside a GRPCRoute"),
    "NM0601": (_E, "traffic policy for an absent service"),
    "NM0602": (_W, "an older traffic policy holds"),
    "NM0603": (_W, "settings for requests on TCP ports"),
    "NM0604": (_W, "no workload of that version"),
    "NM0701": (_W, "the RequestAuthentication's selector matches no workload"),
    "NM0702": (_E, "no key to check tokens with"),
    "NM0703": (_W, "an issuer's keys could not be fetched"),
}
"""Severity and title of every code. A code is never given another meaning, nor a retired one used again."""
