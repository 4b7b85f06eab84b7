"""What every place that keeps the CA promises: the folder of a plain host, and a Secret.

tests/kube/test_ca_store.py holds a Secret of a real cluster to the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.ca import Authority
from controller.kubernetes.client import Client
from controller.kubernetes.secret import SecretCa
from controller.trust import CaStore, Conflict, FolderCa, add_root, drop_old, new_material, sign_with_new
from tests.controller.fake_kubernetes import fake_kubernetes

NOW = 1_800_000_000.0
MATERIAL = new_material("cluster.local", NOW)


@pytest.fixture(params=["folder", "secret"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CaStore]:
    if request.param == "folder":
        yield FolderCa(tmp_path / "state")
    else:
        async with fake_kubernetes() as server, Client(server.access) as client:
            yield SecretCa(client, "nodemesh-system")


async def test_there_is_nothing_until_something_was_saved(store: CaStore) -> None:
    assert await store.load() is None
    await store.save(MATERIAL, None)
    kept = await store.load()
    assert kept is not None
    assert kept[0] == MATERIAL


async def test_of_two_that_make_one_at_the_same_time_the_second_is_told(store: CaStore) -> None:
    await store.save(MATERIAL, None)
    with pytest.raises(Conflict):
        await store.save(new_material("cluster.local", NOW), None)
    kept = await store.load()
    assert kept is not None
    assert kept[0] == MATERIAL


async def test_what_was_changed_meanwhile_is_not_overwritten(store: CaStore) -> None:
    await store.save(MATERIAL, None)
    kept = await store.load()
    assert kept is not None
    material, version = kept
    added = add_root(material, "cluster.local", NOW)
    await store.save(added, version)
    with pytest.raises(Conflict):
        await store.save(replace(material, roots=material.roots), version)
    again = await store.load()
    assert again is not None
    assert again[0] == added


async def test_every_phase_of_a_rotation_is_kept_as_it_was(store: CaStore) -> None:
    material, version = MATERIAL, None
    added = add_root(material, "cluster.local", NOW)
    signing = sign_with_new(added)
    for wanted, phase in ((material, "idle"), (added, "added"), (signing, "signing"), (drop_old(signing), "idle")):
        await store.save(wanted, version)
        kept = await store.load()
        assert kept is not None
        found, version = kept
        assert (found, found.phase) == (wanted, phase)
        assert Authority("cluster.local").adopt(found, "test", NOW)
