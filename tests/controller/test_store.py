from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controller.store import Credential, Node, Resource, Store, StoreError, Token
from mesh.model import Enrolment

WRITER = """
import sys
from pathlib import Path
from controller.store import Credential, Node, Resource, Store
from mesh.model import Enrolment
store = Store(Path(sys.argv[1]))
store.admit_node(Node("node-a", ("*/*",), "t", "k", 1.0), Credential("1", "node-a", 9e9), consume=False)
number = 0
while True:
    number += 1
    pair = [Resource("Service", "shop", f"{half}-{number}", {"spec": {}}, "u", 1, 0, 1) for half in ("a", "b")]
    store.write_resources(pair, [])
    store.write_enrolments("node-a", [Enrolment(f"w-{number}", "shop", "web", {}, (f"10.0.0.{number % 250}",))], [])
    print(number, flush=True)
"""


def resource(name: str, **spec: object) -> Resource:
    return Resource("Service", "shop", name, {"spec": spec}, "uid", 1, 0, 1)


def node(name: str) -> tuple[Node, Credential]:
    return Node(name, ("shop/*",), "token", "hash", 1.0), Credential(f"serial-{name}", name, 9e9)


def test_what_was_written_is_there_after_kill_9_and_a_pair_is_never_split(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        acknowledged = 0
        while acknowledged < 25:
            acknowledged = int(process.stdout.readline())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.stdout.close()
        process.wait()
    store = Store(tmp_path)
    names = {r.name for r in store.resources()}
    enrolled = store.enrolments()
    store.close()
    assert {f"a-{n}" for n in range(1, acknowledged + 1)} <= names
    assert {f"w-{n}" for n in range(1, acknowledged + 1)} <= {uid.partition("/")[2] for uid in enrolled}
    assert {n[2:] for n in names if n.startswith("a-")} == {n[2:] for n in names if n.startswith("b-")}


def test_everything_is_as_it_was_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (stored,) = store.write_resources([resource("web", a=[1, "2", None])], [])
    token = Token("id", "hash", ("shop/*", "a/b"), "node-a", 1.5, 2.5, 3, "why")
    store.add_token(token)
    joined, credential = node("node-a")
    store.admit_node(joined, credential, consume=False)
    workload = Enrolment("web-1", "shop", "web", {"app": "web"}, ("10.0.0.1", "fd00::1"))
    store.write_enrolments("node-a", [workload], [])
    store.close()
    store = Store(tmp_path)
    assert store.resources() == [stored]
    assert store.tokens() == [token]
    assert store.token_by_hash("hash") == token
    assert store.nodes() == {"node-a": joined}
    assert store.credentials("node-a") == [credential]
    assert store.enrolments() == {"shop/web-1": ("node-a", workload)}
    store.close()


def test_versions_only_grow_and_are_never_given_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    versions = [store.write_resources([resource("web")], [])[0].version for _ in range(3)]
    store.write_resources([], [resource("web").key])
    versions.append(store.write_resources([resource("web")], [])[0].version)
    store.close()
    assert versions == [1, 2, 3, 4]


def test_a_failing_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    unwritable = Resource("Service", "shop", "bad", {"spec": object()}, "u", 1, 0, 1)
    with pytest.raises(TypeError):
        store.write_resources([resource("web"), unwritable], [])
    assert store.resources() == []
    assert store.write_resources([resource("web")], [])[0].version == 1
    store.close()


def test_forgetting_a_node_takes_its_credentials_and_workloads(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("node-a", "node-b"):
        store.admit_node(*node(name), consume=False)
        store.write_enrolments(name, [Enrolment(name, "shop", "web", {}, ("10.0.0.1",))], [])
    assert store.forget_node("node-a")
    assert not store.forget_node("node-a")
    assert store.credentials("node-a") == []
    assert list(store.enrolments()) == ["shop/node-b"]
    store.close()


def test_joining_again_ends_the_earlier_credential(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.admit_node(*node("node-a"), consume=False)
    later = Credential("later", "node-a", 9e9)
    store.admit_node(node("node-a")[0], later, consume=False)
    assert store.credentials("node-a") == [later]
    store.close()


def test_a_node_cannot_delete_anothers_enrolment(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("node-a", "node-b"):
        store.admit_node(*node(name), consume=False)
    store.write_enrolments("node-a", [Enrolment("w", "shop", "web", {}, ("10.0.0.1",))], [])
    store.write_enrolments("node-b", [], ["shop/w"])
    assert list(store.enrolments()) == ["shop/w"]
    store.close()


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="in use by another"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_database_of_a_newer_format_or_none_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "controller.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a readable SQLite"):
        Store(tmp_path)
    (tmp_path / "controller.db").unlink()
    store = Store(tmp_path)
    store._db.execute("PRAGMA user_version=99")
    store.close()
    with pytest.raises(StoreError, match="format 99"):
        Store(tmp_path)


def test_the_database_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    Store(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state/controller.db").stat().st_mode & 0o777 == 0o600
