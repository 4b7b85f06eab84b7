"""The composition root: builds every object of the controller and owns its nurseries."""

from __future__ import annotations

import logging
import os
import signal
import time
from datetime import timedelta

import trio

from controller.ca import Authority
from controller.config import Config
from controller.enrol import Enroller
from controller.link import LinkServer, ServerTls
from controller.publish import Publisher
from controller.session import Parts
from controller.store import Store
from controller.telemetry import Telemetry
from controller.translate import world
from mesh.model import MeshConfig

_log = logging.getLogger(__name__)
SOFTWARE = "nodemesh/0.1.0"


class Daemon:
    """The controller, built and not yet running. `run` once; `close` afterwards."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = time.time
        self.started = self.clock()
        self.store = Store(config.state_dir)
        self.authority = Authority.open(config.state_dir, config.trust_domain, self.clock())
        mesh_config = MeshConfig(config.trust_domain, config.cluster, ranges=tuple(config.mesh_ranges))
        self.enroller = Enroller(
            self.store,
            self.authority,
            ranges=config.mesh_ranges,
            service_ranges=config.service_range,
            workload_life=timedelta(hours=config.workload_certificate_hours),
            clock=self.clock,
            connected=lambda node: self.link.connected(node),
            changed=lambda: self.publisher.touch(),
        )
        self.publisher = Publisher(lambda: world(self.store.resources(), self.enroller.enrolled), mesh_config)
        self.telemetry = Telemetry(self.clock)
        parts = Parts(
            self.enroller, self.publisher, self.telemetry, lambda: self.authority.bundle, self.clock, SOFTWARE
        )
        self.link = LinkServer(parts, ServerTls(self.authority, config.advertise, self.clock))

    def close(self) -> None:
        """Release what it holds."""
        self.store.close()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT; reports the port that nodes connect to once it listens."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.publisher.run)
                listeners = await nursery.start(self.link.serve, self.config.listen)
                _log.info("listening", extra={"listen": str(self.config.listen), "pid": os.getpid()})
                task_status.started(listeners[0].socket.getsockname()[1])
                async for signum in signals:
                    _log.info("stopping", extra={"signal": signal.Signals(signum).name})
                    break
                nursery.cancel_scope.cancel()
