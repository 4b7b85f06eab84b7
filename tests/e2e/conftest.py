"""Testbeds for the end-to-end tests: real daemons, configured as a user would, on two hosts in network namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import mesh
from testbed.mesh import Testbed
from testbed.spec import parse
from tests.e2e.pods import Bed

PODS = """\
nodes: [a, b]
pods:
  - {name: client, node: a, namespace: shop, serviceAccount: client, labels: {app: client}}
  - {name: near, node: a, namespace: shop, serviceAccount: near, labels: {app: near}}
  - {name: web, node: b, namespace: shop, serviceAccount: web, labels: {app: web, version: v1}}
  - {name: stranger, node: b, namespace: other, serviceAccount: stranger, labels: {app: stranger}}
  - {name: outsider, node: b, namespace: other, mesh: false, labels: {app: outsider}}
services:
  - {name: web, namespace: shop, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
  - {name: near, namespace: shop, selector: {app: near}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
  - {name: outsider, namespace: other, selector: {app: outsider}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
"""


def _bring_up(name: str, folder: Path) -> Iterator[Bed]:
    file = folder / f"{name}.yaml"
    file.write_text(f"name: {name}\n{PODS}")
    bed = Testbed(parse(file.read_text(), file))
    said: list[str] = []
    try:
        bed.up(file.read_text(), file, said.append)
        yield Bed(bed)
    finally:
        mesh.down(name)


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Shared by tests that leave it as they found it."""
    yield from _bring_up(f"e{os.getpid()}", tmp_path_factory.mktemp("bed"))


@pytest.fixture(scope="module")
def own_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """For a module whose tests kill daemons; each leaves all of them running again."""
    yield from _bring_up(f"k{os.getpid()}", tmp_path_factory.mktemp("bed"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these need root."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.root)
