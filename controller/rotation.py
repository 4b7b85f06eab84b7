"""Rotating the CA's root, a step at a time, none before the one before has arrived everywhere.

    add    a new root is trusted beside the old one, which goes on signing
    sign   the new root signs; nodes renew all certificates that it did not sign as soon as they are told
    drop   the old root is not trusted any more

`sign` waits until all nodes have acknowledged both roots, `drop` until all their certificates are renewed or the old
ones have expired. So at every moment each side trusts whatever the other may show, and no connection fails.
"""

from __future__ import annotations

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

    def progress(self) -> Progress:
        """Where it is now, as far as this replica knows."""
        phase = self._authority.material.phase
        step = next(step for step, needed in STEPS.items() if needed == phase)
        return Progress(phase, step, tuple(self._waiting(step)))

    async def take(self, step: str, *, force: bool = False) -> Progress:
        """Take one step. Raises `NotYet`, `CaError`, or what the store raises."""
        kept = await self._store.load()
        if kept is None:
            raise NotYet("there is no CA yet")
        material, version = kept
        if material.phase != STEPS[step]:
            wanted = next(name for name, needed in STEPS.items() if needed == material.phase)
            raise NotYet(f"the CA is in phase {material.phase!r}, where the next step is {wanted!r}, not {step!r}")
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
        nodes = self._nodes()
        away = [name for name in self._register.nodes if (s := nodes.get(name)) is None or not s.connected]
        if step == "add":
            return []
        if step == "sign":
            bundle = self._authority.bundle
            late = [name for name, status in nodes.items() if status.connected and status.trusts != bundle]
            return _named("nodes have not acknowledged the new root yet", late) + _named("nodes are away", away)
        left = self._authority.signing_since + self._longest - self._clock()
        if left <= 0:  # whatever the old root signed has expired
            return []
        current = self._authority.signer
        old = []
        for name, status in nodes.items():
            if status.connected:
                old += [
                    f"{name}: {uid or 'its own'}"
                    for uid in ("", *self._register.uids(name))
                    if status.signers.get(uid) != current
                ]
        rest = f"; waiting for certificates to expire takes another {left / 3600:.1f} h" if old or away else ""
        return _named(f"certificates are not renewed yet{rest}", old) + _named("nodes are away", away)


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    some = ", ".join(sorted(names)[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")
    return [f"{len(names)} {what}: {some}"]
