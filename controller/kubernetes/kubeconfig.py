"""A user's kubeconfig to `Access`, as kubectl reads it.

https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/: there may be several files, of
which the first to say something counts; paths are relative to the file they stand in. A user may log in by a program
(`exec`), as managed clusters have it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from controller.kubernetes.access import Access, AccessError

_LOGIN_SECONDS = 60
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


def load(paths: list[Path], context: str = "") -> Access:
    """As the (current) context of these files says. Raises `AccessError`."""
    contexts, clusters, users = _Entries("context"), _Entries("cluster"), _Entries("user")
    current = context
    for path in paths:
        try:
            config = yaml.safe_load(path.read_text()) or {}
            current = current or config.get("current-context") or ""
            for entries in (contexts, clusters, users):
                entries.add(path, config)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise AccessError(f"{path} is not a kubeconfig ({type(error).__name__}: {error})") from error
    if not current:
        raise AccessError(f"{paths[0]} has no current context: choose one, known are {contexts.names()}")
    _, chosen = contexts.get(current)
    folder, cluster = clusters.get(str(chosen.get("cluster")))
    user_folder, user = users.get(str(chosen.get("user"))) if chosen.get("user") else (folder, {})
    if unusable := user.keys() & {"auth-provider", "username"}:
        raise AccessError(f"user {chosen['user']!r} logs in by {min(unusable)!r}: use a token, certificate or exec")
    if "exec" in user:
        user = _log_in(user["exec"], user_folder)
    token_file = user.get("tokenFile")
    try:
        return Access(
            cluster["server"],
            _data(folder, cluster, "certificate-authority").decode(),
            user.get("token") or "",
            user_folder / token_file if token_file else None,
            _data(user_folder, user, "client-certificate"),
            _data(user_folder, user, "client-key"),
            bool(cluster.get("insecure-skip-tls-verify")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AccessError(f"context {current!r} is not usable ({type(error).__name__}: {error})") from error


class _Entries:
    """The entries of one list of all files, by name, with the folder of the file each is from."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: dict[str, tuple[Path, dict[str, Any]]] = {}

    def add(self, path: Path, config: Mapping[str, Any]) -> None:
        for entry in config.get(f"{self._kind}s") or ():
            self._found.setdefault(entry["name"], (path.parent, entry.get(self._kind) or {}))

    def names(self) -> str:
        return ", ".join(sorted(self._found)) or "none"

    def get(self, name: str) -> tuple[Path, dict[str, Any]]:
        if name not in self._found:
            raise AccessError(f"the kubeconfig has no {self._kind} {name!r}; known are {self.names()}")
        return self._found[name]


def _data(folder: Path, entry: Mapping[str, Any], key: str) -> bytes:
    if inline := entry.get(f"{key}-data"):
        # A certificate or key that a login program gave is PEM as it stands.
        return inline.encode() if "-----BEGIN" in inline else base64.b64decode(inline)
    return (folder / entry[key]).read_bytes() if entry.get(key) else b""


def _log_in(plugin: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run the program, which may talk to the user, and read its ExecCredential."""
    version, command = plugin.get("apiVersion"), str(plugin.get("command") or "")
    if version not in _EXEC_VERSIONS:
        raise AccessError(f"exec with apiVersion {version!r} is not supported: use {_EXEC_VERSIONS[0]}")
    program = str(folder / command) if "/" in command else command
    asked = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": True}}
    stated = {entry["name"]: entry["value"] for entry in plugin.get("env") or ()}
    try:
        done = subprocess.run(
            [program, *(plugin.get("args") or ())],
            env={**os.environ, **stated, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            stdout=subprocess.PIPE,
            timeout=_LOGIN_SECONDS,
            check=True,
        )
        status = json.loads(done.stdout)["status"]
    except FileNotFoundError as error:
        hint = plugin.get("installHint") or "install it, or choose another context"
        raise AccessError(f"{command}, by which the user logs in, is not here: {hint}") from error
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise AccessError(f"{command}, by which the user logs in, failed ({type(error).__name__}: {error})") from error
    return {
        "token": status.get("token") or "",
        "client-certificate-data": status.get("clientCertificateData"),
        "client-key-data": status.get("clientKeyData"),
    }
