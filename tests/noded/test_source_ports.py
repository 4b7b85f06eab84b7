"""The node's table of source ports in use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from noded import source_ports
from noded.source_ports import SourcePorts


@pytest.fixture
def table() -> Iterator[int]:
    fd = source_ports.create(2)
    yield fd
    os.close(fd)


def test_a_port_is_used_for_all_workers_while_one_has_a_connection_with_it(table: int) -> None:
    first, second = SourcePorts(table, 0), SourcePorts(table, 1)
    first.take(4000)
    second.take(4000)
    assert first.used(4000)
    assert second.used(4000)
    assert not first.used(4001)
    first.release(4000)
    assert first.used(4000)
    second.release(4000)
    assert not first.used(4000)


def test_what_a_dead_worker_used_is_free_once_it_is_cleared(table: int) -> None:
    first, second = SourcePorts(table, 0), SourcePorts(table, 1)
    first.take(65535)
    second.take(1)
    source_ports.clear(table, 0)
    assert not second.used(65535)
    assert second.used(1)


def test_a_full_count_never_wraps_to_free(table: int) -> None:
    ports = SourcePorts(table, 0)
    for _ in range(70_000):
        ports.take(7)
    for _ in range(70_000):
        ports.release(7)
    assert ports.used(7)


def test_releasing_what_was_never_taken_changes_nothing(table: int) -> None:
    ports = SourcePorts(table, 0)
    ports.release(9)
    assert not ports.used(9)
