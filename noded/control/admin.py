"""The admin API (docs/reference/http-api.md) on a unix socket that only root opens; metrics and readiness over TCP."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from noded import logs
from noded.control import metrics, view, why
from noded.control.failure import CannotRun, Failure, Invalid
from noded.control.records import parse_request
from noded.control.view import Parts

_log = logging.getLogger(__name__)
_MAX_BODY = 64 * 1024
_MAX_DRAIN = 3600.0
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_Handler = Callable[[Parts, Request], Awaitable[Any]]


def application(parts: Parts) -> Starlette:
    """What the unix socket serves."""
    table: list[tuple[str, str, _Handler]] = [
        ("GET", "/status", _status),
        ("GET", "/workloads", _workloads),
        ("POST", "/workloads", _enrol),
        ("DELETE", "/workloads/{namespace}/{name}", _remove),
        ("GET", "/mesh/workloads", _mesh_workloads),
        ("GET", "/mesh/services", _mesh_services),
        ("GET", "/mesh/policies", _policies),
        ("GET", "/certs", _certs),
        ("GET", "/connections", _connections),
        ("GET", "/tunnels", _tunnels),
        ("GET", "/requests", _requests),
        ("GET", "/endpoints", _endpoints),
        ("GET", "/mesh/routes", _routes),
        ("GET", "/why", _failed),
        ("GET", "/why/{id}", _why),
        ("GET", "/capture", _capture),
        ("GET", "/config", _config),
        ("PUT", "/log-level", _log_level),
        ("POST", "/drain", _drain),
    ]
    routes = [Route(path, _answering(parts, handler), methods=[method]) for method, path, handler in table]
    routes.append(Route("/metrics", functools.partial(_metrics, parts)))
    return Starlette(routes=routes, exception_handlers={404: _no_such_path, 405: _no_such_path})


def metrics_application(parts: Parts) -> Starlette:
    """What `metricsAddress` serves."""
    return Starlette(routes=[Route("/metrics", functools.partial(_metrics, parts))])


def ready_application(parts: Parts) -> Starlette:
    """What `readyAddress` serves: whether the workers run and have a snapshot, else 503 and why; and that we live."""

    async def ready(_request: Request) -> Response:
        if parts.workers.draining:
            return PlainTextResponse("draining\n", 503)
        if not parts.workers.up:
            return PlainTextResponse("workers are not up\n", 503)
        if not parts.state.snapshot.ready or not parts.workers.applied:
            return PlainTextResponse("no snapshot was applied yet\n", 503)
        return PlainTextResponse("ready\n")

    async def live(_request: Request) -> Response:
        return PlainTextResponse("live\n")

    return Starlette(routes=[Route("/healthz/ready", ready), Route("/healthz/live", live)])


async def serve_unix(application: Starlette, path: Path) -> None:
    """Serve on a socket at `path` that nobody else may connect to, until cancelled."""
    await _serve(application, _private_socket(path))


def _private_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # what an earlier run left: `daemon` has made sure that there is no other
    sock = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise CannotRun(f"admin socket {path} cannot be made: {error.strerror}", "check runDir") from error
    finally:
        os.umask(mask)
    return sock


async def serve_tcp(application: Starlette, address: tuple[str, int]) -> None:
    """Serve on a TCP address until cancelled."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise CannotRun(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror}",
            "choose another metricsAddress or readyAddress, or stop what listens there",
        ) from error
    await _serve(application, sock)


async def _serve(application: Starlette, sock: socket.socket) -> None:
    config = HypercornConfig()
    config.bind = [f"fd://{sock.detach()}"]
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = 1.0
    config.include_server_header = False
    await serve(application, config)  # type: ignore[arg-type]  # hypercorn's ASGI types are not starlette's


def _answering(parts: Parts, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await handler(parts, request))
        except Failure as failure:
            return _error(failure.status, failure.message, failure.remedy)
        except Exception as error:
            _log.exception("bug in the admin API", extra={"path": request.url.path})
            return _error(500, f"{type(error).__name__}: {error}", "this is a bug: please report it with the log")

    return endpoint


def _error(status: int, message: str, remedy: str) -> Response:
    return JSONResponse({"error": {"message": message, "remedy": remedy}}, status)


async def _no_such_path(request: Request, _error_: Exception) -> Response:
    return _error(404, f"there is no {request.method} {request.url.path}", "see docs/reference/http-api.md")


async def _body(request: Request) -> Any:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY:
            raise Invalid(f"the body is longer than {_MAX_BODY} bytes", "send less")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", "send one JSON object") from error


def _seconds(value: Any, what: str, default: float) -> float:
    if value is None:
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= _MAX_DRAIN:
        raise Invalid(f"{what} {value!r:.40} is not a number of seconds", f"use 0 to {_MAX_DRAIN:g}")
    return seconds


async def _metrics(parts: Parts, _request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        for piece in metrics.pieces(parts.telemetry, view.gauges(parts)):
            yield piece

    return StreamingResponse(body(), media_type=_PROMETHEUS)


async def _status(parts: Parts, _request: Request) -> Any:
    return view.status(parts)


async def _workloads(parts: Parts, _request: Request) -> Any:
    return {"items": await view.workloads(parts)}


async def _enrol(parts: Parts, request: Request) -> Any:
    local = await parts.enrolments.enrol(parse_request(await _body(request)))
    return view.workload(parts, local)


async def _remove(parts: Parts, request: Request) -> Any:
    uid = f"{request.path_params['namespace']}/{request.path_params['name']}"
    drain = _seconds(request.query_params.get("drain"), "drain", parts.config.drain_seconds)
    await parts.enrolments.remove(uid, drain)
    return {"uid": uid, "state": "removed"}


async def _mesh_workloads(parts: Parts, _request: Request) -> Any:
    return {"items": [view.plain(workload) for _, workload in sorted(parts.state.snapshot.workloads.items())]}


async def _mesh_services(parts: Parts, _request: Request) -> Any:
    services = sorted(parts.state.snapshot.services.items())
    return {"items": [{**view.plain(service), "hostname": service.hostname} for _, service in services]}


async def _policies(parts: Parts, _request: Request) -> Any:
    return {"items": view.policies(parts)}


async def _certs(parts: Parts, _request: Request) -> Any:
    return {"items": parts.certs.rows()}


async def _connections(parts: Parts, request: Request) -> Any:
    wanted = request.query_params.get("workload")
    rows = await parts.workers.query("connections")
    return {"items": [row for row in rows if wanted in (None, row["workload"])]}


async def _tunnels(parts: Parts, _request: Request) -> Any:
    return {"items": await parts.workers.query("tunnels")}


async def _requests(parts: Parts, request: Request) -> Any:
    given = dict(request.query_params)
    if unknown := given.keys() - {"workload", "method", "path", "code", "after"}:
        raise Invalid(f"unknown parameter {min(unknown)!r}", "use workload, method, path, code and after")
    if not re.fullmatch(r"([1-5]xx|[0-9]{1,3})?", given.get("code", "")):
        raise Invalid(f"{given['code']!r:.40} is no status", "write 503 or 5xx")
    last = {}
    for part in filter(None, given.pop("after", "").split(",")):
        worker, _, number = part.partition("-")
        last[worker] = number
    arguments = given | {f"after.{worker}": number for worker, number in last.items()}
    rows = await parts.workers.query("requests", arguments)
    for row in rows:
        last[str(row["worker"])] = row.pop("after")
    after = ",".join(f"{worker}-{number}" for worker, number in sorted(last.items()))
    return {"items": sorted(rows, key=lambda row: str(row["time"])), "after": after}


async def _endpoints(parts: Parts, request: Request) -> Any:
    wanted = request.query_params.get("service")
    seen, local = await parts.workers.query("endpoints"), {local.uid for local in parts.enrolments}
    return {"items": view.endpoints(seen, parts.state.snapshot, local, wanted)}


async def _routes(parts: Parts, _request: Request) -> Any:
    return {"items": [view.plain(route) for _, route in sorted(parts.state.snapshot.routes.items())]}


async def _failed(parts: Parts, _request: Request) -> Any:
    return {"items": await why.rows(parts)}


async def _why(parts: Parts, request: Request) -> Any:
    return await why.why(parts, request.path_params["id"])


async def _capture(parts: Parts, request: Request) -> Any:
    verify = request.query_params.get("verify", "0") not in ("0", "false", "")
    return {"items": await parts.enrolments.capture(verify=verify)}


async def _config(parts: Parts, _request: Request) -> Any:
    return {**parts.config.as_json(), "logLevel": parts.workers.log_level}


async def _log_level(parts: Parts, request: Request) -> Any:
    body = await _body(request)
    level = body.get("level") if isinstance(body, dict) else None
    if level not in logs.LEVELS:
        raise Invalid(f"{level!r:.40} is not a log level", f"use one of {', '.join(logs.LEVELS)}")
    logs.set_level(level)
    parts.workers.set_log_level(level)
    return {"level": level}


async def _drain(parts: Parts, request: Request) -> Any:
    body = await _body(request)
    given = body.get("seconds") if isinstance(body, dict) else None
    seconds = _seconds(given, "seconds", parts.config.drain_seconds)
    parts.drain(seconds)
    return {"draining": True, "seconds": seconds}
