"""Faults: which requests, and which of delay and abort."""

from __future__ import annotations

import pytest

from mesh.fault import ConnectionFault, FaultInjector, Injection, of_connection
from mesh.message import Request
from mesh.traffic import Compare, Fault, ValueMatch

REQUEST = Request(b"GET", b"a", b"/", [(b"x-test", b"yes")])
BOTH = Fault(delay=1.5, delay_share=5_000, abort=503, abort_share=100)


@pytest.mark.parametrize(
    ("delay_roll", "abort_roll", "expected"),
    [
        (0.4999, 0.0099, Injection(1.5, 503)),
        (0.4999, 0.01, Injection(1.5, 0)),
        (0.5, 0.0099, Injection(0.0, 503)),
        (0.5, 0.01, None),
    ],
)
def test_delay_and_abort_are_decided_each_by_its_own_share(
    delay_roll: float, abort_roll: float, expected: Injection | None
) -> None:
    assert FaultInjector(BOTH).choose(REQUEST, delay_roll, abort_roll) == expected


def test_all_or_nothing() -> None:
    every = FaultInjector(Fault(delay=1, delay_share=10_000))
    assert every.choose(REQUEST, 1 - 2**-53, 0.0) == Injection(1, 0)
    assert FaultInjector(Fault(delay=1, abort=500)).choose(REQUEST, 0.0, 0.0) is None
    assert FaultInjector(Fault(delay_share=10_000, abort_share=10_000)).choose(REQUEST, 0.0, 0.0) is None


def test_only_requests_whose_headers_match_suffer() -> None:
    def injector(*headers: ValueMatch) -> FaultInjector:
        return FaultInjector(Fault(abort=500, abort_share=10_000, headers=headers))

    assert injector(ValueMatch("x-test", "yes")).choose(REQUEST, 0.0, 0.0) == Injection(0.0, 500)
    assert injector(ValueMatch("x-test", "y.s", Compare.REGEX)).choose(REQUEST, 0.0, 0.0) == Injection(0.0, 500)
    assert injector(ValueMatch("x-test", "no")).choose(REQUEST, 0.0, 0.0) is None
    assert injector(ValueMatch("x-test", "yes"), ValueMatch("x-other", "1")).choose(REQUEST, 0.0, 0.0) is None


def test_each_fault_of_a_connection_is_decided_by_its_own_share() -> None:
    fault = Fault(delay=1.5, delay_share=5_000, reset_share=100, bandwidth=10, bandwidth_share=1)
    assert of_connection(fault, 0.4999, 0.0099, 0.00009) == ConnectionFault(1.5, True, 10)
    assert of_connection(fault, 0.5, 0.0099, 0.0001) == ConnectionFault(0.0, True, 0)
    assert of_connection(fault, 0.5, 0.01, 0.0001) is None


def test_a_connection_has_no_headers_and_is_not_aborted() -> None:
    assert of_connection(Fault(reset_share=10_000, headers=(ValueMatch("x", "y"),)), 0.0, 0.0, 0.0) is None
    assert of_connection(Fault(abort=500, abort_share=10_000), 0.0, 0.0, 0.0) is None
