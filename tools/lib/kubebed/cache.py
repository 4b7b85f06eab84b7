"""What `build` makes, once for all checkouts and clusters of this machine's user.

Everything in it has its recipe's hash in its name and is never changed once it has that name, so that clusters that are
up can go on using it while a newer one is built.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubebed import debian, image, kubernetes
from kubebed.steps import say, step

_SOURCES = Path(__file__).parent
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
    'rm -rf "$1"/var/cache/* "$1"/var/lib/apt/lists/*',
)
_PYTHON_PACKAGES = ("iptables", "iproute2", "procps", "python3")
_PYTHON_HOOKS = (
    'rm -rf "$1"/var/cache/* "$1"/var/lib/apt/lists/* "$1"/var/log/*.log',
    'rm -rf "$1"/usr/lib/python3.11/test "$1"/usr/lib/python3.11/lib2to3 "$1"/usr/lib/python3.11/pydoc_data',
)
PAUSE, BUSYBOX, PYTHON = "localhost/pause:3", "localhost/busybox:1", "localhost/python:3"


def folder() -> Path:
    """`$XDG_CACHE_HOME/nodemesh/kubebed`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nodemesh" / "kubebed"


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Cache:
    """The parts of a build, by where they are; they may not be there yet."""

    root: Path

    @property
    def kubernetes(self) -> Path:
        """`bin/` with Kubernetes' programs."""
        return self.root / f"kubernetes-{kubernetes.KEY}"

    @property
    def node(self) -> Path:
        """A node's file system, as Debian packages make it."""
        return self.root / f"node-{_key(_NODE_PACKAGES, _NODE_HOOKS, debian.RECIPE)}"

    @property
    def python(self) -> Path:
        """The layer with Python on which the product's image stands."""
        return self.root / f"python-{_key(_PYTHON_PACKAGES, _PYTHON_HOOKS, debian.RECIPE)}.tar"

    @property
    def images(self) -> Path:
        """Archives of the images that every node has."""
        sources = [(_SOURCES / name).read_bytes() for name in ("image.py",)]
        return self.root / f"images-{_key(self.node.name, self.python.name, PAUSE, BUSYBOX, PYTHON, sources)}"

    def dependencies(self, requirements: list[str]) -> Path:
        """The layer with what the project depends on."""
        return self.root / f"dependencies-{_key(self.python.name, requirements)}.tar"

    def program(self, name: str) -> Path:
        """One of Kubernetes' programs, or etcd."""
        return self.node / "usr/bin/etcd" if name == "etcd" else self.kubernetes / "bin" / name

    @property
    def complete(self) -> bool:
        """Whether a cluster can be made from it."""
        return all(path.exists() for path in (self.kubernetes, self.node, self.python, self.images))


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Be the only one who makes anything in the cache; waits for whoever is."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("- waiting for another build to finish")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build() -> Cache:
    """Make what is missing. Raises `KubebedError`."""
    cache = Cache(folder())
    if cache.complete:
        return cache
    with locked(cache.root):
        log = cache.root / "log"
        log.unlink(missing_ok=True)
        if not cache.node.exists():
            with step("making a node's file system from Debian packages"), making(cache.node) as target:
                debian.root(target, list(_NODE_PACKAGES), log, hooks=list(_NODE_HOOKS))
        if not cache.python.exists():
            with step("making an image's file system with Python"), making(cache.python) as target:
                debian.root(target, list(_PYTHON_PACKAGES), log, hooks=list(_PYTHON_HOOKS))
        if not cache.images.exists():
            with step("making images"), making(cache.images) as target:
                _images(cache, target)
        if not cache.kubernetes.exists():
            work = cache.root / f"work-{kubernetes.KEY}"
            work.mkdir(exist_ok=True)
            with making(cache.kubernetes) as target:
                kubernetes.build(target, work)
                _for_nodes(target)
            shutil.rmtree(work)
    return cache


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


def architecture() -> str:
    """As Debian, and OCI, call it."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def _images(cache: Cache, target: Path) -> None:
    scratch = target / "scratch"
    for name in ("pause", "busybox"):
        (scratch / name / "bin").mkdir(parents=True)
    shutil.copy(cache.node / "usr/bin/catatonit", scratch / "pause/bin/pause")
    shutil.copy(cache.node / "bin/busybox", scratch / "busybox/bin/busybox")
    applets = subprocess.run([cache.node / "bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        if applet != "busybox":
            (scratch / "busybox/bin" / applet).symlink_to("busybox")
    for name in ("etc", "tmp"):
        (scratch / "busybox" / name).mkdir()
    (scratch / "busybox/tmp").chmod(0o1777)
    (scratch / "busybox/etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    commands = {"pause": (PAUSE, ["/bin/pause", "-P"]), "busybox": (BUSYBOX, ["/bin/sh"])}
    for name, (reference, command) in commands.items():
        image.layer(scratch / name, scratch / f"{name}.tar")
        image.archive(target / f"{name}.tar", reference, [scratch / f"{name}.tar"], command, architecture())
    image.archive(target / "python.tar", PYTHON, [cache.python], ["python3"], architecture())
    shutil.rmtree(scratch)
