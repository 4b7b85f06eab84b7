"""Revisions of the world and what each node is told of them.

A change is announced with `touch`; the world is then built anew, once for a burst of changes, and compared with the one
before. Each object remembers the revision it last changed in, so that a node that has an earlier revision of the same
epoch gets only what is newer. An epoch is one run of the controller.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import trio

from controller.translate import World
from mesh.authz.groups import P, by_key
from mesh.authz.selection import applies
from mesh.model import MeshConfig, PeerAuth, Policy, RequestAuth
from mesh.sync import FromController, Update, frame

_log = logging.getLogger(__name__)
_SETTLE_SECONDS = 0.02
_TURNS = 4
"""Of trio's scheduler, until every session has made its update and handed it to the kernel."""
_MAX_TOMBSTONES = 10_000

_PREFIXES = {"w": "workloads", "s": "services", "r": "routes", "t": "traffic"}
"""What objects' keys in deltas begin with, and where the world has them."""

Scoped = tuple[tuple[Policy, ...], tuple[PeerAuth, ...], tuple[RequestAuth, ...]]
"""The policies that concern one node."""


@dataclass(slots=True)
class _Delta:
    """Keys, without prefix, of what changed since a revision; with it of what vanished."""

    changed: dict[str, list[str]] = field(default_factory=lambda: {prefix: [] for prefix in _PREFIXES})
    removed: list[str] = field(default_factory=list)


class Publisher:
    """Holds the current world. `run` must be running for `touch` to have an effect."""

    def __init__(
        self,
        build: Callable[[], World],
        config: MeshConfig,
        ranges: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self._build, self.config, self._ranges = build, config, ranges
        self.epoch = secrets.token_hex(8)
        self.revision = 0
        self.world = World()
        self.rebuilds = 0
        self._log: OrderedDict[str, int] = OrderedDict()
        """Object key (as in `Update.removed`) to the revision it last changed in or vanished, oldest first."""
        self._gone: OrderedDict[str, None] = OrderedDict()
        """Those of them that vanished, oldest first."""
        self._floor = 0
        """Below this revision a delta would miss a removal that is no longer remembered."""
        self._deltas: dict[int, _Delta] = {}
        self._frames: dict[tuple[int, bool, bool], bytes] = {}
        self._scoped: dict[str, Scoped] = {}
        self._local: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
        self._dirty = trio.Event()
        self._published = trio.Event()
        self.touches = 0
        """How many changes were announced; with `covered` a caller learns when its own is out."""
        self.covered = 0
        """How many of them the current revision covers."""
        self.rebuild()

    def touch(self) -> None:
        """Something that the world is built from has changed."""
        self.touches += 1
        self._dirty.set()

    async def run(self) -> None:
        """Rebuild after changes until cancelled. Spends about half of a core on it, telling the nodes included."""
        while True:
            await self._dirty.wait()
            await trio.sleep(_SETTLE_SECONDS)
            started = time.thread_time()
            self.rebuild()
            for _ in range(_TURNS):
                await trio.lowlevel.checkpoint()
            await trio.sleep(2 * (time.thread_time() - started))  # their answers take as long again

    def rebuild(self) -> None:
        """Build the world and, if anything was announced since the last time, make it the next revision."""
        self._dirty = trio.Event()
        covered = self.touches
        new, old = self._build(), self.world
        if self._ranges is not None:
            self.config = replace(self.config, ranges=self._ranges())
        self.revision += 1
        self.rebuilds += 1
        for prefix, name in _PREFIXES.items():
            self._note(f"{prefix}:", getattr(old, name), getattr(new, name))
        while len(self._gone) > _MAX_TOMBSTONES:
            key, _ = self._gone.popitem(last=False)
            self._floor = max(self._floor, self._log.pop(key))
        self.world, self.covered = new, covered
        self._deltas, self._frames, self._scoped, self._local = {}, {}, {}, {}
        for uid, workload in new.workloads.items():
            if workload.meshed:
                self._local.setdefault(workload.node, []).append((workload.namespace, new.labels[uid]))
        self._published.set()
        self._published = trio.Event()

    def _note(self, prefix: str, old: Mapping[str, object], new: Mapping[str, object]) -> None:
        for key in old.keys() - new.keys():
            self._stamp(prefix + key)
            self._gone[prefix + key] = None
        for key, value in new.items():
            if old.get(key) != value:
                self._stamp(prefix + key)
                self._gone.pop(prefix + key, None)

    def _stamp(self, key: str) -> None:
        self._log[key] = self.revision
        self._log.move_to_end(key)

    async def settled(self) -> None:
        """Wait until the current revision covers all changes announced before this call."""
        wanted = self.touches
        while self.covered < wanted:
            await self._published.wait()

    async def newer_than(self, revision: int) -> None:
        """Wait until the current revision is not this one."""
        while self.revision == revision:
            await self._published.wait()

    def update(self, node: str, base: tuple[str, int] | None, known: Scoped | None = None) -> Update:
        """What brings a node from `base` (epoch, revision) to now; everything if that is not possible.

        `known` is what it has of `scoped`; of policies it is told what is different, or, without `known`, all.
        """
        scoped = self.scoped(node)
        if base is None or base[0] != self.epoch or not self._floor <= base[1] <= self.revision:
            world = self.world
            return Update(
                self.epoch,
                self.revision,
                0,
                True,
                self.config,
                tuple(world.workloads.values()),
                tuple(world.services.values()),
                (),
                True,
                *scoped[:2],
                tuple(world.routes.values()),
                tuple(world.traffic.values()),
                scoped[2],
            )
        delta = self._since(base[1])
        told, gone = (scoped, []) if known is None else _difference(known, scoped)
        return Update(
            self.epoch,
            self.revision,
            base[1],
            False,
            self.config,
            tuple(self.world.workloads[uid] for uid in delta.changed["w"]),
            tuple(self.world.services[key] for key in delta.changed["s"]),
            (*delta.removed, *gone),
            known is None,
            *told[:2],
            tuple(self.world.routes[key] for key in delta.changed["r"]),
            tuple(self.world.traffic[key] for key in delta.changed["t"]),
            told[2],
        )

    def frame(self, update: Update) -> bytes:
        """An update that was made just now, for the wire. It is encoded once for all nodes that are sent the same."""
        own = update.policies or update.peer_auths or update.request_auths
        if own or (update.changes_policies and not update.has_policies):
            return frame(update, FromController)
        key = (update.base, update.full, update.has_policies)
        if (made := self._frames.get(key)) is None:
            made = self._frames[key] = frame(update, FromController)
        return made

    def _since(self, base: int) -> _Delta:
        if (cached := self._deltas.get(base)) is not None:
            return cached
        delta = _Delta()
        for key, revision in reversed(self._log.items()):
            if revision <= base:
                break
            if key in self._gone:
                delta.removed.append(key)
            else:
                prefix, _, rest = key.partition(":")
                delta.changed[prefix].append(rest)
        return self._deltas.setdefault(base, delta)

    def scoped(self, node: str) -> Scoped:
        """The policies that workloads of this node can need."""
        if (cached := self._scoped.get(node)) is None:
            local, root = self._local.get(node, ()), self.config.root_namespace
            near = {root, *(namespace for namespace, _labels in local)}

            def needed(policy: Policy | PeerAuth | RequestAuth) -> bool:
                return policy.namespace in near and any(
                    applies(policy, namespace=namespace, labels=labels, root_namespace=root)
                    for namespace, labels in local
                )

            cached = (
                tuple(filter(needed, self.world.policies)),
                tuple(filter(needed, self.world.peer_auths)),
                tuple(filter(needed, self.world.request_auths)),
            )
            self._scoped[node] = cached
        return cached


def _difference(known: Scoped, now: Scoped) -> tuple[Scoped, list[str]]:
    """The policies that a node is to be told of, and the names of those that go (as in `Update.removed`)."""
    policies, gone = _changed("p:", known[0], now[0])
    peer_auths, gone_too = _changed("a:", known[1], now[1])
    request_auths, gone_as_well = _changed("q:", known[2], now[2])
    return (policies, peer_auths, request_auths), gone + gone_too + gone_as_well


def _changed(prefix: str, known: tuple[P, ...], now: tuple[P, ...]) -> tuple[tuple[P, ...], list[str]]:
    if known == now:
        return (), []
    old, new = by_key(known), by_key(now)
    told = tuple(policy for key, policies in new.items() if old.get(key) != policies for policy in policies)
    return told, [prefix + key for key in old if key not in new]
