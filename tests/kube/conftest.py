"""A real Kubernetes cluster of two nodes for the tests here, with this checkout's image on them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubebed import cache, machine, product
from kubebed import cluster as clusters
from kubebed.cluster import Cluster
from kubebed.errors import UnfitMachine
from tests.kube.mesh import Mesh, left
from tests.kube.pods import Space, eventually, space

READY_MADE = "NODEMESH_KUBEBED"
"""Names a cluster that is up (`tools/kubebed -n NAME up`) to use instead of one made for the run: shorter runs while
working on something. The image is brought up to date, and the tests leave the cluster as they found it."""


@pytest.fixture(scope="session")
def fit_machine() -> None:
    """Skips, with the reason, where there can't be a cluster."""
    try:
        machine.check()
    except UnfitMachine as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def cluster(
    fit_machine: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The cluster, shared: a test leaves it with every node on and Ready, and removes what it created."""
    image = tmp_path_factory.mktemp("image") / "nodemesh.tar"
    with contextlib.ExitStack() as undo:
        with _shown(request):
            name = os.environ.get(READY_MADE, "")
            if name:
                made = clusters.find(name)
            else:
                name = f"t{os.getpid()}"
                undo.callback(clusters.down, name)
                made = clusters.make(name, 2, cache.build())
            product.build(image)
            made.load(image)
        image.unlink()
        yield made


@pytest.fixture(scope="session")
def mesh(cluster: Cluster) -> Iterator[Mesh]:
    """The mesh, installed once for all tests of it; uninstalling it leaves nothing."""
    made = Mesh(cluster)
    before = left(cluster)
    try:
        made.install()
        yield made
    finally:
        made.uninstall()
    eventually(lambda: left(cluster) == before)


@pytest.fixture
def shop(mesh: Mesh, cluster: Cluster) -> Iterator[Space]:
    """An enrolled namespace."""
    with space(cluster, "shop") as made:
        cluster.kubectl("label", "namespace", made.name, "nodemesh.dev/mode=enabled")
        yield made


@contextlib.contextmanager
def _shown(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let progress be seen: the first build of a machine takes minutes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that use a cluster need root. Those without the mesh are first: it stays until the last takes it away."""
    ours = {item: getattr(item, "fixturenames", ()) for item in items if Path(__file__).parent in item.path.parents}
    for item, fixtures in ours.items():
        if "cluster" in fixtures:
            item.add_marker(pytest.mark.root)
    items.sort(key=lambda item: ("mesh" in ours.get(item, ()), item.path.name == "test_uninstall.py"))
