"""HTTP as both applications have it: serving with Hypercorn under trio, reading requests, answering with errors."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Any]]


class ApiError(Exception):
    """Answered with this status, message and remedy."""

    def __init__(self, status: int, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.status, self.remedy = status, remedy


def answering(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Turn what a handler returns into an answer; a list is wrapped in `items`."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        found = await handler(request)
        return JSONResponse({"items": found} if isinstance(found, list) else found)

    return answer


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The request's body, a JSON object of at most `limit` bytes. Raises `ApiError`."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise ApiError(400, f"the request is larger than {limit} bytes", "send fewer files at a time")
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the request must be a JSON object")
    return body


def read_flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false; false where it is left out. Raises `ApiError`."""
    value = request.query_params.get(name, "").lower()
    if value not in ("", "true", "false", "1", "0"):
        raise ApiError(400, f"{name} is {value!r}", "set it to true or false")
    return value in ("true", "1")


def _error(status: int, message: str, remedy: str = "") -> JSONResponse:
    return JSONResponse({"error": {"message": message, "remedy": remedy}}, status)


async def _on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error.status, str(error), error.remedy)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("request failed", exc_info=error, extra={"method": request.method, "path": request.url.path})
    return _error(500, f"internal error: {type(error).__name__}", "the controller's log has the details")


ON_ERROR: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _on_api_error,
    HTTPException: _on_http_error,
    Exception: _on_bug,
}
"""Starlette's `exception_handlers`."""


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
            wrap_app(application, config.wsgi_max_body_size, None),  # type: ignore[arg-type]  # its ASGI types are not starlette's
            config,
            sockets=Sockets([], [listener], []),
            task_status=task_status,
        )
    finally:
        listener.close()
