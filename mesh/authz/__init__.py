"""May this peer connect to this workload? The only maker of `Permit`, without which `dial` cannot be called."""

from mesh.authz.authorizer import Authorizer
from mesh.authz.decider import Ask, Denial, Peer, Permit

__all__ = ["Ask", "Authorizer", "Denial", "Peer", "Permit"]
