"""How to reach an API server, and as whom: from inside a pod, or by a kubeconfig (`kubeconfig.py`).

A client key stays in memory: `ssl` loads it through a memory file, so nothing secret is written to a disk.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

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
