"""Puts the CNI plug-in on the host, at the end of the chain that the container runtime uses, and takes it away again.

Runtimes take the first file of their folder by name (libcni's `ConfFiles`; containerd, CRI-O and kubelet agree).
A `.conflist` gets one more entry. A `.conf` holds a single plug-in and can't be chained: it is set aside, and a
`.conflist` of the same name takes its place. What a file was before is kept, so that `uninstall` puts back the bytes.
Whoever owns the file may write it anew at any time: `ensure` is called again then.
"""

from __future__ import annotations

import json
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "nodemesh-cni"
_ENTRY = {"type": NAME}
_SUFFIX = f".{NAME}.new"
"""Of unfinished files: no runtime reads it."""


class NotInstalledError(Exception):
    """The plug-in can't be put in place now. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Installer:
    """All methods block, may be repeated, and leave files whole at any moment. They raise `OSError`."""

    bin_dir: Path
    conf_dir: Path
    state_dir: Path
    """Kept across reboots: `namespaces/` holds a file for each namespace of the mesh, `before/` what files were."""
    exchange_dir: Path
    """Where plug-in and `noded` meet: `requests/`, and `ready` while `noded` runs."""

    @property
    def namespaces(self) -> Path:
        """Folder of markers: where `noded` is away, no pod of these namespaces starts."""
        return self.state_dir / "namespaces"

    @property
    def _before(self) -> Path:
        return self.state_dir / "before"

    def ensure(self) -> Path:
        """Put plug-in and chain in place if they aren't; the configuration that holds it.

        Raises `NotInstalledError` if there is no configuration to chain into: look again when the folder changes.
        """
        for folder in (self.namespaces, self._before):
            folder.mkdir(parents=True, exist_ok=True)
        self._write(self.bin_dir / NAME, self._script(), 0o755)
        for path in self._configurations():
            text = path.read_bytes()
            try:
                chained = _chained(path, text)
            except ValueError:
                continue  # runtimes pass it over as well
            if chained is None:
                return path
            self._write(self._before / path.name, text, path.stat().st_mode & 0o777)
            target = path if path.suffix == ".conflist" else path.with_suffix(".conflist")
            self._write(target, chained, path.stat().st_mode & 0o777)
            if target != path:
                path.unlink()
            return target
        raise NotInstalledError(
            f"{self.conf_dir} holds no CNI configuration; install the cluster's network, or set kubernetes.cniConfDir"
        )

    def uninstall(self) -> None:
        """Put back what was there, and leave nothing of ours."""
        kept = {path.name: path for path in self._before.glob("*")} if self._before.is_dir() else {}
        for path in self._configurations():
            before = self._origin(path, kept)
            if before is not None:
                origin = path.with_name(before.name)
                if origin == path or not origin.exists():
                    self._write(origin, before.read_bytes(), before.stat().st_mode & 0o777)
                if origin != path:
                    path.unlink()
            elif (bare := _bare(path.read_bytes())) is not None:
                self._write(path, bare, path.stat().st_mode & 0o777)
        (self.bin_dir / NAME).unlink(missing_ok=True)
        for folder in (self._before, self.namespaces):
            if folder.is_dir():
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        if self.state_dir.is_dir() and not any(self.state_dir.iterdir()):
            with suppress(OSError):  # in a container it is a mount, which stays
                self.state_dir.rmdir()

    def _origin(self, path: Path, kept: dict[str, Path]) -> Path | None:
        """What `path` was made from, unless somebody has changed it since."""
        now = path.read_bytes()
        for name in (path.name, path.with_suffix(".conf").name, path.with_suffix(".json").name):
            try:
                if name in kept and _chained(Path(name), kept[name].read_bytes()) == now:
                    return kept[name]
            except ValueError:
                continue
        return None

    def _configurations(self) -> list[Path]:
        """In the order in which runtimes look at them."""
        if not self.conf_dir.is_dir():
            return []
        names = sorted(path.name for path in self.conf_dir.iterdir() if path.is_file())
        return [self.conf_dir / name for name in names if name.endswith((".conf", ".conflist", ".json"))]

    def _script(self) -> bytes:
        text = (Path(__file__).parent / "plugin.sh").read_text()
        for name, path in (
            ("requests", self.exchange_dir / "requests"),
            ("ready", self.exchange_dir / "ready"),
            ("namespaces", self.namespaces),
        ):
            text = text.replace(f"@{name}@", shlex.quote(str(path)))
        return text.encode()

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        """Replace `path`, all at once, unless it is as it should be."""
        try:
            if path.read_bytes() == data and path.stat().st_mode & 0o777 == mode:
                return
        except FileNotFoundError:
            pass
        unfinished = path.with_name(f".{path.name}{_SUFFIX}")
        unfinished.unlink(missing_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(data)
                file.flush()
                os.fsync(fd)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def _chained(path: Path, text: bytes) -> bytes | None:
    """The configuration with our plug-in last, as a list; None if it is so already. Raises `ValueError`."""
    parsed = _object(text)
    if path.suffix == ".conflist":
        plugins = _plugins(parsed)
        if plugins[-1].get("type") == NAME:
            return None
        others = [plugin for plugin in plugins if plugin.get("type") != NAME]
        return _encoded({**parsed, "plugins": [*others, _ENTRY]})
    if not isinstance(parsed.get("type"), str):
        raise ValueError("no plug-in's type")
    plugin = {key: value for key, value in parsed.items() if key not in ("cniVersion", "name")}
    head: dict[str, Any] = {key: parsed[key] for key in ("cniVersion", "name") if key in parsed}
    return _encoded({**head, "plugins": [plugin, _ENTRY]})


def _bare(text: bytes) -> bytes | None:
    """The list without our plug-in; None if there is nothing to change."""
    try:
        parsed = _object(text)
        plugins = _plugins(parsed)
    except ValueError:
        return None
    others = [plugin for plugin in plugins if plugin.get("type") != NAME]
    return _encoded({**parsed, "plugins": others}) if len(others) < len(plugins) else None


def _object(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(parsed, dict):
        raise ValueError("no JSON object")
    return parsed


def _plugins(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    plugins = parsed.get("plugins")
    if not isinstance(plugins, list) or not plugins or not all(isinstance(plugin, dict) for plugin in plugins):
        raise ValueError("no list of plug-ins")
    return plugins


def _encoded(parsed: dict[str, Any]) -> bytes:
    return (json.dumps(parsed, indent=2, ensure_ascii=False) + "\n").encode()
