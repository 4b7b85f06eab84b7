"""Requests to the Kubernetes API: JSON in, JSON out, errors told apart. On httpx, in trio's loop.

httpx directly, as the client libraries that run on trio close the connections of all watches when one request is
refused (403), and write a kubeconfig's key to a temporary file.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

import httpx

from controller.kubernetes.access import Access

Json = dict[str, Any]
_MAX_LINE = 16 * 1024 * 1024
"""Of a watch event; etcd holds nothing larger than 1.5 MB."""
_MAX_ANSWER = 32 * 1024 * 1024
"""Of one request. 500 pods, a page of them, are mostly 5 MB; who may create pods could make them 700."""
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
]
"""A watch is silent for minutes, so it is the kernel that finds out when the server's host is gone."""
MERGE_PATCH = "application/merge-patch+json"


class ClusterError(Exception):
    """The API server did not do what was asked."""


class Unreachable(ClusterError):
    """No answer: nothing is known of what became of the request."""


class TooLarge(ClusterError):
    """The answer is larger than this process can be expected to hold: ask for less."""


class Refused(ClusterError):
    """The API server's own `Status`: HTTP code, machine-readable reason, message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{message} ({code} {reason})")
        self.code, self.reason = code, reason


class Client:
    """One API server. Use as an async context manager."""

    def __init__(self, access: Access, timeout: float = 10.0) -> None:
        self._access, self._timeout = access, timeout
        transport = httpx.AsyncHTTPTransport(
            verify=access.tls() if access.server.startswith("https") else True,
            # No bound below max_connections: the pool counts busy connections, too, as if they were kept, so that a few
            # watches would have it close every connection after one request.
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=60),
            socket_options=_KEEPALIVE,
            trust_env=False,
        )
        agent = {"user-agent": f"nodemesh/{version('nodemesh')}", "accept": "application/json"}
        self._http = httpx.AsyncClient(base_url=access.server, transport=transport, headers=agent, trust_env=False)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, **query: str) -> Json:
        """The object or list at `path`."""
        return await self._ask("GET", path, query=query)

    async def create(self, path: str, body: Json) -> Json:
        """A new object in the collection at `path`; `Refused` with 409 if it exists."""
        return await self._ask("POST", path, body)

    async def replace(self, path: str, body: Json) -> Json:
        """The object at `path`; `Refused` with 409 if `body`'s resourceVersion is not the current one."""
        return await self._ask("PUT", path, body)

    async def merge(self, path: str, body: Json) -> Json:
        """A JSON merge patch (RFC 7386); a `metadata.uid` in it must be the object's, else `Refused`: 422, or 409."""
        return await self._ask("PATCH", path, body, MERGE_PATCH)

    async def delete(self, path: str) -> Json:
        """Delete the object at `path`."""
        return await self._ask("DELETE", path)

    async def _ask(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json", query: Any = None
    ) -> Json:
        headers = self._headers() | ({"content-type": kind} if body is not None else {})
        content = json.dumps(body).encode() if body is not None else None
        try:
            async with self._http.stream(
                method, path, content=content, headers=headers, params=query or None, timeout=self._timeout
            ) as answer:
                found = bytearray()
                async with aclosing(cast(AsyncGenerator[bytes, None], answer.aiter_bytes())) as chunks:
                    async for chunk in chunks:
                        found += chunk
                        if len(found) > _MAX_ANSWER:
                            raise TooLarge(f"{self._access.server}: an answer of more than {_MAX_ANSWER} bytes")
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Unreachable(f"{self._access.server}: {error or type(error).__name__}") from error
        return _read(answer.status_code, bytes(found))

    def _headers(self) -> dict[str, str]:
        token = self._access.bearer()
        return {"authorization": f"Bearer {token}"} if token else {}

    @asynccontextmanager
    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[AsyncIterator[Json]]:
        """The events of a watch that the server ends after `seconds`. Raises as the others, from the iterator too."""
        params = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        timeout = httpx.Timeout(self._timeout, read=seconds + 30)
        try:
            async with self._http.stream(
                "GET", path, params=params, headers=self._headers(), timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    _read(answer.status_code, await answer.aread())
                async with aclosing(_lines(answer)) as lines:
                    yield lines
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Unreachable(f"{self._access.server}: {error or type(error).__name__}") from error


async def _lines(answer: httpx.Response) -> AsyncGenerator[Json, None]:
    rest = bytearray()
    async for chunk in answer.aiter_bytes():
        rest += chunk
        if b"\n" in chunk:
            *lines, last = rest.split(b"\n")
            rest = bytearray(last)
            for line in lines:
                if line:
                    yield _json(bytes(line))
        elif len(rest) > _MAX_LINE:
            raise Unreachable(f"a watch event of more than {_MAX_LINE} bytes")


def _json(data: bytes) -> Json:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise Unreachable(f"the answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreachable("the answer is not a JSON object")
    return found


def _read(code: int, content: bytes) -> Json:
    if 200 <= code < 300:
        return _json(content)
    try:
        status = _json(content)
    except Unreachable:
        status = {"message": content[:200].decode(errors="replace")}
    raise Refused(code, str(status.get("reason") or ""), str(status.get("message") or "no message"))
