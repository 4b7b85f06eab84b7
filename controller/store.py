"""What the controller must not forget: resources, join tokens, nodes with their credentials, enrolments.

SQLite in WAL mode with `synchronous=FULL`: a call that has returned survives `kill -9` and loss of power. Every method
is one transaction and blocks for one fsync at most (milliseconds); being synchronous, what a caller does between two
awaits is atomic. Nothing outside this file knows that it is SQLite. One process at a time: the folder is locked. On
Kubernetes the cluster's own objects stand in its place (`controller.kubernetes`).
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mesh.model import Enrolment

_VERSION = 1
_TABLES = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('resource_version', 0);
CREATE TABLE resources (
    kind TEXT, namespace TEXT, name TEXT, uid TEXT NOT NULL, generation INTEGER NOT NULL,
    version INTEGER NOT NULL, created INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret_hash TEXT NOT NULL UNIQUE, allow TEXT NOT NULL, node TEXT NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL, uses_left INTEGER NOT NULL, description TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE nodes (
    name TEXT PRIMARY KEY, allow TEXT NOT NULL, token_id TEXT NOT NULL, key_hash TEXT NOT NULL,
    joined REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE credentials (
    serial TEXT PRIMARY KEY, node TEXT NOT NULL REFERENCES nodes ON DELETE CASCADE,
    expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE enrolments (
    uid TEXT PRIMARY KEY, node TEXT NOT NULL REFERENCES nodes ON DELETE CASCADE,
    name TEXT NOT NULL, namespace TEXT NOT NULL, service_account TEXT NOT NULL,
    labels TEXT NOT NULL, addresses TEXT NOT NULL) WITHOUT ROWID;
"""

Key = tuple[str, str, str]
"""(kind, namespace, name) of a resource."""


class StoreError(Exception):
    """The store cannot be opened; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource as it was applied (`body`: apiVersion, kind, metadata, spec), and what the store says of it."""

    kind: str
    namespace: str
    name: str
    body: dict[str, Any]
    uid: str
    generation: int
    version: int
    created: int
    """Unix seconds."""

    @property
    def key(self) -> Key:
        """(kind, namespace, name)."""
        return self.kind, self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Token:
    """A join token, without its secret. `uses_left` is -1 where there is no limit; `node` is `""` for any."""

    id: str
    secret_hash: str
    """SHA-256 of the secret, hex. The secret has 256 random bits, so nothing slower is needed."""
    allow: tuple[str, ...]
    node: str
    created: float
    expires: float
    uses_left: int
    description: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node that has joined: what it may enrol, and how it came in."""

    name: str
    allow: tuple[str, ...]
    token_id: str
    key_hash: str
    """SHA-256 of the public key it joined with, hex."""
    joined: float


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate that a node may authenticate with; one that is not stored here is refused."""

    serial: str
    node: str
    expires: float


class Store:
    """The one open store. The caller closes it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(
                f"{folder} is in use by another mesh-controller: stop it, or set another stateDir"
            ) from error
        path = folder / "controller.db"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare(path)
        except BaseException:
            self.close()
            raise

    def _prepare(self, path: Path) -> None:
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path} is not a readable SQLite database ({error}): restore it from a backup") from error
        if version == 0:
            self._db.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={_VERSION};COMMIT;")
        elif version != _VERSION:
            raise StoreError(f"{path} has format {version}, this mesh-controller knows {_VERSION}: upgrade it")

    def close(self) -> None:
        """Close the database and give up the lock."""
        self._db.close()
        os.close(self._lock)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # Resources

    def resources(self) -> list[Resource]:
        """All of them."""
        rows = self._db.execute("SELECT kind, namespace, name, body, uid, generation, version, created FROM resources")
        return [Resource(row[0], row[1], row[2], json.loads(row[3]), *row[4:]) for row in rows]

    def write_resources(self, puts: Sequence[Resource], deletes: Iterable[Key]) -> list[Resource]:
        """Put and delete in one transaction; return the puts with the `version` each was given."""
        written = []
        with self._transaction() as db:
            for resource in puts:
                (version,) = db.execute(
                    "UPDATE counters SET value = value + 1 WHERE name = 'resource_version' RETURNING value"
                ).fetchone()
                stored = replace(resource, version=version)
                db.execute(
                    "INSERT OR REPLACE INTO resources VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*stored.key, stored.uid, stored.generation, version, stored.created, json.dumps(stored.body)),
                )
                written.append(stored)
            db.executemany("DELETE FROM resources WHERE kind = ? AND namespace = ? AND name = ?", deletes)
        return written

    # Join tokens

    def tokens(self) -> list[Token]:
        """All of them, expired ones too."""
        return [_token(row) for row in self._db.execute("SELECT * FROM tokens ORDER BY created")]

    def token_by_hash(self, secret_hash: str) -> Token | None:
        """The token whose secret hashes to this."""
        row = self._db.execute("SELECT * FROM tokens WHERE secret_hash = ?", (secret_hash,)).fetchone()
        return _token(row) if row else None

    def add_token(self, token: Token) -> None:
        """Store a new token."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    token.id,
                    token.secret_hash,
                    json.dumps(token.allow),
                    token.node,
                    token.created,
                    token.expires,
                    token.uses_left,
                    token.description,
                ),
            )

    def delete_tokens(self, ids: Iterable[str]) -> int:
        """Delete them; return how many there were."""
        with self._transaction() as db:
            return sum(db.execute("DELETE FROM tokens WHERE id = ?", (id_,)).rowcount for id_ in ids)

    # Nodes and their credentials

    def nodes(self) -> dict[str, Node]:
        """All that have joined and were not forgotten, by name."""
        rows = self._db.execute("SELECT name, allow, token_id, key_hash, joined FROM nodes")
        return {row[0]: Node(row[0], tuple(json.loads(row[1])), *row[2:]) for row in rows}

    def admit_node(self, node: Node, credential: Credential, *, consume: bool) -> None:
        """Store a node that joined, ending an earlier one's credentials. `consume` takes a use of its token."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO nodes VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET allow = excluded.allow,"
                " token_id = excluded.token_id, key_hash = excluded.key_hash, joined = excluded.joined",
                (node.name, json.dumps(node.allow), node.token_id, node.key_hash, node.joined),
            )
            db.execute("DELETE FROM credentials WHERE node = ?", (node.name,))
            db.execute("INSERT INTO credentials VALUES (?, ?, ?)", (credential.serial, node.name, credential.expires))
            if consume:
                db.execute(
                    "UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ? AND uses_left > 0", (node.token_id,)
                )

    def add_credential(self, credential: Credential, now: float) -> None:
        """Store a node's renewed credential beside those that have not expired."""
        with self._transaction() as db:
            db.execute("DELETE FROM credentials WHERE expires < ?", (now,))
            db.execute(
                "INSERT INTO credentials VALUES (?, ?, ?)", (credential.serial, credential.node, credential.expires)
            )

    def credentials(self, node: str) -> list[Credential]:
        """Those of one node, the one that expires last first."""
        rows = self._db.execute("SELECT * FROM credentials WHERE node = ? ORDER BY expires DESC", (node,))
        return [Credential(*row) for row in rows]

    def forget_node(self, name: str) -> bool:
        """Delete a node with its credentials and enrolments; False if there was none."""
        with self._transaction() as db:
            return db.execute("DELETE FROM nodes WHERE name = ?", (name,)).rowcount > 0

    # Enrolments

    def enrolments(self) -> dict[str, tuple[str, Enrolment]]:
        """(node, workload) by uid."""
        rows = self._db.execute("SELECT uid, node, name, namespace, service_account, labels, addresses FROM enrolments")
        return {
            uid: (node, Enrolment(name, namespace, account, json.loads(labels), tuple(json.loads(addresses))))
            for uid, node, name, namespace, account, labels, addresses in rows
        }

    def write_enrolments(self, node: str, puts: Iterable[Enrolment], deletes: Iterable[str]) -> None:
        """Put and delete (by uid) workloads of one node, in one transaction."""
        with self._transaction() as db:
            db.executemany("DELETE FROM enrolments WHERE uid = ? AND node = ?", [(uid, node) for uid in deletes])
            db.executemany(
                "INSERT OR REPLACE INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (w.uid, node, w.name, w.namespace, w.service_account, json.dumps(w.labels), json.dumps(w.addresses))
                    for w in puts
                ],
            )


def _token(row: Sequence[Any]) -> Token:
    return Token(row[0], row[1], tuple(json.loads(row[2])), *row[3:])
