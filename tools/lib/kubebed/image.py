"""Container images as OCI archives (OCI image-spec: layout, manifest, config), made without a registry or a builder."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CREATED = "2020-01-01T00:00:00Z"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def layer(folder: Path, target: Path) -> None:
    """A layer's archive of everything in `folder`, owned by root; the same content gives the same bytes."""

    def normal(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = 0
        return info

    with tarfile.open(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=normal)


def archive(
    target: Path, reference: str, layers: Sequence[Path], command: Sequence[str], architecture: str, version: str = ""
) -> None:
    """Write an image that `ctr images import` knows as `reference`; `layers`: uncompressed archives, lowest first."""
    descriptors = [_descriptor("application/vnd.oci.image.layer.v1.tar", *_digest(path)) for path in layers]
    config = {
        "created": _CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": [_PATH],
            "Cmd": list(command),
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.version": version} if version else {},
        },
        "rootfs": {"type": "layers", "diff_ids": [descriptor["digest"] for descriptor in descriptors]},
        "history": [{"created": _CREATED, "created_by": "kubebed"} for _ in layers],
    }
    with tarfile.open(target, "w") as file:
        _add(file, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        config_descriptor = _blob(file, "application/vnd.oci.image.config.v1+json", config)
        manifest = {"schemaVersion": 2, "config": config_descriptor, "layers": descriptors}
        entry = _blob(file, "application/vnd.oci.image.manifest.v1+json", manifest)
        entry["annotations"] = {"io.containerd.image.name": reference}
        _add(file, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for path, descriptor in zip(layers, descriptors, strict=True):
            file.add(path, _name(descriptor))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _name(descriptor: dict[str, Any]) -> str:
    return f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"


def _blob(file: tarfile.TarFile, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    encoded = json.dumps(content).encode()
    descriptor = _descriptor(kind, "sha256:" + hashlib.sha256(encoded).hexdigest(), len(encoded))
    _add(file, _name(descriptor), encoded)
    return descriptor


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    file.addfile(info, io.BytesIO(content))
