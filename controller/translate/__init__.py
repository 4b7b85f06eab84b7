"""Resources to what the mesh's nodes are told."""

from controller.translate.gateway import (
    CONTROLLER,
    ROUTES,
    Condition,
    Gateway,
    ParentStatus,
    is_ours,
    status_entries,
    status_entry,
)
from controller.translate.security import peer_auth, policy
from controller.translate.world import TrafficTranslator, World, world

__all__ = [
    "CONTROLLER",
    "ROUTES",
    "Condition",
    "Gateway",
    "ParentStatus",
    "TrafficTranslator",
    "World",
    "is_ours",
    "peer_auth",
    "policy",
    "status_entries",
    "status_entry",
    "world",
]
