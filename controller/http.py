"""Hypercorn under trio, on sockets that are made here: a unix socket that is never open to others, and plain TCP."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app
from starlette.applications import Starlette

from controller.config import Address

_BACKLOG = 128


def unix_listener(path: Path) -> socket.socket:
    """Listen on a path that only the owner may open. One left by a controller that was killed is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o177)  # `chmod` after `bind` would leave it open for a moment
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(previous)
    return listener


def tcp_listener(address: Address) -> socket.socket:
    """Listen on TCP. Raises `OSError`."""
    return socket.create_server(
        (address.host, address.port), family=socket.AF_INET6 if ":" in address.host else socket.AF_INET
    )


async def serve(
    application: Starlette, listener: socket.socket, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve HTTP on the listener, which it owns, until cancelled."""
    config = HypercornConfig()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.backlog = _BACKLOG
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    try:
        await worker_serve(
            wrap_app(application, config.wsgi_max_body_size, None),  # type: ignore[arg-type]
            config,
            sockets=Sockets([], [listener], []),
            task_status=task_status,
        )
    finally:
        listener.close()
