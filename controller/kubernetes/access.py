"""How to reach an API server, and as whom: from inside a pod, or by a kubeconfig.

A client key stays in memory: `ssl` loads it through a memory file, so nothing secret is written to a disk.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class AccessError(Exception):
    """No way to the API server can be made out; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, what proves it, and what proves us."""

    server: str
    ca: str = ""
    """PEM; empty: what the system trusts."""
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    """Read again for each request: the kubelet replaces it before it expires."""
    client_chain: bytes = b""
    client_key: bytes = field(default=b"", repr=False)
    insecure: bool = False

    @classmethod
    def in_cluster(cls, folder: Path = SERVICE_ACCOUNT) -> Access:
        """As the service account of the pod this runs in. Raises `AccessError`."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise AccessError("not in a pod (KUBERNETES_SERVICE_HOST is not set): set 'kubeconfig' in controller.yaml")
        try:
            ca = (folder / "ca.crt").read_text()
        except OSError as error:
            raise AccessError(
                f"the service account is not mounted ({error}): see automountServiceAccountToken"
            ) from error
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", ca, token_file=folder / "token")

    @classmethod
    def from_kubeconfig(cls, path: Path, context: str = "") -> Access:
        """As a kubeconfig's (current) context says. Certificates and tokens only. Raises `AccessError`."""
        try:
            config = yaml.safe_load(path.read_text())
            chosen = context or config["current-context"]
            of = _named(config["contexts"], chosen, "context")
            cluster, user = _named(config["clusters"], of["cluster"]), _named(config["users"], of["user"])
            if unusable := user.keys() & {"exec", "auth-provider", "username"}:
                raise AccessError(
                    f"{path}: user {of['user']!r} logs in by {min(unusable)!r}: use a token or certificate"
                )
            token_file = user.get("tokenFile")
            return cls(
                cluster["server"],
                _data(path, cluster, "certificate-authority").decode(),
                user.get("token") or "",
                path.parent / token_file if token_file else None,
                _data(path, user, "client-certificate"),
                _data(path, user, "client-key"),
                bool(cluster.get("insecure-skip-tls-verify")),
            )
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise AccessError(f"{path} is not a usable kubeconfig ({type(error).__name__}: {error})") from error

    def bearer(self) -> str:
        """The token to show now; `""` for none."""
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.read_text().strip()
        except OSError:
            return self.token  # the answer, 401, says what is wrong

    def tls(self) -> ssl.SSLContext:
        """A new context. Raises `AccessError`."""
        try:
            context = ssl.create_default_context(cadata=self.ca or None)
            if self.insecure:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if self.client_chain:
                memory = os.memfd_create("client-key", os.MFD_CLOEXEC)
                with os.fdopen(memory, "wb") as file:
                    file.write(self.client_chain + b"\n" + self.client_key)
                    file.flush()
                    context.load_cert_chain(f"/proc/self/fd/{memory}")
        except ssl.SSLError as error:
            raise AccessError(f"certificates for {self.server} are not usable: {error}") from error
        return context


def _named(entries: list[dict[str, Any]], name: str, what: str = "") -> dict[str, Any]:
    for entry in entries:
        if entry["name"] == name:
            found = next(value for key, value in entry.items() if key != "name")
            assert isinstance(found, dict)
            return found
    raise KeyError(f"{what or 'entry'} {name!r}")


def _data(path: Path, entry: dict[str, Any], key: str) -> bytes:
    if inline := entry.get(f"{key}-data"):
        return base64.b64decode(inline)
    return (path.parent / entry[key]).read_bytes() if entry.get(key) else b""
