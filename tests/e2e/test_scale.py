"""A node with a hundred workloads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import mesh
from testbed.mesh import Testbed
from testbed.spec import parse
from tests.e2e.pods import Bed, echo

WORKLOADS = 100


@pytest.fixture(scope="module")
def full_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    name = f"s{os.getpid()}"
    pods = "".join(
        f"  - {{name: pod{n}, node: a, namespace: shop, serviceAccount: sa{n % 10}, labels: {{app: app{n % 20}}}}}\n"
        for n in range(WORKLOADS)
    )
    file = tmp_path_factory.mktemp("full") / "full.yaml"
    file.write_text(f"name: {name}\nnodes: [a]\npods:\n{pods}")
    said: list[str] = []
    try:
        bed = Testbed(parse(file.read_text(), file))
        bed.up(file.read_text(), file, said.append)
        yield Bed(bed)
    finally:
        mesh.down(name)


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise AssertionError(f"no VmRSS for {pid}")


def test_a_hundred_workloads_fit_in_the_memory_they_are_promised(full_node: Bed) -> None:
    with full_node["pod1"].serve(echo):
        assert all(full_node[f"pod{n}"].reaches(full_node["pod1"].v4) for n in range(WORKLOADS))
    status = full_node.testbed.node_api(full_node.node("pod0"), "GET", "/status")
    assert status["workloads"] == WORKLOADS
    control, workers = resident(status["pid"]), [resident(worker["pid"]) for worker in status["workers"]]
    print(f"control {control:.0f} MB, workers {', '.join(f'{worker:.0f}' for worker in workers)} MB")
    assert control < 90
    assert max(workers) < 45
