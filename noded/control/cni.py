"""What the CNI plug-in asks of `noded`, by files: it is a shell script (`redirect/cni/plugin.sh`).

    plug-in  writes requests/ID.new, renames it to ID.request
    noded    renames it to ID.taken (from here on the plug-in waits longer), does it, writes ID.answer, removes ID.taken
    plug-in  reads and removes ID.answer: `0`, or `1` and a CNI error on the lines after

`ready` says that somebody is here to answer. The folder is root's; what stands in the files comes from the container
runtime, and a pod's owner chooses the pod's names only.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from noded.control.failure import Failure, Invalid
from noded.control.files import private_directory, write_atomic
from noded.control.inotify import Watch
from redirect.cni.install import Installer, NotInstalledError

_log = logging.getLogger(__name__)
_MAX_REQUEST = 1024 * 1024
_AT_ONCE = 32
_LOOK_SECONDS = 10.0
_KEEP_SECONDS = 300.0
_TRY_AGAIN_LATER = 11
_LEFTOVERS = ("*.new", "*.request", "*.taken", "*.answer")


@dataclass(frozen=True, slots=True)
class CniRequest:
    """One call of the plug-in."""

    command: str
    uid: str
    """`<namespace>/<name>`."""
    pod: str
    """The pod's own UID; empty if the runtime doesn't tell."""
    netns: str
    addresses: tuple[str, ...]
    """Those of `prevResult`."""


def parse(text: str) -> CniRequest:
    """Read what the plug-in has written; raise `Invalid`."""
    head, _, config = text.partition("\n\n")
    fields = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    names = [fields.get(key, "") for key in ("command", "namespace", "name", "uid", "netns")]
    command, namespace, name, pod, netns = names
    if not (namespace and name):
        raise Invalid("CNI_ARGS names no pod", "use a runtime that sets K8S_POD_NAMESPACE and K8S_POD_NAME")
    addresses = _addresses(config) if command == "ADD" else ()
    return CniRequest(command, f"{namespace}/{name}", pod, netns, addresses)


def _addresses(config: str) -> tuple[str, ...]:
    """Addresses of the interfaces inside the pod. Forms: CNI specification 0.3.0 to 1.1.0, "Success"."""
    try:
        result: Any = json.loads(config)["prevResult"]
        inside = [bool(interface.get("sandbox")) for interface in result.get("interfaces", ())]
        found = []
        for entry in result.get("ips", ()):
            index = entry.get("interface")
            if index is None or (type(index) is int and 0 <= index < len(inside) and inside[index]):
                found.append(str(ipaddress.ip_interface(entry["address"]).ip))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Invalid(f"prevResult makes no sense: {error}", "see what the plug-in before answers") from error
    return tuple(dict.fromkeys(found))


class CniServer:
    """Answers the plug-in. `admit` returns when the pod may start, or raises `Failure`; `gone` is told of ends."""

    def __init__(
        self,
        folder: Path,
        admit: Callable[[CniRequest], Awaitable[None]],
        gone: Callable[[CniRequest], Awaitable[None]],
    ) -> None:
        self._requests, self._ready = folder / "requests", folder / "ready"
        self._admit, self._gone = admit, gone
        self._slots = trio.CapacityLimiter(_AT_ONCE)

    async def run(self) -> None:
        """Serve until cancelled. Those who wait for an answer then see that none will come."""
        private_directory(self._requests.parent)
        private_directory(self._requests)
        self._remove(*_LEFTOVERS)
        try:
            async with trio.open_nursery() as nursery:
                with Watch(self._requests) as watch:
                    self._ready.touch()
                    while True:
                        for path in sorted(self._requests.glob("*.request")):
                            taken = path.with_suffix(".taken")
                            try:
                                path.rename(taken)
                            except FileNotFoundError:
                                continue  # the plug-in has given up
                            nursery.start_soon(self._serve, taken)
                        await watch.changed(_LOOK_SECONDS)
                        self._remove(*_LEFTOVERS[:1], *_LEFTOVERS[3:], older=_KEEP_SECONDS)
        finally:
            self._ready.unlink(missing_ok=True)
            self._remove(*_LEFTOVERS[1:3])

    def _remove(self, *patterns: str, older: float = 0.0) -> None:
        """What a plug-in that was killed has left. A request that nobody took is still its writer's to withdraw."""
        for pattern in patterns:
            for path in self._requests.glob(pattern):
                if not older or _age(path) > older:
                    self._forget(path)

    def _forget(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    async def _serve(self, taken: Path) -> None:
        try:
            async with self._slots:
                answer = await self._answer(taken)
            if answer is not None:
                write_atomic(taken.with_suffix(".answer"), answer)
        except OSError as error:  # the plug-in then sees that none will come, and its pod is tried again
            _log.error("the CNI plug-in got no answer", extra={"request": taken.stem, "error": str(error)})
        finally:
            self._forget(taken)

    async def _answer(self, taken: Path) -> bytes | None:
        """What the plug-in is told, or None if it doesn't wait."""
        version = "1.0.0"
        try:
            with taken.open(encoding="utf-8", errors="replace") as file:
                text = file.read(_MAX_REQUEST)
            request = parse(text)
            if request.command == "DEL":
                await self._gone(request)
                return None
            version = str(json.loads(text.partition("\n\n")[2]).get("cniVersion") or version)
            await self._admit(request)
        except Failure as failure:
            _log.warning("pod not admitted", extra={"request": taken.stem, "error": str(failure)})
            code = 7 if isinstance(failure, Invalid) else _TRY_AGAIN_LATER
            return _error(version, code, failure.message, failure.remedy)
        except Exception as error:
            _log.exception("bug in serving the CNI plug-in")
            return _error(version, _TRY_AGAIN_LATER, f"noded: {type(error).__name__}: {error}", "see its log")
        return b"0\n"


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _error(version: str, code: int, message: str, details: str) -> bytes:
    body = {"cniVersion": version, "code": code, "msg": f"nodemesh: {message}", "details": details}
    return b"1\n" + json.dumps(body).encode() + b"\n"


async def keep_installed(installer: Installer) -> None:
    """Have the plug-in in the runtime's chain for as long as this runs, whoever writes that file anew."""
    said = ""
    while True:
        try:
            installer.conf_dir.mkdir(parents=True, exist_ok=True)
            with Watch(installer.conf_dir) as watch:
                while True:
                    chained = await trio.to_thread.run_sync(installer.ensure)
                    if said != str(chained):
                        _log.info("CNI plug-in is in the chain", extra={"path": str(chained)})
                        said = str(chained)
                    await watch.changed(_LOOK_SECONDS)
        except (OSError, NotInstalledError) as error:
            if said != str(error):
                _log.warning("CNI plug-in not installed", extra={"error": str(error)})
                said = str(error)
        await trio.sleep(1.0)
