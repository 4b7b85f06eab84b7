"""What `build` makes, once for all checkouts and clusters of this machine's user: `$XDG_CACHE_HOME/nodemesh/kubebed`.

Everything in it has its recipe's hash in its name and is never changed once it has that name, so that clusters that are
up can go on using it while a newer one is built.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubebed import debian, images, kubernetes
from kubebed.spec import RUN
from kubebed.steps import say, step

_NODE_PACKAGES = (
    "busybox-static",
    "catatonit",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "etcd-server",
    "ethtool",
    "iproute2",
    "iptables",
    "mount",
    "procps",
    "runc",
    "tcpdump",
)
_NODE_HOOKS = (
    # Where other distributions have them, and what a CNI plug-in's installer mounts.
    'mkdir -p "$1/opt/cni/bin" "$1/etc/cni/net.d" && cp -L "$1"/usr/lib/cni/* "$1/opt/cni/bin/"',
)
_PYTHON_PACKAGES = ("iptables", "iproute2", "procps", "python3")
_PYTHON_HOOKS = (
    'rm -rf "$1"/usr/lib/python3.11/test "$1"/usr/lib/python3.11/lib2to3 "$1"/usr/lib/python3.11/pydoc_data',
)
_KEPT_SECONDS = 30 * 24 * 3600


def folder() -> Path:
    """`$XDG_CACHE_HOME/nodemesh/kubebed`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nodemesh" / "kubebed"


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Parts:
    """What clusters are made from: where each part is, or will be."""

    kubernetes: Path
    """`bin/` has its programs, `node/` is the layer of a node's file system with those that run there."""
    node: Path
    """The layer below, which Debian packages make."""
    python: Path
    """The archive of the layer that images with Python stand on."""
    images: Path
    """Archives of the images that every node has."""

    def program(self, name: str) -> Path:
        """One of Kubernetes' programs, or etcd."""
        return self.node / "usr/bin/etcd" if name == "etcd" else self.kubernetes / "bin" / name

    @property
    def paths(self) -> dict[str, str]:
        """For a record of what a cluster was made from."""
        return {key: str(value) for key, value in vars(self).items()}


def _planned() -> Parts:
    root = folder()
    node = root / f"node-{_key(_NODE_PACKAGES, _NODE_HOOKS, debian.RECIPE)}"
    python = root / f"python-{_key(_PYTHON_PACKAGES, _PYTHON_HOOKS, debian.RECIPE)}.tar"
    archives = root / f"images-{_key(node.name, python.name, images.RECIPE)}"
    return Parts(root / f"kubernetes-{kubernetes.KEY}", node, python, archives)


def dependencies(requirements: list[str]) -> Path:
    """The archive of the layer with what the project depends on, on that with Python."""
    return folder() / f"dependencies-{_key(_planned().python.name, requirements)}.tar"


def log() -> Path:
    """What the programs said that made the parts."""
    return folder() / "log"


@contextmanager
def locked() -> Iterator[None]:
    """Be the only one who makes anything in the cache; waits for whoever is."""
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("- waiting for another build to finish")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build() -> Parts:
    """Make what is missing. Raises `KubebedError`."""
    parts = _planned()
    with locked():
        if not parts.node.exists():
            with step("making a node's file system from Debian packages"), making(parts.node) as target:
                debian.root(target, list(_NODE_PACKAGES), log(), hooks=list(_NODE_HOOKS))
        if not parts.python.exists():
            with step("making an image's file system with Python"), making(parts.python) as target:
                debian.root(target, list(_PYTHON_PACKAGES), log(), hooks=list(_PYTHON_HOOKS))
        if not parts.images.exists():
            with step("making images"), making(parts.images) as target:
                images.make(parts.node, parts.python, target)
        if not parts.kubernetes.exists():
            work = folder() / f"work-{kubernetes.KEY}"
            work.mkdir(exist_ok=True)
            with making(parts.kubernetes) as target:
                kubernetes.build(target, work)
                _for_nodes(target)
            shutil.rmtree(work)
        for path in parts.paths.values():
            os.utime(path)
        _prune()
    return parts


def _prune() -> None:
    """Remove what no build has asked for in a month, and no cluster that is up was made from."""
    in_use = "".join(file.read_text() for file in RUN.glob("*/spec.json"))
    for path in folder().iterdir():
        if path.stat().st_mtime < time.time() - _KEPT_SECONDS and path.name != "lock" and str(path) not in in_use:
            _remove(path)


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """A place to make something in, that gets its name when it is complete."""
    unfinished = target.with_name(f"unfinished.{target.name}")
    _remove(unfinished)
    yield unfinished
    unfinished.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _for_nodes(target: Path) -> None:
    """`node/`: a layer that puts the programs of a node where they belong."""
    programs = target / "node/usr/local/bin"
    programs.mkdir(parents=True)
    for name in ("kubelet", "kube-proxy"):
        os.link(target / "bin" / name, programs / name)
