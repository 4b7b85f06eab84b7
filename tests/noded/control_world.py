"""A real controller and a real control process over real TLS, with workers and namespaces that are fakes."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import trio

from controller import config as controller_config
from controller import daemon as controller_daemon
from controller import tokens
from noded.config import Config
from noded.control import daemon
from noded.control.capture import CaptureFailed, Namespaces
from noded.control.failure import Invalid
from noded.control.records import NamespaceId
from tests.noded.fake_worker import COMMAND


class FakeNamespaces(Namespaces):
    """Ordinary files stand for namespaces, their content for the address; listeners are on loopback."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.listening: list[tuple[str, int]] = []
        self.broken = False

    async def check(self) -> None:
        pass

    def open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Invalid(f"{path}: {error.strerror}", "make it") from error

    def identify(self, fd: int) -> NamespaceId:
        there = os.fstat(fd)
        return NamespaceId(there.st_dev, there.st_ino, 0)

    def let_probes(self) -> None:
        pass

    async def undo_probes(self) -> None:
        pass

    async def raise_loopback(self, fd: int) -> None:
        pass

    def addresses(self, fd: int) -> tuple[str, ...]:
        return (os.pread(fd, 100, 0).decode(),)

    def listeners(self, fd: int, workers: int) -> list[list[socket.socket]]:
        rows = [[socket.create_server(("127.0.0.1", 0)) for _ in range(3)] for _ in range(workers)]
        self.listening += [sock.getsockname() for row in rows for sock in row]
        return rows

    async def apply(self, fd: int, mark: int) -> None:
        if self.broken:
            raise CaptureFailed("no rules", "none")
        self.log.append(("apply", mark))

    async def verify(self, fd: int, mark: int) -> list[str]:
        return ["a rule is missing"] if self.broken else []

    async def rules(self, fd: int, mark: int) -> list[str]:
        return ["a rule"]

    async def undo_syn(self, fd: int, mark: int) -> None:
        self.log.append(("undo_syn", mark))

    async def undo(self, fd: int, mark: int) -> None:
        self.log.append(("undo", mark))


class World:
    """One folder, one controller, one node; each may be started and stopped."""

    def __init__(self, folder: Path, keys: Path, port: int) -> None:
        self.folder, self.namespaces = folder, FakeNamespaces()
        self.config = Config(
            node="node-a",
            controller_address=("127.0.0.1", port),
            controller_token_file=folder / "token",
            run_dir=folder / "run",
            key_dir=keys,
            state_dir=folder / "state",
            workers=2,
            drain_seconds=0.0,
            metrics_address=None,
            ready_address=None,
        )
        text = f"""
listen: 127.0.0.1:{port}
advertise: [127.0.0.1]
stateDir: {folder}/controller
runDir: {folder}/controller-run
meshRanges: [10.77.0.0/16]
"""
        (folder / "controller.yaml").write_text(text)
        self.controller: controller_daemon.Daemon
        self.command: Sequence[str] = COMMAND
        self.api: httpx.AsyncClient

    def token(self, allow: list[str] | None = None, node: str = "") -> None:
        """Put a fresh join token where the node looks for one."""
        authority = self.controller.authority
        text, stored = tokens.mint(
            allow or ["shop/*"], node, 3600, -1, "", root_sha256=authority.root_sha256, now=time.time()
        )
        assert self.controller.home.store is not None
        self.controller.home.store.add_token(stored)
        (self.folder / "token").write_text(text)

    @asynccontextmanager
    async def controlled(self) -> AsyncIterator[None]:
        """The controller, serving."""
        self.controller = controller_daemon.Daemon(controller_config.load(self.folder / "controller.yaml"))
        try:
            with socket.create_server(self.config.controller_address) as listener:
                listener.setblocking(False)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.controller.publisher.run)
                    nursery.start_soon(self.controller.link.serve, listener)
                    yield
                    nursery.cancel_scope.cancel()
        finally:
            self.controller.close()

    @asynccontextmanager
    async def node(self, config: Config | None = None) -> AsyncIterator[None]:
        """The control process's daemon; it ends as if killed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run, config or self.config)
            transport = httpx.AsyncHTTPTransport(uds=str(self.config.run_dir / "noded.sock"))
            async with httpx.AsyncClient(transport=transport, base_url="http://noded", timeout=20) as self.api:
                yield
            nursery.cancel_scope.cancel()

    async def run(self, config: Config) -> None:
        """`daemon.run` with the fakes."""
        await daemon.run(config, namespaces=self.namespaces, command=self.command)

    async def get(self, path: str) -> Any:
        """The JSON body of a 200."""
        response = await self.api.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    async def until(self, path: str, reached: Callable[[Any], object]) -> Any:
        """Ask again until the answer is as wanted."""
        with trio.fail_after(60):
            while True:
                try:
                    if reached(answer := await self.get(path)):
                        return answer
                except httpx.TransportError:
                    pass
                await trio.sleep(0.02)

    async def connected(self) -> None:
        """The node has a session with the controller and its first snapshot."""
        await self.until("/status", lambda s: s["controller"]["connected"] and s["snapshot"]["epoch"])

    def namespace(self, name: str, address: str) -> str:
        """A stand-in for a network namespace; its path."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.with_suffix(".new").write_text(address)
        path.with_suffix(".new").rename(path)
        return str(path)

    async def enrol(self, name: str, address: str = "10.77.0.1", **more: Any) -> httpx.Response:
        """Ask for a workload of namespace `shop`."""
        body = {"name": name, "namespace": "shop", "service_account": name, **more}
        path = self.folder / name
        body.setdefault("netns", str(path) if path.exists() else self.namespace(name, address))
        return await self.api.post("/workloads", json=body)

    async def told(self) -> list[dict[str, Any]]:
        """What the workers know."""
        rows: list[dict[str, Any]] = (await self.get("/connections"))["items"]
        return rows


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A fresh one; nothing of it is left afterwards."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        keys = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        yield World(Path(folder), Path(keys), port)


async def eventually(reached: Callable[[], object]) -> None:
    """Wait until it is so."""
    with trio.fail_after(60):
        while not reached():
            await trio.sleep(0.02)


def failing_command() -> Sequence[str]:
    """A worker that can't start."""
    return (sys.executable, "-c", "raise SystemExit(3)")


__all__ = ["FakeNamespaces", "World", "eventually", "failing_command", "replace", "world"]
