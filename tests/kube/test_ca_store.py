"""The promises of tests/controller/test_ca_store.py, kept by a Secret of a real cluster."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from controller.kubernetes import kubeconfig
from controller.kubernetes.client import Client
from controller.kubernetes.secret import SecretCa
from controller.trust import CaStore
from kubebed.cluster import Cluster
from tests.controller.test_ca_store import (
    test_every_phase_of_a_rotation_is_kept_as_it_was,
    test_of_two_that_make_one_at_the_same_time_the_second_is_told,
    test_there_is_nothing_until_something_was_saved,
    test_what_was_changed_meanwhile_is_not_overwritten,
)

__all__ = [
    "test_every_phase_of_a_rotation_is_kept_as_it_was",
    "test_of_two_that_make_one_at_the_same_time_the_second_is_told",
    "test_there_is_nothing_until_something_was_saved",
    "test_what_was_changed_meanwhile_is_not_overwritten",
]


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[CaStore]:
    async with Client(kubeconfig.load([cluster.kubeconfig])) as client:
        name = f"nodemesh-test-{secrets.token_hex(4)}"
        await client.create("/api/v1/namespaces", {"metadata": {"name": name}})
        try:
            yield SecretCa(client, name)
        finally:
            await client.delete(f"/api/v1/namespaces/{name}")
