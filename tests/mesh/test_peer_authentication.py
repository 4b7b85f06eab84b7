"""PeerAuthentication: workload beats namespace beats mesh; the oldest of a kind counts; UNSET inherits."""

from __future__ import annotations

import pytest

from mesh.authz import Authorizer
from mesh.model import MtlsMode, PeerAuth

from .samples import ROOT

STRICT, PERMISSIVE, DISABLE, UNSET = MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.DISABLE, MtlsMode.UNSET
APP = {"app": "web"}


def mesh_wide(mode: MtlsMode) -> PeerAuth:
    return PeerAuth("mesh", ROOT, mode)


def of_namespace(mode: MtlsMode, name: str = "default", created: int = 0) -> PeerAuth:
    return PeerAuth(name, "shop", mode, created=created)


def own(mode: MtlsMode, name: str = "own", created: int = 0, **ports: MtlsMode) -> PeerAuth:
    return PeerAuth(name, "shop", mode, APP, {int(port[1:]): each for port, each in ports.items()}, created)


def mode(*peer_auths: PeerAuth, port: int = 80, namespace: str = "shop") -> MtlsMode:
    return Authorizer.of((), peer_auths, namespace=namespace, labels=APP, root_namespace=ROOT).mtls_mode(port)


def test_the_default_is_permissive() -> None:
    assert mode() is PERMISSIVE
    assert mode(mesh_wide(UNSET), of_namespace(UNSET), own(UNSET)) is PERMISSIVE


def test_the_narrower_counts() -> None:
    assert mode(mesh_wide(STRICT)) is STRICT
    assert mode(of_namespace(PERMISSIVE), mesh_wide(STRICT)) is PERMISSIVE
    assert mode(own(DISABLE), of_namespace(STRICT), mesh_wide(PERMISSIVE)) is DISABLE


def test_unset_inherits_from_the_next_that_is_set() -> None:
    assert mode(mesh_wide(STRICT), of_namespace(UNSET)) is STRICT
    assert mode(mesh_wide(STRICT), of_namespace(UNSET), own(UNSET)) is STRICT
    assert mode(mesh_wide(STRICT), own(UNSET)) is STRICT
    assert mode(mesh_wide(PERMISSIVE), of_namespace(STRICT), own(UNSET)) is STRICT


def test_of_one_kind_only_the_oldest_counts_even_if_it_is_unset() -> None:
    assert mode(of_namespace(STRICT, "young", 2), of_namespace(PERMISSIVE, "old", 1)) is PERMISSIVE
    assert mode(of_namespace(UNSET, "old", 1), of_namespace(STRICT, "young", 2)) is PERMISSIVE
    assert mode(own(STRICT, "b", 5), own(DISABLE, "a", 5)) is DISABLE
    assert mode(own(UNSET, "old", 1, p80=DISABLE), own(STRICT, "young", 2, p80=STRICT)) is DISABLE


def test_of_two_of_one_key_and_age_the_same_counts_in_whichever_order_they_came() -> None:
    labels = {**APP, "tier": "front"}
    strict, disable = PeerAuth("own", "shop", STRICT, APP), PeerAuth("own", "shop", DISABLE, {"tier": "front"})
    for auths in ((strict, disable), (disable, strict)):
        of = Authorizer.of((), auths, namespace="shop", labels=labels, root_namespace=ROOT)
        assert of.mtls_mode(80) is STRICT


def test_a_ports_mode_beats_the_workloads_at_that_port_only() -> None:
    auths = (mesh_wide(PERMISSIVE), own(STRICT, p80=DISABLE))
    assert mode(*auths, port=80) is DISABLE
    assert mode(*auths, port=81) is STRICT


def test_a_ports_unset_mode_inherits_the_workloads() -> None:
    assert mode(own(STRICT, p80=UNSET)) is STRICT
    assert mode(mesh_wide(STRICT), own(UNSET, p80=UNSET, p81=PERMISSIVE)) is STRICT
    assert mode(mesh_wide(STRICT), own(UNSET, p80=UNSET, p81=PERMISSIVE), port=81) is PERMISSIVE


@pytest.mark.parametrize("namespace", ["shop", ROOT])
def test_port_modes_without_a_selector_do_not_count(namespace: str) -> None:
    assert mode(PeerAuth("default", namespace, STRICT, port_modes={80: DISABLE})) is STRICT


def test_a_selector_in_the_root_namespace_selects_nothing() -> None:
    assert mode(PeerAuth("web", ROOT, STRICT, APP)) is PERMISSIVE
    assert mode(PeerAuth("web", ROOT, STRICT, APP), namespace=ROOT) is PERMISSIVE


def test_a_workload_in_the_root_namespace_has_the_mesh_wide_mode() -> None:
    assert mode(mesh_wide(STRICT), namespace=ROOT) is STRICT


def test_others_do_not_count() -> None:
    assert mode(PeerAuth("default", "other", STRICT)) is PERMISSIVE
    assert mode(PeerAuth("api", "shop", STRICT, {"app": "api"})) is PERMISSIVE
