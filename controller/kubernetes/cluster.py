"""All that is read of the cluster: the mirrors, and pods by node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import trio

from controller.kubernetes import objects
from controller.kubernetes.client import Client
from controller.kubernetes.mirror import Mirror
from controller.kubernetes.objects import Pod
from controller.kubernetes.policies import Declared, declared
from controller.kubernetes.routes import DeclaredRoute, declared_route
from controller.store import Resource
from controller.translate import ROUTES

OURS = "/apis/nodemesh.dev/v1alpha1"
PLURALS = {
    "Workload": "workloads",
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
    "RequestAuthentication": "requestauthentications",
    "TrafficPolicy": "trafficpolicies",
}
_ISTIO = tuple(f"/apis/security.istio.io/{version}" for version in ("v1", "v1beta1"))
_GATEWAY = tuple(f"/apis/gateway.networking.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha2"))
_SLICES = tuple(f"/apis/discovery.k8s.io/{version}/endpointslices" for version in ("v1", "v1beta1"))


class Cluster:
    """The mirrors. `changed` is called for each change that may concern the world, `pod_changed` for one of a pod."""

    def __init__(
        self,
        client: Client,
        *,
        changed: Callable[[], None],
        pod_changed: Callable[[str, Pod | None, Pod | None], None],
        namespaces_changed: Callable[[], None],
    ) -> None:
        self._changed, self._pod_changed, self._namespaces_changed = changed, pod_changed, namespaces_changed
        self._on_node: dict[str, dict[str, Pod]] = {}
        self.pods = Mirror(client, ["/api/v1/pods"], objects.pod, self._on_pod)
        self.services = Mirror(client, ["/api/v1/services"], objects.service, self._on_change)
        self.slices = Mirror(client, _SLICES, objects.endpoint_slice, self._on_change)
        self.namespaces = Mirror(client, ["/api/v1/namespaces"], objects.namespace, self._on_namespace)
        self.nodes = Mirror(client, ["/api/v1/nodes"], objects.node, self._on_change)
        self.declared: dict[str, Mirror[Declared]] = {
            kind: Mirror(client, [f"{OURS}/{plural}"], declared(kind), self._on_declared, optional=True)
            for kind, plural in PLURALS.items()
        }
        self._istio = [
            Mirror(
                client, [f"{base}/{PLURALS[kind]}" for base in _ISTIO], declared(kind), self._on_change, optional=True
            )
            for kind in ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication")
        ]
        self.routes: dict[str, Mirror[DeclaredRoute]] = {
            kind: Mirror(client, _paths(f"{kind.lower()}s"), declared_route(kind), self._on_route, optional=True)
            for kind in ROUTES
        }
        """Gateway API's, whose CRDs are the user's: there or not."""
        self._grants = Mirror(
            client, _paths("referencegrants"), declared("ReferenceGrant"), self._on_change, optional=True
        )
        self.routes_changed = trio.Event()
        """Set, and made anew, at each change of a route."""
        self.declared_changed = trio.Event()
        """Set, and made anew, at each change of one of our resources."""

    @property
    def mirrors(self) -> list[Mirror[Any]]:
        """All of them."""
        core: list[Mirror[Any]] = [self.pods, self.services, self.slices, self.namespaces, self.nodes]
        return [*core, *self.declared.values(), *self._istio, *self.routes.values(), self._grants]

    async def synced(self) -> None:
        """Wait until everything has been read once."""
        for mirror in self.mirrors:
            await mirror.synced.wait()

    def resources(self) -> Iterator[Resource]:
        """Our kinds' resources, Istio's and Gateway API's; unreadable ones as what stands for them."""
        mirrors: list[Mirror[Any]] = [*self.declared.values(), *self._istio, *self.routes.values(), self._grants]
        for mirror in mirrors:
            for entry in mirror.objects.values():
                if entry.resource is not None:
                    yield entry.resource

    def on_node(self, node: str) -> Mapping[str, Pod]:
        """The pods of a node, by key."""
        return self._on_node.get(node, {})

    def _on_pod(self, key: str, old: Pod | None, new: Pod | None) -> None:
        if old is not None and (new is None or new.node != old.node):
            here = self._on_node[old.node]
            here.pop(key, None)
            if not here:  # whoever may create pods may name any node
                del self._on_node[old.node]
        if new is not None:
            self._on_node.setdefault(new.node, {})[key] = new
        self._pod_changed(key, old, new)
        self._changed()

    def _on_namespace(self, *_: object) -> None:
        self._namespaces_changed()

    def look_again(self) -> None:
        """What the conditions of our resources should be may have changed."""
        self.declared_changed.set()
        self.declared_changed = trio.Event()

    def _on_declared(self, _key: str, old: Declared | None, new: Declared | None) -> None:
        self.look_again()
        if old is None or new is None or (old.resource, old.problem) != (new.resource, new.problem):
            self._changed()

    def _on_route(self, _key: str, old: DeclaredRoute | None, new: DeclaredRoute | None) -> None:
        self.routes_changed.set()
        self.routes_changed = trio.Event()
        if (old and old.resource) != (new and new.resource):
            self._changed()

    def _on_change(self, *_: object) -> None:
        self._changed()


def _paths(plural: str) -> list[str]:
    return [f"{base}/{plural}" for base in _GATEWAY]
