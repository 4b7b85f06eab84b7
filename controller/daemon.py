"""The composition root: builds every object of the controller and owns its nurseries."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version

import trio

from controller.api import Api
from controller.ca import Authority
from controller.config import Config, mesh_config
from controller.http import serve
from controller.kubernetes.home import ClusterHome
from controller.limits import SharedLimits
from controller.link import LinkServer, ServerTls
from controller.listeners import tcp_listener, unix_listener
from controller.metrics import Metrics
from controller.plain import PlainHome
from controller.publish import Publisher
from controller.rotation import Rotation
from controller.session import Parts
from controller.telemetry import Telemetry

_log = logging.getLogger(__name__)
_KEYS_SECONDS = 5.0
"""How long nodes wait for the keys of tokens' issuers; they go on with what they have meanwhile."""
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
        self.ready = False
        """Whether nodes are served."""
        self.authority = Authority(config.trust_domain)
        mesh = mesh_config(config)
        self.home: PlainHome | ClusterHome
        if config.store == "kubernetes":
            self.home = ClusterHome(
                config,
                self.authority,
                clock=self.clock,
                changed=lambda: self.publisher.touch(),
                root_namespace=mesh.root_namespace,
            )
        else:
            self.home = PlainHome(
                config,
                self.authority,
                clock=self.clock,
                connected=lambda node: self.link.connected(node),
                changed=lambda: self.publisher.touch(),
            )
        self.publisher = Publisher(self.home.world, mesh, self.home.ranges)
        self.telemetry = Telemetry(self.clock)
        register = self.home.register
        self.limits = SharedLimits(lambda: self.publisher.world, self.home.forward)
        parts = Parts(
            register,
            self.publisher,
            self.telemetry,
            lambda: self.authority.bundle,
            self.clock,
            SOFTWARE,
            lambda: self.authority.signer,
            self.limits,
            self.home.assigned,
        )
        self.tls = ServerTls(self.authority, config.advertise, self.clock)
        self.link = LinkServer(parts, self.tls)
        self.rotation = Rotation(
            self.home.ca,
            self.authority,
            register,
            lambda: self.link.statuses,
            where=self.home.ca.where,
            longest=max(register.node_life.total_seconds(), config.workload_certificate_hours * 3600),
            clock=self.clock,
            changed=self.publisher.touch,
        )
        self.api = Api(
            self.home.store,
            self.authority,
            register,
            self.home.resources,
            self.publisher,
            self.link,
            self.telemetry,
            Metrics(self.authority, register, self.publisher, self.link, self.telemetry),
            self.clock,
            config.workload_certificate_hours,
            lambda: self.ready,
            self.rotation,
        )

    def close(self) -> None:
        """Release what it holds."""
        self.home.close()

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
                    nursery.start_soon(self.home.keys.run)
                    await nursery.start(serve, self.api.monitoring(), monitoring)
                    nursery.start_soon(self._serve, link, local, lambda: task_status.started(ports))
                    async for signum in signals:
                        _log.info("stopping", extra={"signal": signal.Signals(signum).name})
                        break
                    nursery.cancel_scope.cancel()

    async def _serve(self, link: socket.socket, local: socket.socket, started: Callable[[], None]) -> None:
        """Serve nodes and meshctl once there is something to serve them."""
        async with trio.open_nursery() as nursery:
            await nursery.start(
                self.home.run, self.publisher, lambda: self.link.statuses, self.rotation, self.limits, self.tls
            )
            # A node that came from another controller would lose the keys that it has.
            await self.home.keys.tried(_KEYS_SECONDS)
            await self.publisher.settled()
            nursery.start_soon(self.link.serve, link)
            await nursery.start(serve, self.api.application(), local)
            self.ready = True
            _log.info("serving", extra={"listen": str(self.config.listen), "pid": os.getpid()})
            started()
