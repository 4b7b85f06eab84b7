"""Hypercorn under trio, on a socket that somebody else made."""

from __future__ import annotations

import socket
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app
from starlette.applications import Starlette


async def serve(
    application: Starlette, listener: socket.socket, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve HTTP on the listener, which it owns, until cancelled."""
    config = HypercornConfig()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    listener.setblocking(False)
    try:
        await worker_serve(
            wrap_app(application, config.wsgi_max_body_size, None),  # type: ignore[arg-type]
            config,
            sockets=Sockets([], [listener], []),
            task_status=task_status,
        )
    finally:
        listener.close()
