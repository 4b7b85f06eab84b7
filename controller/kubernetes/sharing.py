"""While a root is rotated, replicas tell each other what their nodes have acknowledged: in annotations of the Lease.

Each replica writes its own annotation, so that none overwrites another's, and takes it away when the rotation is over.
Kubernetes allows 256 KiB of annotations on an object: enough for some 4,000 nodes.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import NoReturn

import trio

from controller.kubernetes.client import Client, ClusterError
from controller.kubernetes.leadership import LEASE
from controller.rotation import Report, Rotation

_log = logging.getLogger(__name__)
_PREFIX = "rotation.nodemesh.dev/"
_SECONDS = 2.0


class Sharing:
    """One replica's part."""

    def __init__(self, client: Client, namespace: str, me: str, rotation: Rotation) -> None:
        self._client, self._rotation = client, rotation
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
        self._key = _PREFIX + me[-63:].lstrip("-_.")
        self._written: Report | None = None

    async def run(self) -> NoReturn:
        """Share until cancelled."""
        while True:
            try:
                await self._share()
            except ClusterError as error:
                _log.warning("cannot share the rotation's progress", extra={"reason": str(error)})
            await trio.sleep(_SECONDS)

    async def _share(self) -> None:
        if self._rotation.phase == "idle":
            self._rotation.others = ()
            if self._written is not None:
                await self._client.merge(self._path, {"metadata": {"annotations": {self._key: None}}})
                self._written = None
            return
        report = self._rotation.report()
        if report != self._written:
            text = json.dumps(asdict(report), separators=(",", ":"))
            await self._client.merge(self._path, {"metadata": {"annotations": {self._key: text}}})
            self._written = report
        annotations = (await self._client.get(self._path))["metadata"].get("annotations") or {}
        others = [text for key, text in annotations.items() if key.startswith(_PREFIX) and key != self._key]
        self._rotation.others = tuple(filter(None, map(_report, others)))


def _report(text: str) -> Report | None:
    try:
        found = json.loads(text)
        return Report(found["bundle"], found["signer"], tuple(found["trusting"]), tuple(found["renewed"]))
    except (ValueError, KeyError, TypeError):
        return None  # of a replica of another version
