"""`Workload` (nodemesh.dev/v1alpha1): something with an address that no node enrols, or not yet.

It makes the workload known by name, so that services can have it as an endpoint; it does not put it in the mesh.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from controller.schema.names import Address, Subdomain
from controller.schema.strict import Strict, wrong


class WorkloadSpec(Strict):
    """Something with an address that no node enrols, such as a virtual machine: known by name, and not in the mesh."""

    address: Address | None = None
    """IPv4 or IPv6. One of address and addresses is required."""
    addresses: list[Address] | None = Field(default=None, max_length=16)
    """IPv4 or IPv6; not beside address."""
    service_account: Subdomain | None = None
    """`default` where it is left out."""
    node: Subdomain | None = None
    """Where it runs, for display."""

    @model_validator(mode="after")
    def _one_way(self) -> WorkloadSpec:
        if self.address is not None and self.addresses is not None:
            raise wrong("both 'address' and 'addresses' are set", "keep 'addresses'")
        if not self.address and not self.addresses:
            raise wrong("a workload must have an address", "add 'address: 10.77.1.2'")
        return self
