"""The controller's parts on plain hosts, put together: everything is in the state folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

import trio

from controller.ca import Authority
from controller.config import Config
from controller.enrol import Enroller
from controller.issuer_keys import IssuerKeys
from controller.limits import SharedLimits
from controller.link import ServerTls
from controller.publish import Publisher
from controller.resources import Resources
from controller.rotation import Rotation
from controller.session import NodeStatus
from controller.store import Store
from controller.translate import TrafficTranslator, World, world
from controller.trust import FolderCa


class PlainHome:
    """See the module. Raises `StoreError` or `CaError`; `close` it."""

    assigned = forward = None

    def __init__(
        self,
        config: Config,
        authority: Authority,
        *,
        clock: Callable[[], float],
        connected: Callable[[str], bool],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self.store = Store(config.state_dir)
        try:
            self.ca = FolderCa(config.state_dir)
            authority.open(config.state_dir, clock())
        except BaseException:
            self.store.close()
            raise
        self.register = Enroller(
            self.store,
            authority,
            ranges=config.mesh_ranges,
            service_ranges=config.service_range,
            workload_life=timedelta(hours=config.workload_certificate_hours),
            clock=clock,
            connected=connected,
            changed=changed,
        )
        self._traffic, self.keys = TrafficTranslator(), IssuerKeys(changed)
        self.resources = Resources(self.store, config.service_range, clock=clock, changed=changed)

    def world(self) -> World:
        """The world now."""
        return world(self.resources.all(), self.register.enrolled, self._traffic, self.keys)

    def ranges(self) -> tuple[str, ...]:
        """The mesh's ranges."""
        return tuple(self._config.mesh_ranges)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    async def run(
        self,
        publisher: Publisher,
        nodes: Callable[[], Mapping[str, NodeStatus]],
        rotation: Rotation,
        limits: SharedLimits,
        tls: ServerTls,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until cancelled: ready at once, and the only controller."""
        task_status.started()
        await limits.keep()
