"""A collection of the API server's objects, mirrored: list, then watch, for ever.

What is kept of an object is what `shrink` makes of it, so that 10,000 pods take megabytes and not gigabytes. While the
server is away, the last known state stays. See "Efficient detection of changes" in the Kubernetes API concepts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

import trio

from controller.kubernetes.client import Client, ClusterError, Json, Refused, TooLarge, Unreachable

_log = logging.getLogger(__name__)
T = TypeVar("T")
_PAGE = 500
_WATCH_SECONDS = 300
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_ABSENT_SECONDS = 15.0
"""How often to look whether a kind that the server doesn't have was installed."""
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)


_LIST_AGAIN = (400, 404, 410, 500, 504)
"""What a server may say to a version that it never had, as after its state was restored, besides 410."""


class _Gone(Exception):
    """The version to go on from is too old: list again."""


class Mirror(Generic[T]):
    """One collection. `run` must be running; `objects` is then at most a moment behind."""

    def __init__(
        self,
        client: Client,
        paths: Sequence[str],
        shrink: Callable[[Json], T | None],
        changed: Callable[[str, T | None, T | None], None],
        *,
        fields: str = "",
        optional: bool = False,
    ) -> None:
        self._client, self._paths, self._shrink, self._changed = client, tuple(paths), shrink, changed
        self._query = {"fieldSelector": fields} if fields else {}
        self._optional = optional
        self.objects: dict[str, T] = {}
        """By `<namespace>/<name>`, or `<name>` where there are no namespaces."""
        self.synced = trio.Event()
        """Set once the whole collection was read."""
        self.connected = False
        """Whether a watch is open now."""
        self.served = False
        """Whether the server has the kind."""
        self.lists = 0
        """How often everything was read."""
        self._path = self._paths[0]
        self.version: str | None = None
        """Of the collection, up to which `objects` is right; None while it is being listed."""

    async def run(self) -> NoReturn:
        """Keep up with the server until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if self.version is None and not await self._find():
                    await trio.sleep(_ABSENT_SECONDS)
                    continue
                await self._watch()
                pause = _FIRST_PAUSE
                await trio.sleep(random.uniform(0, 0.1))  # also if the server ends each watch at once
            except _Gone:
                self.version = None
                pause = _FIRST_PAUSE
            except ClusterError as error:
                if isinstance(error, Refused) and error.code in _LIST_AGAIN:
                    self.version = None
                _log.warning("cannot follow the cluster", extra={"path": self._path, "reason": str(error)})
                await trio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)
            finally:
                self.connected = False

    def adopt(self, body: Json) -> None:
        """Take an object that a write answered with, ahead of the watch."""
        self._put(key_of(body), self._shrink(body))

    async def _find(self) -> bool:
        """List the first of the paths that the server has; False if it has none."""
        for path in self._paths:
            self._path = path
            try:
                await self._list()
            except Refused as error:
                if error.code != 404:
                    raise
            else:
                self.served = True
                self.synced.set()
                return True
        if not self._optional:
            raise Unreachable(f"the server has none of {', '.join(self._paths)}")
        if self.served:  # seldom meant at the first time: a server that starts, or is being upgraded, says so too
            self.served = False
            return False
        for key in list(self.objects):
            self._put(key, None)
        self.synced.set()
        return False

    async def _list(self) -> None:
        seen: set[str] = set()
        query, size = {**self._query}, _PAGE
        while True:
            try:
                page = await self._client.get(self._path, **query, limit=str(size))
            except TooLarge:
                if size == 1:
                    raise
                size = max(1, size // 4)
                continue
            for item in page.get("items") or ():
                seen.add(self._take(item))
            metadata = page.get("metadata") or {}
            if not (more := metadata.get("continue")):
                break
            query["continue"] = more
            await trio.lowlevel.checkpoint()
        self.lists += 1
        for key in self.objects.keys() - seen:
            self._put(key, None)
        self.version = str(metadata.get("resourceVersion") or "0")

    async def _watch(self) -> None:
        assert self.version is not None
        query = {**self._query, "resourceVersion": self.version, "allowWatchBookmarks": "true"}
        seconds = int(_WATCH_SECONDS * random.uniform(1.0, 2.0))
        async with self._client.watch(self._path, query, seconds) as events:
            self.connected = True
            async for event in events:
                body = event.get("object")
                if not isinstance(body, dict):
                    raise Unreachable("an event without its object")
                match event.get("type"):
                    case "ADDED" | "MODIFIED":
                        self._take(body)
                    case "DELETED":
                        self._put(key_of(body), None)
                    case "BOOKMARK":
                        pass
                    case _:
                        code = body.get("code")
                        if code == 410:
                            raise _Gone
                        known = code if isinstance(code, int) else 0
                        raise Refused(known, str(body.get("reason")), str(body.get("message")))
                if (version := (body.get("metadata") or {}).get("resourceVersion")) is None:
                    raise Unreachable("an object without its version")
                self.version = str(version)

    def _take(self, body: Json) -> str:
        """What an object has become, and its key. One that cannot be read stays as it was known: it is one of many."""
        key = key_of(body)
        try:
            new = self._shrink(body)
        except _UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}"
            _log.error("cannot read an object", extra={"path": self._path, "object": key, "reason": reason})
        else:
            self._put(key, new)
        return key

    def _put(self, key: str, new: T | None) -> None:
        old = self.objects.get(key)
        if new is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = new
        if old != new:
            self._changed(key, old, new)


def key_of(body: Json) -> str:
    """`<namespace>/<name>`, or `<name>` of what has no namespace. Raises `Unreachable` if it is no object."""
    try:
        metadata = body["metadata"]
        namespace = metadata.get("namespace")
        return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])
    except _UNREADABLE as error:
        raise Unreachable(f"what should be an object has no {error}") from error
