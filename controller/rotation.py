"""Rotating the CA's root, a step at a time, none before the one before has arrived everywhere.

    add    a new root is trusted beside the old one, which goes on signing
    sign   the new root signs; nodes renew all certificates that it did not sign as soon as they are told
    drop   the old root is not trusted any more

`sign` waits until all nodes have acknowledged both roots, `drop` until all their certificates are renewed or the old
ones have expired. So at every moment each side trusts whatever the other may show, and no connection fails.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.ca import Authority
from controller.register import Register
from controller.session import NodeStatus
from controller.trust import CaStore, Conflict, add_root, drop_old, sign_with_new

_log = logging.getLogger(__name__)
_MAX_NAMED = 10
STEPS = {"add": "idle", "sign": "added", "drop": "signing"}
"""Each step, and the phase in which it may be taken."""


class NotYet(Exception):
    """The step cannot be taken now; the message says why, `forcible` whether it can be taken all the same."""

    def __init__(self, message: str, *, forcible: bool = False) -> None:
        super().__init__(message)
        self.forcible = forcible


@dataclass(frozen=True, slots=True)
class Report:
    """What one replica knows of nodes. It stays true: neither roots nor certificates go back."""

    bundle: str
    """SHA-256 of the roots that `trusting` have acknowledged, hex."""
    signer: str
    """The key that signed all certificates of `renewed`."""
    trusting: tuple[str, ...]
    renewed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rotation is."""

    phase: str
    next: str
    waiting: tuple[str, ...]
    """What stands against the next step, for people."""


class Rotation:
    """Of one authority. `nodes` are connections by node; `longest` is the longest life of a certificate, seconds."""

    def __init__(
        self,
        store: CaStore,
        authority: Authority,
        register: Register,
        nodes: Callable[[], Mapping[str, NodeStatus]],
        *,
        where: str,
        longest: float,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._store, self._authority, self._register, self._nodes = store, authority, register, nodes
        self._where, self._longest, self._clock, self._changed = where, longest, clock, changed
        self.others: tuple[Report, ...] = ()
        """What other replicas know of their nodes."""

    @property
    def phase(self) -> str:
        """Of the CA, as this replica has it."""
        return self._authority.material.phase

    def report(self) -> Report:
        """What this replica knows of its nodes."""
        bundle, signer = self._authority.bundle, self._authority.signer
        here = [(name, status) for name, status in self._nodes().items() if status.connected]
        return Report(
            hashlib.sha256(bundle).hexdigest(),
            signer,
            tuple(sorted(name for name, status in here if status.trusts == bundle)),
            tuple(sorted(name for name, status in here if not self._old(name, status))),
        )

    def _old(self, node: str, status: NodeStatus) -> list[str]:
        """The workloads of a node (`""`: itself) whose certificates were not signed by what signs now."""
        signer = self._authority.signer
        return [uid for uid in ("", *self._register.uids(node)) if status.signers.get(uid) != signer]

    def progress(self) -> Progress:
        """Where it is now, as far as this replica knows."""
        step = next(step for step, needed in STEPS.items() if needed == self.phase)
        return Progress(self.phase, step, tuple(self._waiting(step)))

    async def take(self, step: str, *, force: bool = False) -> Progress:
        """Take one step. Raises `NotYet`, `CaError`, or what the store raises."""
        kept = await self._store.load()
        if kept is None:
            raise NotYet("there is no CA yet")
        material, version = kept
        if material.phase != STEPS[step]:
            wanted = next(name for name, needed in STEPS.items() if needed == material.phase)
            raise NotYet(f"the CA is in phase {material.phase!r}, where the next step is {wanted!r}, not {step!r}")
        if material != self._authority.material:
            raise NotYet("another replica has just taken a step: try again")
        if not force and (waiting := list(self._waiting(step))):
            raise NotYet("; ".join(waiting), forcible=True)
        now = self._clock()
        match step:
            case "add":
                material = add_root(material, self._authority.trust_domain, now)
            case "sign":
                material = sign_with_new(material)
            case _:
                material = drop_old(material)
        try:
            await self._store.save(material, version)
        except Conflict as error:
            raise NotYet(f"{error}: try again") from error
        self._authority.adopt(material, self._where, now)
        self._changed()
        _log.warning("CA rotation", extra={"step": step, "phase": material.phase, "forced": force})
        return self.progress()

    def _waiting(self, step: str) -> list[str]:
        if step == "add":
            return []
        own, nodes = self.report(), self._nodes()
        reports = (own, *self.others)
        here = {name: status for name, status in nodes.items() if status.connected}
        if step == "sign":
            done = {name for r in reports if r.bundle == own.bundle for name in r.trusting}
            late = [name for name in here if name not in done]
            away = [name for name in self._register.nodes if name not in done and name not in here]
            return _named("nodes have not acknowledged the new root yet", late) + _named("nodes are away", away)
        left = self._authority.signing_since + self._longest - self._clock()
        if left <= 0:  # whatever the old root signed has expired
            return []
        done = {name for r in reports if r.signer == own.signer for name in r.renewed}
        old = [
            f"{name}: {uid or 'its own'}"
            for name, status in here.items()
            if name not in done
            for uid in self._old(name, status)
        ]
        away = [name for name in self._register.nodes if name not in done and name not in here]
        rest = f"; they expire within {left / 3600:.1f} h" if old or away else ""
        return _named(f"certificates are not renewed yet{rest}", old) + _named("nodes are away", away)


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    some = ", ".join(sorted(names)[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")
    return [f"{len(names)} {what}: {some}"]
