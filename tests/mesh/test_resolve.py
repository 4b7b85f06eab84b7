"""Resolve: tunnel, plaintext, hold or refuse, decided for each endpoint after balancing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model import PROXY_PORTS, Endpoint, MeshConfig, Service, Workload
from mesh.resolve import Kind, Target, resolve
from mesh.snapshot import Snapshot

from .samples import ADDRESSES, configs, service, services, tuples, workload, workloads
from .test_snapshot import full

MESHED = workload("web", "10.77.0.1", "fd00::1")
PLAIN = workload("legacy", "10.77.0.2", meshed=False)
CONFIG = MeshConfig(ranges=("10.77.0.0/16", "10.96.0.0/16"))


def mesh(*objects: Workload | Service) -> Snapshot:
    return Snapshot.empty().apply(full(*objects, config=CONFIG))


def to(target: Target) -> tuple[Kind, str, int, str]:
    return target.kind, target.address, target.port, target.flags


def test_a_workload_in_the_mesh_is_reached_through_a_tunnel_at_the_same_port() -> None:
    target = resolve(mesh(MESHED), "10.77.0.1", 5432, 0)
    assert to(target) == (Kind.TUNNEL, "10.77.0.1", 5432, "-")
    assert (target.workload, target.service) == (MESHED, None)
    assert to(resolve(mesh(MESHED), "fd00::1", 80, 0)) == (Kind.TUNNEL, "fd00::1", 80, "-")


def test_a_known_workload_outside_the_mesh_is_reached_in_plaintext() -> None:
    target = resolve(mesh(PLAIN), "10.77.0.2", 80, 0)
    assert to(target) == (Kind.PLAINTEXT, "10.77.0.2", 80, "-")
    assert target.workload == PLAIN


def test_an_address_outside_the_mesh_is_passed_through() -> None:
    assert to(resolve(mesh(MESHED), "203.0.113.9", 443, 0)) == (Kind.PLAINTEXT, "203.0.113.9", 443, "-")


def test_an_unknown_address_inside_the_mesh_is_held() -> None:
    assert to(resolve(mesh(MESHED), "10.77.5.5", 80, 0)) == (Kind.HOLD, "10.77.5.5", 80, "NR")


def test_everything_is_held_before_the_first_snapshot() -> None:
    assert resolve(Snapshot.empty(), "203.0.113.9", 443, 0).kind is Kind.HOLD


@pytest.mark.parametrize("port", sorted(PROXY_PORTS))
@pytest.mark.parametrize("address", ["10.77.0.1", "203.0.113.9", "10.96.0.1"])
def test_the_proxys_own_ports_are_refused_wherever_they_are(address: str, port: int) -> None:
    endpoint = Endpoint("10.77.0.1", MESHED.uid, (80,))
    for snapshot in (Snapshot.empty(), mesh(MESHED, service(ports=(port,), endpoints=(endpoint,)))):
        assert resolve(snapshot, address, port, 0).kind is Kind.REFUSE


@pytest.mark.parametrize("port", sorted(PROXY_PORTS))
def test_a_service_whose_target_is_the_proxys_own_port_is_refused(port: int) -> None:
    loop = service(endpoints=(Endpoint("10.77.0.1", MESHED.uid, (port,)),))
    target = resolve(mesh(MESHED, loop), "10.96.0.1", 80, 0)
    assert (target.kind, target.service) == (Kind.REFUSE, loop)


def test_endpoints_of_one_service_are_decided_each_for_itself() -> None:
    mixed = service(
        endpoints=(
            Endpoint("10.77.0.1", MESHED.uid, (8080,)),
            Endpoint("10.77.0.2", PLAIN.uid, (8081,)),
            Endpoint("203.0.113.9", "", (8082,)),
            Endpoint("10.77.7.7", "shop/unheard-of", (8083,)),
            Endpoint("10.77.7.8", "", (8084,)),
            Endpoint("fd00::1", "", (8085,)),
            Endpoint("10.77.0.1", MESHED.uid, (0,)),
        )
    )
    snapshot = mesh(MESHED, PLAIN, mixed)
    targets = [resolve(snapshot, "10.96.0.1", 80, pick) for pick in range(6)]
    assert [to(target) for target in targets] == [
        (Kind.TUNNEL, "10.77.0.1", 8080, "-"),
        (Kind.PLAINTEXT, "10.77.0.2", 8081, "-"),
        (Kind.PLAINTEXT, "203.0.113.9", 8082, "-"),
        (Kind.HOLD, "10.77.7.7", 8083, "NR"),
        (Kind.HOLD, "10.77.7.8", 8084, "NR"),
        (Kind.TUNNEL, "fd00::1", 8085, "-"),
    ]
    assert {target.service for target in targets} == {mixed}
    assert resolve(snapshot, "10.96.0.1", 80, 6) == targets[0]


def test_a_stale_plaintext_endpoint_is_held_when_a_workload_of_the_mesh_has_its_address() -> None:
    stale = service(endpoints=(Endpoint("10.77.0.1", PLAIN.uid, (8080,)),))
    target = resolve(mesh(MESHED, PLAIN, stale), "10.96.0.1", 80, 0)
    assert to(target) == (Kind.HOLD, "10.77.0.1", 8080, "NR")


def test_a_service_without_an_endpoint_for_the_port_is_refused() -> None:
    empty = service(ports=(80, 443), endpoints=(Endpoint("10.77.0.1", MESHED.uid, (8080, 0)),))
    target = resolve(mesh(MESHED, empty), "10.96.0.1", 443, 0)
    assert to(target) == (Kind.REFUSE, "10.96.0.1", 443, "UH")
    assert target.service == empty


def test_a_port_that_the_service_does_not_have_is_refused() -> None:
    assert to(resolve(mesh(service()), "10.96.0.1", 81, 0)) == (Kind.REFUSE, "10.96.0.1", 81, "NR")


@given(
    tuples(workloads, 4),
    tuples(services, 4),
    configs,
    st.sampled_from(ADDRESSES),
    st.sampled_from([80, 443, 8080, 15008]),
)
def test_plaintext_never_goes_to_the_mesh(
    known: tuple[Workload, ...], offered: tuple[Service, ...], config: MeshConfig, address: str, port: int
) -> None:
    snapshot = Snapshot.empty().apply(full(*known, *offered, config=config))
    for pick in range(3):
        target = resolve(snapshot, address, port, pick)
        if target.kind is Kind.TUNNEL:
            assert target.workload is not None
            assert target.workload.meshed
        if target.kind is Kind.PLAINTEXT:
            assert target.workload is not None or not snapshot.in_ranges(target.address)
            owner = snapshot.workload_at(target.address)
            assert not any(workload.meshed for workload in (target.workload, owner) if workload)
        if target.kind in (Kind.TUNNEL, Kind.PLAINTEXT):
            assert target.port not in PROXY_PORTS
            assert target.port
        else:
            assert target.flags != "-"
