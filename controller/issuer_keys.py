"""The keys that issuers of tokens publish, fetched by the controller for all nodes: they need no way out for that.

Fetched every 20 minutes, as istiod does; a failure keeps the last that were good, and is tried again sooner.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import urlsplit

import trio

from controller.translate.tokens import KeySource
from mesh import jwks

_log = logging.getLogger(__name__)
_REFRESH_SECONDS = 20 * 60.0
_READ_SECONDS = 60.0
"""For each step of a request; the whole of it has the rule's time."""
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0
_MAX_SOURCES = 256
_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}
_DISCOVERY = "/.well-known/openid-configuration"

Fetch = Callable[[str], Awaitable[bytes]]
"""What is at a URL, at most `jwks.MAX_BYTES`. Raises `FetchError`."""


class FetchError(Exception):
    """A URL gave nothing that is of use; the message says why."""


@dataclass(slots=True)
class _Entry:
    key_set: str = ""
    problem: str = "the keys are not fetched yet"
    scope: trio.CancelScope | None = None
    tried: trio.Event = field(default_factory=trio.Event)


class IssuerKeys:
    """`run` must run; `changed` is called when keys, or what is wrong with them, are others than before."""

    def __init__(self, changed: Callable[[], None], fetch: Fetch | None = None) -> None:
        self._changed, self._fetch = changed, fetch or fetch_url
        self._entries: dict[KeySource, _Entry] = {}
        self._wanted = trio.Event()

    def of(self, source: KeySource) -> tuple[str, str]:
        """The newest key set, or `""`, and what is wrong with it or with fetching a newer one, or `""`."""
        entry = self._entries.get(source) or _Entry()
        return entry.key_set, entry.problem

    def keep(self, sources: Iterable[KeySource]) -> None:
        """Fetch these from now on, and no others."""
        wanted = dict.fromkeys(sources)
        if len(wanted) > _MAX_SOURCES:
            _log.error("too many issuers: the keys of some are not fetched", extra={"limit": _MAX_SOURCES})
        wanted = dict.fromkeys(list(wanted)[:_MAX_SOURCES])
        for source in self._entries.keys() - wanted.keys():
            if (scope := self._entries.pop(source).scope) is not None:
                scope.cancel()
        for source in wanted.keys() - self._entries.keys():
            self._entries[source] = _Entry()
            self._wanted.set()

    async def tried(self, seconds: float) -> None:
        """Wait until all that are to be fetched have been fetched, or could not be, but no longer than this."""
        with trio.move_on_after(seconds):
            for entry in list(self._entries.values()):
                await entry.tried.wait()

    async def run(self) -> NoReturn:
        """Fetch until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wanted = trio.Event()
                for source, entry in self._entries.items():
                    if entry.scope is None:
                        entry.scope = trio.CancelScope()
                        nursery.start_soon(self._follow, source, entry, entry.scope)
                await self._wanted.wait()

    async def _follow(self, source: KeySource, entry: _Entry, scope: trio.CancelScope) -> None:
        retry = _FIRST_RETRY
        with scope:
            while True:
                before = entry.key_set, entry.problem
                try:
                    entry.key_set, entry.problem = await self._keys(source), ""
                    retry, wait = _FIRST_RETRY, _REFRESH_SECONDS
                except FetchError as error:
                    entry.problem = str(error)[:500]
                    _log.warning("keys not fetched", extra={"issuer": source.issuer, "reason": entry.problem})
                    wait, retry = retry, min(_LAST_RETRY, retry * 2)
                if (entry.key_set, entry.problem) != before:
                    self._changed()
                entry.tried.set()
                await trio.sleep(wait)

    async def _keys(self, source: KeySource) -> str:
        with trio.move_on_after(source.timeout):
            uri = source.uri or await self._discover(source.issuer)
            try:
                return jwks.write(jwks.read(await self._fetch(uri)))
            except ValueError as error:
                raise FetchError(f"{uri}: {error}") from error
        raise FetchError(f"{source.uri or source.issuer}: no answer within {source.timeout:g} s")

    async def _discover(self, issuer: str) -> str:
        where = issuer.rstrip("/") + _DISCOVERY
        try:
            found = json.loads(await self._fetch(where))
        except (ValueError, RecursionError) as error:
            raise FetchError(f"{where}: not JSON") from error
        uri = found.get("jwks_uri") if isinstance(found, dict) else None
        if not isinstance(uri, str) or urlsplit(uri).scheme not in ("https", urlsplit(issuer).scheme):
            raise FetchError(f"{where}: no jwks_uri that is a URL")
        return uri


async def fetch_url(url: str) -> bytes:
    """See `Fetch`. Certificates are verified with the system's roots; redirections are not followed."""
    import httpx  # only where there is something to fetch: 12 MB

    roots = ssl.create_default_context()
    try:
        async with (
            httpx.AsyncClient(verify=roots, follow_redirects=False, timeout=_READ_SECONDS) as client,
            client.stream("GET", url, headers=_HEADERS) as response,
        ):
            if response.status_code != 200:
                raise FetchError(f"{url}: status {response.status_code}")
            data = b""
            async for chunk in response.aiter_raw():  # not unpacked: 64 KiB may hold 64 MiB
                data += chunk
                if len(data) > jwks.MAX_BYTES:
                    raise FetchError(f"{url}: more than {jwks.MAX_BYTES} bytes")
            return data
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise FetchError(f"{url}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """The first of an error's causes that says something: trio's own errors of TLS do not."""
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
