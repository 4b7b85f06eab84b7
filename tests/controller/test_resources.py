from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.resources import Rejected, Resources, shown
from controller.store import Store


class Shelf:
    """Resources on a store of their own."""

    def __init__(self, folder: Path, *ranges: str) -> None:
        self.store = Store(folder)
        self.ranges = ranges or ("10.96.0.0/16", "fd96::/112")
        self.changes = 0
        self.now = 1_800_000_000.0
        self.resources = self.open()

    def open(self) -> Resources:
        return Resources(self.store, self.ranges, clock=lambda: self.now, changed=self.change)

    def change(self) -> None:
        self.changes += 1

    def apply(self, *documents: dict[str, Any], dry_run: bool = False) -> list[str]:
        text = yaml.safe_dump_all(documents)
        return [result.result for result in self.resources.apply([("f", text)], dry_run=dry_run)]

    def spec(self, name: str, kind: str = "Service") -> dict[str, Any]:
        stored = self.resources.get((kind, "shop", name))
        assert stored is not None
        spec: dict[str, Any] = stored.body["spec"]
        return spec

    def rejected(self, *documents: dict[str, Any]) -> list[str]:
        before = self.store.resources()
        with pytest.raises(Rejected) as caught:
            self.apply(*documents)
        assert self.store.resources() == before
        return [f"{p.path}: {p.message}" for p in caught.value.problems]


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    made.store.close()


def service(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}], **spec}}


def declared(name: str, *addresses: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop"}
    spec = {"addresses": list(addresses)}
    return {"apiVersion": "nodemesh.dev/v1alpha1", "kind": "Workload", "metadata": metadata, "spec": spec}


def test_one_bad_document_keeps_all_others_out(shelf: Shelf) -> None:
    assert shelf.rejected(service("web"), service("db", selektor={})) == ["spec.selektor: unknown field 'selektor'"]
    assert shelf.resources.get(("Service", "shop", "web")) is None
    assert shelf.changes == 0


def test_applying_again_changes_nothing_and_says_so(shelf: Shelf) -> None:
    assert shelf.apply(service("web")) == ["created"]
    before = shelf.store.resources()
    assert shelf.apply(service("web")) == ["unchanged"]
    assert shelf.store.resources() == before
    assert shelf.changes == 1


def test_generation_counts_changes_of_the_spec_only(shelf: Shelf) -> None:
    shelf.apply(service("web"))
    (first,) = shelf.store.resources()
    labelled = service("web")
    labelled["metadata"]["labels"] = {"a": "b"}
    assert shelf.apply(labelled) == ["configured"]
    (second,) = shelf.store.resources()
    shelf.now += 100
    labelled["spec"]["selector"] = {"app": "web"}
    assert shelf.apply(labelled) == ["configured"]
    (third,) = shelf.store.resources()
    assert (first.generation, second.generation, third.generation) == (1, 1, 2)
    assert first.version < second.version < third.version
    assert (first.uid, first.created) == (third.uid, third.created)


def test_deleted_and_made_again_it_is_another_object(shelf: Shelf) -> None:
    shelf.apply(service("web"))
    (first,) = shelf.store.resources()
    text = yaml.safe_dump(service("web"))
    assert [r.result for r in shelf.resources.delete_files([("f", text)])] == ["deleted"]
    assert [r.result for r in shelf.resources.delete_files([("f", text)])] == ["not found"]
    shelf.apply(service("web"))
    (second,) = shelf.store.resources()
    assert first.uid != second.uid
    assert second.generation == 1


def test_a_dry_run_says_what_would_be_and_does_nothing(shelf: Shelf) -> None:
    assert shelf.apply(service("web"), dry_run=True) == ["created"]
    assert shelf.store.resources() == []
    assert list(shelf.resources.all()) == []
    with pytest.raises(Rejected):
        shelf.apply(service("web", x=1), dry_run=True)


def test_what_get_shows_can_be_applied_again(shelf: Shelf) -> None:
    shelf.apply(service("web"))
    stored = shelf.resources.get(("Service", "shop", "web"))
    assert stored is not None
    assert shelf.apply(shown(stored)) == ["unchanged"]
    stale, changed = copy.deepcopy(shown(stored)), copy.deepcopy(shown(stored))
    changed["spec"]["selector"] = {"app": "web"}
    assert shelf.apply(changed) == ["configured"]
    stale["spec"] = {"ports": [{"port": 81}]}
    assert shelf.rejected(stale) == ["metadata.resourceVersion: the object has changed since this version"]


def test_resources_are_as_they_were_after_a_restart(shelf: Shelf) -> None:
    shelf.apply(service("web"), declared("db", "10.0.0.1"))
    again = shelf.open()
    assert sorted(r.key for r in again.all()) == sorted(r.key for r in shelf.resources.all())


def test_a_service_is_given_an_address_and_keeps_it(shelf: Shelf) -> None:
    shelf.apply(service("web"), service("db"))
    web = shelf.spec("web")["clusterIP"]
    assert ipaddress.ip_address(web) in ipaddress.ip_network("10.96.0.0/16")
    assert web != shelf.spec("db")["clusterIP"]
    shelf.apply(service("web", selector={"app": "web"}))
    assert shelf.spec("web")["clusterIP"] == web
    assert shelf.apply(service("web", selector={"app": "web"}, clusterIP=web)) == ["unchanged"]


def test_a_service_made_again_has_the_same_address(shelf: Shelf) -> None:
    shelf.apply(service("web"))
    before = shelf.spec("web")["clusterIP"]
    shelf.resources.delete([("Service", "shop", "web")])
    shelf.apply(service("web"))
    assert shelf.spec("web")["clusterIP"] == before


def test_an_address_cannot_be_changed_taken_or_outside(shelf: Shelf) -> None:
    shelf.apply(service("web", clusterIP="10.96.0.10"))
    assert "cannot be changed" in shelf.rejected(service("web", clusterIP="10.96.0.11"))[0]
    assert "that of Service shop/web" in shelf.rejected(service("db", clusterIP="10.96.0.10"))[0]
    assert "outside serviceRange" in shelf.rejected(service("db", clusterIP="10.97.0.10"))[0]
    both = shelf.rejected(service("a", clusterIP="10.96.0.12"), service("b", clusterIP="10.96.0.12"))
    assert len(both) == 1


def test_headless_services_have_no_address(shelf: Shelf) -> None:
    shelf.apply(service("web", clusterIP="None"), service("db", clusterIP="None"))
    assert shelf.spec("web")["clusterIPs"] == ["None"]


def test_both_families_where_asked_for(shelf: Shelf) -> None:
    shelf.apply(service("web", ipFamilyPolicy="PreferDualStack"), service("six", ipFamilies=["IPv6"]))
    assert [":" in a for a in shelf.spec("web")["clusterIPs"]] == [False, True]
    assert [":" in a for a in shelf.spec("six")["clusterIPs"]] == [True]


def test_a_stated_address_is_never_given_to_another_in_the_same_call(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "10.96.0.0/30")
    shelf.apply(service("given"), service("stated", clusterIP="10.96.0.1"))
    assert shelf.spec("given")["clusterIP"] == "10.96.0.2"
    assert "no address is left" in shelf.rejected(service("third"))[0]
    shelf.resources.delete([("Service", "shop", "given")])
    shelf.apply(service("third"))
    shelf.store.close()


def test_a_family_without_a_range_is_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "10.96.0.0/16")
    assert "no IPv6 range" in shelf.rejected(service("a", ipFamilies=["IPv6"]))[0]
    assert "no IPv6 range" in shelf.rejected(service("a", ipFamilyPolicy="RequireDualStack"))[0]
    shelf.apply(service("a", ipFamilyPolicy="PreferDualStack"))
    shelf.store.close()


def test_two_declared_workloads_cannot_have_one_address(shelf: Shelf) -> None:
    shelf.apply(declared("a", "10.0.0.1"))
    assert "address of Workload shop/a" in shelf.rejected(declared("b", "10.0.0.2", "::ffff:10.0.0.1"))[0]
    assert "address of Workload shop/b" in shelf.rejected(declared("b", "10.0.0.3"), declared("c", "10.0.0.3"))[0]
    shelf.apply(declared("a", "10.0.0.9"), declared("b", "10.0.0.1"))
