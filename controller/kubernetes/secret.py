"""The CA's material in a Secret, and the roots in a ConfigMap for those who join.

    Secret nodemesh-ca       tls.key   what signs
                             tls.crt   its certificate, then those above it
                             roots.pem all roots to trust; where it is absent, ca.crt, else the last of tls.crt
                             next.key, next.crt   a root that is to take over
    ConfigMap nodemesh-root  roots.pem

A Secret that a user made (or cert-manager: `tls.crt`, `tls.key`, `ca.crt`) is taken as it is and never written to but
by a rotation, which an intermediate refuses.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from controller.kubernetes.client import Client, Json, Refused
from controller.trust import CaError, Conflict, Material, certificates, pem_of

SECRET, CONFIG_MAP = "nodemesh-ca", "nodemesh-root"
_LABELS = {"app.kubernetes.io/part-of": "nodemesh"}


def material(body: Json) -> Material | CaError:
    """What a Secret holds, or what is wrong with it."""
    where = f"Secret {body['metadata'].get('namespace')}/{body['metadata']['name']}"
    try:
        data = {key: base64.b64decode(value) for key, value in (body.get("data") or {}).items()}
        chain = data["tls.crt"]
        roots = data.get("roots.pem") or data.get("ca.crt") or pem_of(*certificates(chain)[-1:])
        return Material(data["tls.key"], chain, roots, data.get("next.key", b""), data.get("next.crt", b""))
    except (KeyError, ValueError, binascii.Error) as error:
        return CaError(f"{where}: {type(error).__name__} {error}: it must hold tls.crt and tls.key, in PEM")


class SecretCa:
    """`controller.trust.CaStore` on a Secret. Raises `ClusterError` as well."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self.where = f"Secret {namespace}/{SECRET}"

    async def load(self) -> tuple[Material, str] | None:
        """See `CaStore`."""
        try:
            body = await self._client.get(f"{self._path}/{SECRET}")
        except Refused as error:
            if error.code == 404:
                return None
            raise
        found = material(body)
        if isinstance(found, CaError):
            raise found
        return found, str(body["metadata"]["resourceVersion"])

    async def save(self, material: Material, version: str | None) -> None:
        """See `CaStore`."""
        metadata: dict[str, Any] = {"name": SECRET, "namespace": self._namespace, "labels": _LABELS}
        parts = {
            "tls.key": material.key,
            "tls.crt": material.chain,
            "roots.pem": material.roots,
            "next.key": material.next_key,
            "next.crt": material.next_chain,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(value).decode() for key, value in parts.items() if value},
        }
        try:
            if version is None:
                await self._client.create(self._path, body)
            else:
                metadata["resourceVersion"] = version
                await self._client.replace(f"{self._path}/{SECRET}", body)
        except Refused as error:
            if error.code in (404, 409):
                raise Conflict(f"{self.where} has changed meanwhile") from error
            raise


async def publish_roots(client: Client, namespace: str, bundle: bytes) -> None:
    """Put the roots where nodes that join can see them. Raises `ClusterError`."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    data = {"data": {"roots.pem": bundle.decode()}}
    try:
        await client.merge(f"{path}/{CONFIG_MAP}", data)
    except Refused as error:
        if error.code != 404:
            raise
        metadata = {"name": CONFIG_MAP, "namespace": namespace, "labels": _LABELS}
        await client.create(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **data})
