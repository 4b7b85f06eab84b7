"""The composition root: builds every object of the controller and owns its nurseries."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version

import trio

from controller.api import Api
from controller.ca import Authority
from controller.config import Config
from controller.enrol import Enroller
from controller.http import serve
from controller.link import LinkServer, ServerTls
from controller.listeners import tcp_listener, unix_listener
from controller.metrics import Metrics
from controller.publish import Publisher
from controller.resources import Resources
from controller.session import Parts
from controller.store import Store
from controller.telemetry import Telemetry
from controller.translate import world
from mesh.model import MeshConfig

_log = logging.getLogger(__name__)
SOFTWARE = f"nodemesh/{version('nodemesh')}"


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports in use, also where the configuration left the choice to the kernel."""

    link: int
    monitoring: int


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
        self.resources = Resources(
            self.store, config.service_range, clock=self.clock, changed=lambda: self.publisher.touch()
        )
        self.publisher = Publisher(lambda: world(self.resources.all(), self.enroller.enrolled), mesh_config)
        self.telemetry = Telemetry(self.clock)
        parts = Parts(
            self.enroller, self.publisher, self.telemetry, lambda: self.authority.bundle, self.clock, SOFTWARE
        )
        self.link = LinkServer(parts, ServerTls(self.authority, config.advertise, self.clock))
        self.api = Api(
            self.store,
            self.authority,
            self.enroller,
            self.resources,
            self.publisher,
            self.link,
            self.telemetry,
            Metrics(self.authority, self.enroller, self.publisher, self.link, self.telemetry),
            self.clock,
            config.workload_certificate_hours,
        )

    def close(self) -> None:
        """Release what it holds."""
        self.store.close()

    async def run(self, *, task_status: trio.TaskStatus[Ports] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT; reports the TCP ports once everything listens.

        Raises `ListenError` if an address cannot be had.
        """
        path = self.config.run_dir / "controller.sock"
        with ExitStack() as stack:
            link = stack.enter_context(tcp_listener(self.config.listen, "listen"))
            monitoring = stack.enter_context(tcp_listener(self.config.monitoring_address, "monitoringAddress"))
            path.parent.mkdir(parents=True, exist_ok=True)
            local = stack.enter_context(unix_listener(path))
            stack.callback(path.unlink, missing_ok=True)
            ports = Ports(link.getsockname()[1], monitoring.getsockname()[1])
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.publisher.run)
                    nursery.start_soon(self.link.serve, link)
                    await nursery.start(serve, self.api.monitoring(), monitoring)
                    await nursery.start(serve, self.api.application(), local)
                    _log.info(
                        "serving", extra={"listen": str(self.config.listen), "socket": str(path), "pid": os.getpid()}
                    )
                    task_status.started(ports)
                    async for signum in signals:
                        _log.info("stopping", extra={"signal": signal.Signals(signum).name})
                        break
                    nursery.cancel_scope.cancel()
