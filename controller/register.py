"""What a register of nodes and workloads offers to the node link and the API, wherever it is kept.

`controller.enrol` keeps one in the store and lets nodes in by join tokens; `controller.kubernetes.register` keeps one
in the cluster's pods and lets nodes in by their pod's token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Protocol

from controller.ca import Issued
from controller.enrol import Enrolled
from controller.store import Node
from controller.tokens import Scope
from mesh.model import Enrolment


class Register(Protocol):
    """Who may be in the mesh. All but `admit` and `kept` answer at once; those that check raise `Refusal`."""

    node_life: timedelta
    """Of a node's certificate."""

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Nodes by name."""

    @property
    def enrolled(self) -> Mapping[str, Enrolled]:
        """Workloads that are in the mesh, by uid."""

    async def admit(self, token: str, name: str, csr: bytes) -> Issued:
        """Let a node in: its certificate."""

    def authenticate(self, node: str, serial: str) -> None:
        """Check that a node's verified certificate is one it may use."""

    def certificate_expires(self, node: str) -> float | None:
        """When a node's newest credential ends, Unix seconds, if that is known."""

    def uids(self, node: str) -> Collection[str]:
        """The workloads of a node."""

    def scope(self, node: str) -> Scope:
        """Whose edges a node may report."""

    def replace(self, node: str, workloads: Iterable[Enrolment]) -> dict[str, str]:
        """Take a node's full list: others that it had are forgotten. Why some were refused, by uid."""

    def enrol(self, node: str, raw: Enrolment) -> None:
        """Take one workload, new or changed."""

    async def kept(self, node: str, uid: str) -> None:
        """Wait until a workload that was just taken would be known to whoever takes over; no longer than 8 s."""

    def withdraw(self, node: str, uid: str) -> None:
        """A workload has left; one that the node doesn't have is not an error."""

    def sign(self, node: str, uid: str, csr: bytes) -> Issued:
        """A certificate for an enrolled workload of this node, or with uid `""` for the node."""

    def forget(self, node: str) -> bool:
        """Remove a node; False if there is none, or it is not ours to remove."""
