"""What `noded` does besides on a Kubernetes node: pods as assigned, and the CNI plug-in's requests and chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from noded.config import Config
from noded.control.assignments import Assignments, Markers
from noded.control.capture import Namespaces
from noded.control.cni import CniRequest, CniServer, keep_installed
from noded.control.enrolment import Enrolments
from redirect.cni.install import Installer


class Kubernetes:
    """The part of the daemon that knows of pods."""

    def __init__(
        self,
        config: Config,
        enrolments: Enrolments,
        namespaces: Namespaces,
        connected: Callable[[], bool],
        proc: Path = Path("/proc"),
    ) -> None:
        self._installer, self._namespaces = installer(config), namespaces
        namespaces.let_probes()
        self.assignments = Assignments(enrolments, namespaces, Markers(self._installer.namespaces), connected, proc)
        self._server = CniServer(exchange(config), self._admit, self._gone)

    async def run(self) -> None:
        """For ever. Enrolments of an earlier run must be back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.assignments.run)
            nursery.start_soon(self._server.run)
            nursery.start_soon(keep_installed, self._installer)
            nursery.start_soon(self._namespaces.watch_probes)

    async def _admit(self, request: CniRequest) -> None:
        await self.assignments.admit(request.uid, request.pod, request.netns, request.addresses)

    async def _gone(self, request: CniRequest) -> None:
        await self.assignments.gone(request.uid, request.netns)


def exchange(config: Config) -> Path:
    """The folder in which daemon and CNI plug-in meet."""
    return config.run_dir / "cni"


def installer(config: Config) -> Installer:
    """Of the CNI plug-in, for this configuration."""
    return Installer(
        config.kubernetes_cni_bin_dir,
        config.kubernetes_cni_conf_dir,
        config.kubernetes_cni_state_dir,
        exchange(config),
    )
