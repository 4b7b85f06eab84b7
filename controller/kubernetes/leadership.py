"""Which replica leads: a Lease (coordination.k8s.io/v1), as client-go's leader election uses it.

No two clocks are compared: another's lease has run out when this replica has seen it unchanged for its whole duration.
A leader that cannot renew stops leading before others may begin. What it writes is guarded by resourceVersions besides.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NoReturn

import trio

from controller.kubernetes.client import Client, ClusterError, Json, Refused

_log = logging.getLogger(__name__)
LEASE = "nodemesh-controller"


class Leadership:
    """One replica's part in the election. `run` must be running."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        me: str,
        *,
        clock: Callable[[], float],
        duration: float = 15.0,
        deadline: float = 10.0,
        retry: float = 2.0,
    ) -> None:
        self._client, self.me, self._clock = client, me, clock
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._duration, self._deadline, self._retry = duration, deadline, retry
        self._seen: tuple[str, str] = ("", "")
        """Holder and renewal of the lease as it was last seen to change, and when that was (this process's clock)."""
        self._seen_at = 0.0
        self.leading = False

    @property
    def leader(self) -> str:
        """Who was last seen to lead; `""` if nobody."""
        return self._seen[0]

    async def run(self, lead: Callable[[], Awaitable[object]]) -> NoReturn:
        """Run `lead` while this replica leads; it is cancelled when that ends."""
        try:
            while True:
                if await self._try():
                    await self._lead(lead)
                await trio.sleep(self._retry * random.uniform(0.8, 1.2))
        finally:
            if self.leading:
                await self._release()

    async def _lead(self, lead: Callable[[], Awaitable[object]]) -> None:
        _log.info("leading", extra={"replica": self.me})
        self.leading = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            renewed = trio.current_time()
            while trio.current_time() < renewed + self._deadline:
                await trio.sleep(self._retry)
                with trio.move_on_at(renewed + self._deadline):
                    if await self._try():
                        renewed = trio.current_time()
                    elif self._seen[0] != self.me:
                        break
            nursery.cancel_scope.cancel()
        self.leading = False
        _log.warning("not leading any more", extra={"replica": self.me})

    async def _try(self) -> bool:
        """Take or renew the lease; False if another has it, or the server does not answer."""
        try:
            return await self._take()
        except ClusterError as error:
            if not (isinstance(error, Refused) and error.code == 409):
                _log.warning("cannot take the lease", extra={"reason": str(error)})
            return False

    async def _take(self) -> bool:
        try:
            body = await self._client.get(f"{self._path}/{LEASE}")
        except Refused as error:
            if error.code != 404:
                raise
            metadata = {"name": LEASE, "namespace": self._namespace}
            kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
            await self._client.create(self._path, {**kind, "metadata": metadata, "spec": self._spec({})})
            return True
        spec = body.get("spec") or {}
        self._observe(spec)
        holder = spec.get("holderIdentity") or ""
        expires = self._seen_at + float(spec.get("leaseDurationSeconds") or self._duration)
        if holder not in ("", self.me) and trio.current_time() < expires:
            return False
        renewed = await self._client.replace(f"{self._path}/{LEASE}", {**body, "spec": self._spec(spec)})
        self._observe(renewed.get("spec") or {})
        return True

    def _observe(self, spec: Json) -> None:
        seen = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if seen != self._seen:
            self._seen, self._seen_at = seen, trio.current_time()

    def _spec(self, before: Json) -> Json:
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = before.get("holderIdentity") == self.me
        return {
            "holderIdentity": self.me,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "acquireTime": before.get("acquireTime") if mine else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not mine and bool(before)),
        }

    async def _release(self) -> None:
        """Let another lead at once, not after the lease has run out."""
        self.leading = False
        with trio.move_on_after(2, shield=True):
            try:
                body = await self._client.get(f"{self._path}/{LEASE}")
                if body["spec"].get("holderIdentity") == self.me:
                    body["spec"]["holderIdentity"] = ""
                    await self._client.replace(f"{self._path}/{LEASE}", body)
            except ClusterError as error:
                _log.info("the lease was not given back", extra={"reason": str(error)})
