"""`noded --clean-up`: leave nothing of ours on this host. For uninstalling, when the daemon has stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio

from noded.config import Config
from noded.control.capture import Namespaces
from noded.control.daemon import only_one
from noded.control.failure import CannotRun, Failure
from noded.control.files import private_directory
from noded.control.kubernetes import installer
from noded.control.records import Records

_log = logging.getLogger(__name__)


async def run(config: Config, pods: bool, *, namespaces: Namespaces | None = None) -> None:
    """Remove the CNI plug-in, rules of the host, and `runDir`, `keyDir` and `stateDir`; with `pods` capture, too.

    Of these folders what noded has put there, and they themselves if nothing else is left in them. Workloads that stay
    captured are cut off, and only the end of their namespace frees them. All of it is tried, whatever fails;
    `CannotRun` says then what is left. It may be repeated.
    """
    private_directory(config.run_dir)
    left: list[str] = []
    with only_one(config.run_dir):
        namespaces = namespaces or Namespaces()
        if config.kubernetes:
            try:
                await trio.to_thread.run_sync(installer(config).uninstall)
            except OSError as error:
                left.append(f"the CNI plug-in ({error})")
            try:
                await namespaces.undo_probes()
            except Failure as error:
                left.append(f"rules for probes ({error})")
        if pods:
            left += await _release(config, namespaces)
        if not left:
            for folder, names in (
                (config.key_dir, ("*.pem*", "roots.crt*", "joined-with*")),
                (config.state_dir, ("snapshot.msgpack*",)),
                (config.run_dir, ("enrolments", "cni", "noded.sock", "noded.lock")),
            ):
                await trio.to_thread.run_sync(_remove, folder, names)
    if left:
        raise CannotRun(f"not removed: {'; '.join(left)}", "see what stands in the way, then run it again")
    _log.info("cleaned up")


async def _release(config: Config, namespaces: Namespaces) -> list[str]:
    left = []
    for record in Records(config.run_dir / "enrolments").load():
        try:
            fd = namespaces.open(record.netns)
        except Failure:
            continue  # it has ended, and its rules with it
        try:
            if namespaces.identify(fd) == record.namespace_id:
                await namespaces.undo(fd, record.mark)
        except Failure as error:
            left.append(f"capture of {record.workload.uid} ({error})")
        finally:
            os.close(fd)
    return left


def _remove(folder: Path, names: Sequence[str]) -> None:
    """What has these names in a folder, and the folder unless it is a mount or holds something else."""
    for path in [path for name in names for path in folder.glob(name)]:
        if path.is_dir() and not path.is_symlink():
            _remove(path, ("*",))
        else:
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
