"""Resources to what the mesh's nodes are told."""

from controller.translate.gateway import CONTROLLER, Condition, Gateway, ParentStatus
from controller.translate.security import peer_auth, policy
from controller.translate.world import TrafficTranslator, World, world

__all__ = [
    "CONTROLLER",
    "Condition",
    "Gateway",
    "ParentStatus",
    "TrafficTranslator",
    "World",
    "peer_auth",
    "policy",
    "world",
]
