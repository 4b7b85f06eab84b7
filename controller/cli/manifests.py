"""Files of resources as the user names them, to what the API takes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from mesh.present.failure import Exit, Failure

_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_BYTES = 16 * 1024 * 1024


def read(names: Iterable[str]) -> dict[str, str]:
    """Text by file name: of files, of the manifests directly in directories (sorted), and of `-`, standard input.

    Raises `Failure` for a file that cannot be read, is not UTF-8, or is too big to be a manifest.
    """
    sources: dict[str, str] = {}
    for name in names:
        if name == "-":
            sources["<stdin>"] = _decode("<stdin>", sys.stdin.buffer.read(_MAX_BYTES + 1))
            continue
        path = Path(name)
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix in _SUFFIXES and entry.is_file())
            if not found:
                raise Failure(
                    f"{name}: no {', '.join('*' + s for s in _SUFFIXES)} in this directory", status=Exit.USAGE
                )
            for entry in found:
                sources[str(entry)] = _read(entry)
        else:
            sources[name] = _read(path)
    return sources


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _decode(str(path), file.read(_MAX_BYTES + 1))
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", status=Exit.USAGE) from None


def _decode(name: str, data: bytes) -> str:
    if len(data) > _MAX_BYTES:
        raise Failure(f"{name}: more than {_MAX_BYTES >> 20} MiB", "apply it in parts", Exit.USAGE)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{name}: not UTF-8 at byte {error.start}", "is it a YAML file?", Exit.USAGE) from None
