"""The composition root of the control process: builds every object, owns every nursery, starts and stops in order."""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from noded.config import Config
from noded.control import admin
from noded.control.capture import Namespaces
from noded.control.certs import Certificates
from noded.control.enrolment import Enrolments
from noded.control.failure import CannotRun
from noded.control.files import private_directory
from noded.control.keystore import KeyStore
from noded.control.kubernetes import Kubernetes
from noded.control.process import COMMAND
from noded.control.records import Records
from noded.control.spans import Exporter
from noded.control.state import State
from noded.control.supervise import Workers
from noded.control.syncer import Syncer
from noded.control.telemetry import Telemetry
from noded.control.view import Parts

_log = logging.getLogger(__name__)
_START_SECONDS = 30.0


async def run(config: Config, *, namespaces: Namespaces | None = None, command: Sequence[str] = COMMAND) -> None:
    """Be the daemon until SIGTERM, SIGINT or `POST /drain`; raise `CannotRun` (in a group) if it can't be it here.

    Two nurseries: what serves (admin API, workers, controller) goes on while the inner one, which takes up and watches
    workloads, is ended and the workers drain.
    """
    private_directory(config.run_dir)
    with only_one(config.run_dir):
        _raise_descriptor_limit()
        stop = _Stop(config.drain_seconds)
        namespaces = namespaces or Namespaces()
        await namespaces.check()
        parts, pods = _build(config, namespaces, command, stop)
        recalled = trio.Event()
        async with trio.open_nursery() as serving:
            _serve(serving, parts, recalled)
            async with trio.open_nursery() as taking:
                taking.start_soon(stop.on_signal)
                taking.start_soon(_take_up, parts, pods, recalled)
                await stop.requested.wait()
                taking.cancel_scope.cancel()
            await _drain(parts, stop.seconds)
            serving.cancel_scope.cancel()
    _log.info("stopped")


class _Stop:
    """When and how fast to stop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.requested = trio.Event()

    def request(self, seconds: float) -> None:
        self.seconds = seconds
        self.requested.set()

    async def on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self.requested.set()


def _build(
    config: Config, namespaces: Namespaces, command: Sequence[str], stop: _Stop
) -> tuple[Parts, Kubernetes | None]:
    version = _version()
    store = KeyStore(config.key_dir)
    state = State(config.state_dir)
    telemetry = Telemetry()
    workers = Workers(config, telemetry.add, telemetry.worker_ended, command)
    exporter = Exporter(config.tracing_endpoint, config.node, telemetry) if config.tracing_endpoint else None
    if exporter is not None:
        workers.on_spans = exporter.add
    if state.snapshot.ready:
        workers.start_with(state.snapshot)

    # Certificates are asked for over the connection that is made with them, and a connection begins with the list of
    # workloads that need it: three objects that know each other, tied together here.
    syncer = Syncer(config, f"noded/{version}", store, state, workers, telemetry)
    certs = Certificates(store, syncer.sign, workers.certificate)
    records = Records(config.run_dir / "enrolments")
    enrolments = Enrolments(config.node, config.drain_seconds, records, namespaces, workers, certs, syncer)
    certs.adopt_node(config.node)
    pods = Kubernetes(config, enrolments, namespaces, lambda: syncer.status.connected) if config.kubernetes else None
    syncer.tie(certs, enrolments.workloads, enrolments.welcomed, pods.assignments.assigned if pods else None)
    parts = Parts(
        config, version, time.time(), state, workers, certs, syncer, enrolments, telemetry, exporter, stop.request
    )
    return parts, pods


def _serve(nursery: trio.Nursery, parts: Parts, recalled: trio.Event) -> None:
    config = parts.config
    nursery.start_soon(parts.state.run)
    nursery.start_soon(parts.workers.run)
    nursery.start_soon(parts.certs.run)
    if parts.exporter is not None:
        nursery.start_soon(parts.exporter.run)
    nursery.start_soon(_sync, parts, recalled)
    nursery.start_soon(admin.serve_unix, admin.application(parts), config.run_dir / "noded.sock")
    if config.metrics_address is not None:
        nursery.start_soon(admin.serve_tcp, admin.metrics_application(parts), config.metrics_address)
    if config.ready_address is not None:
        nursery.start_soon(admin.serve_tcp, admin.ready_application(parts), config.ready_address)


async def _sync(parts: Parts, recalled: trio.Event) -> None:
    """Workloads of an earlier run first: `Hello` lists them, and the controller forgets those that it doesn't."""
    await recalled.wait()
    await parts.syncer.run()


async def _take_up(parts: Parts, pods: Kubernetes | None, recalled: trio.Event) -> None:
    await parts.enrolments.recall()
    recalled.set()
    if not await parts.workers.until_up(_START_SECONDS):
        _log.error("workers do not start; going on, they are tried again")
    await parts.enrolments.resume()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.enrolments.watch)
        if pods is not None:
            nursery.start_soon(pods.run)


async def _drain(parts: Parts, seconds: float) -> None:
    _log.info("draining", extra={"seconds": seconds})
    await parts.workers.drain(seconds)
    await parts.syncer.flush()
    if parts.config.undo_on_stop:
        await parts.enrolments.undo_all()


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Two daemons in one `runDir` would take each other's workloads."""
    fd = os.open(run_dir / "noded.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CannotRun(f"another noded runs with runDir {run_dir}", "stop it, or choose another runDir") from None
    try:
        yield
    finally:
        os.close(fd)


def _raise_descriptor_limit() -> None:
    """A workload takes four descriptors and three more a worker; the usual soft limit of 1,024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _version() -> str:
    try:
        return importlib.metadata.version("nodemesh")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
