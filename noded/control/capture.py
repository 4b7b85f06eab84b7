"""What enrolment needs of network namespaces and of `redirect`, as one object that a test can replace.

`redirect.capture` is imported only after `check` has found that python-iptables loads on this host at all.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import trio

from mesh.model import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT
from noded.control.failure import CannotRun, Conflict, Failure, Invalid
from noded.control.records import NamespaceId
from redirect import environment, thread
from redirect.netns import NamespaceError, addresses, inside, listener, open_netns

if TYPE_CHECKING:
    from redirect.capture import Capture
    from redirect.host import Probes

_log = logging.getLogger(__name__)
_WATCH_PROBES_SECONDS = 30.0

PORTS = (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT)
"""In the order that `link.WorkloadUp` wants."""
_SO_NETNS_COOKIE = 71
_T = TypeVar("_T")


class CaptureFailed(Failure):
    """The rules of a workload could not be written, read or removed."""

    status = 500


class Namespaces:
    """Network namespaces by descriptor. Rules are worked on by a thread of `redirect`; the rest takes microseconds."""

    _probes: Probes | None = None
    _probed: Mapping[int, tuple[str, ...]] = {}

    async def check(self) -> None:
        """Raise `CannotRun` if this host can't capture."""
        try:
            await thread.run(environment.check)
        except environment.UnfitHostError as error:
            raise CannotRun(f"this host can't capture: {error}", "make that so, then start noded again") from error

    def open(self, path: str) -> int:
        """A descriptor, which the caller closes. Raises `Invalid`, also for the namespace that this process is in."""
        try:
            fd = open_netns(path)
        except NamespaceError as error:
            raise Invalid(str(error), "give the path of the workload's network namespace") from error
        own, there = os.stat("/proc/self/ns/net"), os.fstat(fd)
        if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino):
            os.close(fd)
            raise Invalid(
                f"{path} is the namespace that noded itself runs in, whose traffic can't be captured",
                "give the namespace of one workload",
            )
        return fd

    def identify(self, fd: int) -> NamespaceId:
        """Which namespace it is."""
        there, cookie = os.fstat(fd), 0
        with inside(fd), socket.socket(socket.AF_UNIX) as sock:
            try:
                (cookie,) = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
            except OSError:  # before Linux 5.14
                pass
        return NamespaceId(there.st_dev, there.st_ino, cookie)

    def vanished(self, path: str, known: NamespaceId) -> bool:
        """Whether `path` no longer leads to that namespace. Our own descriptors keep a dead one in existence."""
        try:
            there = os.stat(path)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (known.device, known.inode)

    def addresses(self, fd: int) -> tuple[str, ...]:
        """Its addresses of global scope, IPv4 first."""
        try:
            return addresses(fd)
        except (NamespaceError, OSError) as error:
            raise CaptureFailed(
                f"addresses of the namespace can't be read: {error}", "name them in the request"
            ) from error

    def listeners(self, fd: int, workers: int) -> list[list[socket.socket]]:
        """For each worker, listeners on `PORTS`. The caller closes them."""
        made: list[list[socket.socket]] = []
        try:
            for _ in range(workers):
                made.append([])
                for port in PORTS:
                    made[-1].append(listener(fd, port))
        except (NamespaceError, OSError) as error:
            for sock in (sock for row in made for sock in row):
                sock.close()
            raise Conflict(
                f"no listener on port {port} in the workload's namespace: {error}",
                f"find what listens there (`ss -ltnp` inside); ports {', '.join(map(str, PORTS))} are the proxy's",
            ) from error
        return made

    async def raise_loopback(self, fd: int) -> None:
        """Bring up `lo`, which captured connections go over."""
        await thread.run(_raise_loopback, fd)

    def new_mark(self) -> int:
        """A random mark for the proxy's own sockets in one namespace."""
        from redirect.capture import new_mark

        return new_mark()

    # Probes of the host, on Kubernetes. The rules of a workload by its mark.

    def let_probes(self) -> None:
        """From now on, let the host's own probes into workloads (`redirect.host`)."""
        from redirect.host import Probes

        self._probes, self._probed = Probes(), {}

    async def admit_probes(self, fd: int, mark: int, addresses: tuple[str, ...]) -> None:
        """Let them into this one, if that can be done without letting others in; else they are captured."""
        if self._probes is None:
            return
        probed = self._probed.get(mark, ())
        try:
            probed = await thread.run(self._probes.admit, mark, fd, addresses)
        except Exception as error:
            _log.error("probes of the host are captured", extra={"addresses": addresses, "error": str(error)})
        self._probed = {**self._probed, mark: probed}

    async def end_probes(self, mark: int, *, dead: bool) -> None:
        """The workload leaves the mesh, or (`dead`) has ended."""
        if self._probes is not None and mark in self._probed:
            self._probed = {known: probed for known, probed in self._probed.items() if known != mark}
            try:
                await thread.run(functools.partial(self._probes.leave, mark, dead=dead))
            except Exception as error:
                _log.error("probes' rules not removed", extra={"error": str(error)})

    async def watch_probes(self) -> None:
        """Put back what others remove of the host's rules; for ever."""
        while True:
            await trio.sleep(_WATCH_PROBES_SECONDS)
            try:
                if self._probes is not None and (drift := await thread.run(self._probes.verify)):
                    _log.warning("rules for probes were changed by others; put back", extra={"drift": drift[:5]})
                    await thread.run(self._probes.repair)
            except Exception as error:
                _log.error("rules for probes not checked", extra={"error": str(error)})

    async def undo_probes(self) -> None:
        """Leave nothing for probes on this host, whoever put it there. Raises `CaptureFailed`."""
        from redirect import host
        from redirect.capture import CaptureError

        try:
            await thread.run(host.undo)
        except CaptureError as error:
            raise CaptureFailed(str(error), "see the log, then try again") from error

    async def apply(self, fd: int, mark: int) -> None:
        """Capture connections that begin from now on. May be repeated. Raises `CaptureFailed`, as the others do."""
        await self._on_thread(fd, mark, lambda capture: capture.apply())

    async def verify(self, fd: int, mark: int) -> list[str]:
        """How the rules differ from what they should be."""
        return await self._on_thread(fd, mark, lambda capture: capture.verify())

    async def undo_syn(self, fd: int, mark: int) -> None:
        """Capture no new connection."""
        await self._on_thread(fd, mark, lambda capture: capture.undo_syn())

    async def undo(self, fd: int, mark: int) -> None:
        """Leave nothing."""
        await self._on_thread(fd, mark, lambda capture: capture.undo())

    async def rules(self, fd: int, mark: int) -> list[str]:
        """The rules as they should be, as text without the mark: whoever in the workload knows it isn't captured."""
        return await self._on_thread(fd, mark, _rendered)

    async def _on_thread(self, fd: int, mark: int, call: Callable[[Capture], _T]) -> _T:
        from redirect.capture import Capture, CaptureError

        try:
            return await thread.run(call, Capture(f"/proc/self/fd/{fd}", mark, self._probed.get(mark, ())))
        except CaptureError as error:
            raise CaptureFailed(str(error), "see the log; `nodectl capture --verify` shows what is there") from error


def _raise_loopback(fd: int) -> None:
    from redirect import routes

    with inside(fd):
        routes.raise_loopback()


def _rendered(capture: Capture) -> list[str]:
    from redirect import tables

    plan = capture.plan()
    return [
        f"{family.value} mangle {rule.chain} "
        + " ".join("-m mark --mark …" if word.startswith("-m mark ") else word for word in tables.render(family, rule))
        for family in plan.families
        for rule in plan.rules_of(family)
    ]
