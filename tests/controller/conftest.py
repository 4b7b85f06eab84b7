"""A controller inside the test's own trio loop, on a free port of loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from controller.config import Config
from controller.daemon import Daemon
from controller.tokens import mint
from tests.controller.client import Credential, join


class Running:
    """A daemon that serves, the port it serves on, and short cuts for tests."""

    def __init__(self, daemon: Daemon, port: int, monitoring: int) -> None:
        self.daemon, self.port, self.monitoring = daemon, port, monitoring
        self.socket = daemon.config.run_dir / "controller.sock"

    def token(self, *allow: str, node: str = "", ttl: float = 3600, uses: int = -1) -> str:
        text, stored = mint(
            list(allow or ("*/*",)),
            node,
            ttl,
            uses,
            "",
            root_sha256=self.daemon.authority.root_sha256,
            now=self.daemon.clock(),
        )
        assert self.daemon.home.store is not None
        self.daemon.home.store.add_token(stored)
        return text

    async def join(self, node: str, *allow: str) -> Credential:
        credential = await join(self.port, self.token(*allow, node=node), node)
        assert isinstance(credential, Credential)
        return credential


def config_in(folder: Path, **changes: object) -> Config:
    """A configuration with everything below `folder` and on ports that the kernel chooses."""
    given: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "monitoringAddress": "127.0.0.1:0",
        "advertise": ["127.0.0.1", "controller.test"],
        "stateDir": str(folder / "state"),
        "runDir": str(folder / "run"),
        "meshRanges": ["10.77.0.0/16"],
        **changes,
    }
    return Config.model_validate(given)


@pytest.fixture
async def controller(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Running]:
    daemon = Daemon(config_in(tmp_path))
    try:
        ports = await nursery.start(daemon.run)
        yield Running(daemon, ports.link, ports.monitoring)
    finally:
        daemon.close()
