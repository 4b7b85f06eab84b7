"""The certificates of the node and its workloads: fetched when needed, renewed at half-life, kept while valid."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from mesh.identity import IdentityError, parse_node_uri, renew_at
from mesh.sync import Signed
from noded.control import credential
from noded.control.credential import Credential, CredentialError
from noded.control.failure import Failure
from noded.control.keystore import KeyStore
from noded.link import Certificate

_log = logging.getLogger(__name__)
_FIRST_RETRY, _LAST_RETRY = 1.0, 300.0
_IN_FLIGHT = 30.0  # while one task asks, the renewal loop does not
_LOOK_EVERY = 60.0  # wall clocks jump, monotonic sleeps don't notice

Sign = Callable[[str, bytes], Awaitable[Signed]]
"""Ask the controller: uid (`""`: this node) and CSR. Raises `Failure`."""


_END = b"-----END CERTIFICATE-----"


def _first(roots: bytes) -> bytes:
    """The first certificate of a bundle (PEM)."""
    return roots.partition(_END)[0] + _END


@dataclass(slots=True)
class _Entry:
    identity: str
    held: Credential | None = None
    due: float = 0.0
    """Unix seconds: when to ask next."""
    failures: int = 0
    last_error: str = ""


class Certificates:
    """All credentials of this node. `publish` is told of each new one of a workload, and of all when roots change."""

    def __init__(
        self, store: KeyStore, sign: Sign, publish: Callable[[Certificate], None], now: Callable[[], float] = time.time
    ) -> None:
        self._store, self._sign, self._publish, self._now = store, sign, publish, now
        self._entries: dict[str, _Entry] = {}
        self._roots = store.roots or b""
        self._wake = trio.Event()

    @property
    def roots(self) -> bytes:
        """The certificates to trust (PEM); empty before the node has joined."""
        return self._roots

    def trust(self, roots: bytes) -> None:
        """Replace the roots, here and in the workers. What the first did not sign is renewed at once.

        The first is in use; others are trusted because of certificates from before a rotation, or one to come.
        """
        if roots == self._roots:
            return
        self._store.roots = roots
        self._roots = roots
        for uid, entry in self._entries.items():
            if entry.held is not None and not entry.held.under(_first(roots)):
                entry.due = 0.0
            self._announce(uid, entry)
        self._rouse()

    def get(self, uid: str) -> Credential | None:
        """The valid credential of workload `uid` (`""`: the node), or None."""
        entry = self._entries.get(uid)
        if entry is None or entry.held is None or entry.held.not_after <= self._now():
            return None
        return entry.held

    def adopt(self, uid: str, identity: str) -> Credential | None:
        """Manage `uid` from now on; take its credential from the folder if it is valid and for `identity`."""
        entry = self._entries.get(uid)
        if entry is not None and entry.identity == identity:
            return self.get(uid)
        entry = self._entries[uid] = _Entry(identity)
        stored = self._store.read(uid)
        if stored is not None:
            try:
                found = credential.parse(stored)
                if found.identity == identity and found.not_after > self._now():
                    self._hold(uid, entry, found)
                    if self._roots and not found.under(_first(self._roots)):  # the roots changed while we were away
                        entry.due = 0.0
            except CredentialError as error:
                _log.warning("stored credential is not usable", extra={"uid": uid, "error": str(error)})
        self._rouse()
        return entry.held

    def adopt_node(self, node: str) -> None:
        """Take this node's own credential from the folder, if it is there, valid, and for this node's name."""
        try:
            identity = credential.parse(self._store.read("") or b"").identity
            _, name = parse_node_uri(identity)
        except (CredentialError, IdentityError):
            return
        if name == node:
            self.adopt("", identity)

    def install(self, uid: str, held: Credential) -> None:
        """Take over a credential got elsewhere (the node's own, by joining) and store it."""
        entry = self._entries[uid] = _Entry(held.identity)
        self._store.write(uid, held.pem)
        self._hold(uid, entry, held)
        self._rouse()

    async def fetch(self, uid: str) -> Credential:
        """Get a new certificate for an adopted workload, now. Raises `Failure`; the old one stays then."""
        entry = self._entries[uid]
        entry.due = self._now() + _IN_FLIGHT
        try:
            key, csr = credential.new_request()
            signed = await self._sign(uid, csr)
            held = credential.certify(key, signed.chain, entry.identity)
        except (Failure, CredentialError) as error:
            entry.failures += 1
            entry.last_error = str(error)
            wait = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(entry.failures - 1, 16))
            entry.due = self._now() + wait * random.uniform(0.5, 1.0)
            if isinstance(error, CredentialError):
                raise Failure(f"the controller's answer is not usable: {error}", "check its log and version") from error
            raise
        if self._entries.get(uid) is entry:  # else it was forgotten meanwhile
            self._store.write(uid, held.pem)
            self._hold(uid, entry, held)
        return held

    def forget(self, uid: str) -> None:
        """Stop managing `uid` and delete its key."""
        self._entries.pop(uid, None)
        self._store.forget(uid)

    def forget_all_but(self, uids: set[str]) -> None:
        """Delete keys that a crash left behind."""
        for uid in self._store.uids():
            if uid not in uids:
                self.forget(uid)

    def retry_now(self) -> None:
        """The controller is back: don't wait out the back-off."""
        for entry in self._entries.values():
            if entry.failures:
                entry.due = 0.0
        self._rouse()

    async def run(self) -> None:
        """Renew what is due, one at a time, for ever. A failed renewal is logged and tried again later."""
        while True:
            self._wake = trio.Event()
            now = self._now()
            due = [uid for uid, entry in self._entries.items() if entry.due <= now]
            for uid in due:
                await self._renew(uid)
            soonest = min((entry.due for entry in self._entries.values()), default=now + _LOOK_EVERY)
            with trio.move_on_after(min(_LOOK_EVERY, max(0.05, soonest - self._now()))):
                await self._wake.wait()

    async def _renew(self, uid: str) -> None:
        entry = self._entries.get(uid)
        if entry is None or entry.due > self._now():
            return
        try:
            held = await self.fetch(uid)
        except Failure as error:
            level = logging.WARNING if entry.failures > 1 or entry.held is None else logging.INFO
            _log.log(level, "certificate not renewed", extra={"uid": uid, "error": str(error), "until": entry.due})
        else:
            _log.info("certificate renewed", extra={"uid": uid, "serial": held.serial, "not_after": held.not_after})

    def rows(self) -> list[dict[str, Any]]:
        """For `GET /certs`."""
        return [self._row(uid, entry) for uid, entry in sorted(self._entries.items())]

    def _row(self, uid: str, entry: _Entry) -> dict[str, Any]:
        held = entry.held
        return {
            "uid": uid,
            "identity": entry.identity,
            "serial": held.serial if held else "",
            "not_before": held.not_before if held else 0,
            "not_after": held.not_after if held else 0,
            "renew_at": entry.due,
            "state": self.state(uid),
            "last_error": entry.last_error,
        }

    def state(self, uid: str) -> str:
        """`none`, `valid`, `expiring` (renewal is overdue by a tenth of its life or has failed) or `expired`."""
        entry, now = self._entries.get(uid), self._now()
        if entry is None or entry.held is None:
            return "none"
        held = entry.held
        if held.not_after <= now:
            return "expired"
        overdue = now > held.not_before + 0.6 * (held.not_after - held.not_before)
        return "expiring" if overdue or entry.failures else "valid"

    def _hold(self, uid: str, entry: _Entry, held: Credential) -> None:
        entry.held, entry.failures, entry.last_error = held, 0, ""
        entry.due = renew_at(held.not_before, held.not_after, random.random())
        self._announce(uid, entry)

    def _announce(self, uid: str, entry: _Entry) -> None:
        held = entry.held
        if uid and held is not None and self._roots:
            self._publish(Certificate(uid, held.chain, held.key, self._roots, held.not_after))

    def _rouse(self) -> None:
        self._wake.set()
