"""The HTTP APIs of `noded` and `mesh-controller` on their unix sockets (docs/reference/http-api.md)."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class ApiError(Exception):
    """The daemon said no."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status, self.body = status, body
        error = body.get("error")
        if error is not None:
            text = " ".join(filter(None, (error.get("message"), error.get("remedy"))))
        else:
            text = "\n".join(
                f"{e['file']}:{e['line']}: {e['path']}: {e['message']} {e['remedy']}" for e in body.get("errors", [])
            )
        super().__init__(text or f"HTTP status {status}")


class Unreachable(Exception):
    """Nobody answers on the socket."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(path: Path, method: str, target: str, body: object = None, *, timeout: float = 60) -> Any:
    """One request; the decoded JSON of the answer. Raises `ApiError`, `Unreachable`."""
    connection = _Connection(path, timeout)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, target, payload, {} if payload is None else {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{path}: {error}") from None
    finally:
        connection.close()
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        raise ApiError(answer.status, {"error": {"message": text.decode(errors="replace")[:500]}}) from None
    if answer.status >= 400:
        raise ApiError(answer.status, value)
    return value
