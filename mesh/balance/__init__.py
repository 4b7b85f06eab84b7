"""Which of a service's endpoints takes a request: O(1) a choice, whatever their number."""

from mesh.balance.host import Host
from mesh.balance.hosts import Hosts
from mesh.balance.versions import VersionedHosts

__all__ = ["Host", "Hosts", "VersionedHosts"]
