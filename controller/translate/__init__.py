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
from controller.translate.tokens import KeySource, NoKeys, PublishedKeys, key_problems, request_auths
from controller.translate.world import TrafficTranslator, World, world

__all__ = [
    "CONTROLLER",
    "ROUTES",
    "Condition",
    "Gateway",
    "KeySource",
    "NoKeys",
    "ParentStatus",
    "PublishedKeys",
    "TrafficTranslator",
    "World",
    "is_ours",
    "key_problems",
    "peer_auth",
    "policy",
    "request_auths",
    "status_entries",
    "status_entry",
    "world",
]
