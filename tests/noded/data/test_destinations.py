"""A port of a service as a worker sends to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mesh.model import Endpoint, MeshConfig, Service, ServicePort
from mesh.snapshot import Snapshot
from mesh.sync import Update
from noded.data.http.destinations import Destination


def test_when_all_endpoints_were_tried_the_next_is_another_than_the_last() -> None:
    """Also where that one has the fewest requests, as has one that fails at once."""
    endpoints = tuple(Endpoint(address, "", (8080,)) for address in ("10.0.0.1", "10.0.0.2"))
    web = Service("web", "shop", ("10.96.0.1",), (ServicePort("http", 80),), endpoints)
    destination = Destination(web, 80, cast(Any, SimpleNamespace()), 1, cast(Any, None))
    all_there_is = Update("e", 1, 0, True, MeshConfig(), (), (web,), has_policies=True)
    destination.refresh(Snapshot.empty().apply(all_there_is), (), 0.0)
    slow, quick = destination.hosts.all
    for _ in range(9):
        slow.started()
    assert destination.pick(0.0, None, ()) is quick
    assert destination.pick(0.0, None, (quick,)) is slow
    assert destination.pick(0.0, None, (quick, slow)) is quick
    assert destination.pick(0.0, None, (slow, quick)) is slow
    assert destination.pick(0.0, None, (slow, quick, slow)) is quick
