"""Circuit breakers: no more at a time than their bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.circuit import Circuit, Gauge
from mesh.traffic import CircuitBreaker


@given(st.integers(0, 5), st.lists(st.booleans(), max_size=60))
def test_there_are_never_more_inside_than_the_bound(most: int, steps: list[bool]) -> None:
    gauge, inside, refused = Gauge(most), 0, 0
    for comes in steps:
        if comes:
            let_in = most == 0 or inside < most
            assert gauge.enter() == let_in
            inside += let_in
            refused += not let_in
        elif inside:
            gauge.leave()
            inside -= 1
        assert (gauge.count, gauge.refused) == (inside, refused)


def test_without_a_breaker_there_is_no_bound() -> None:
    circuit = Circuit(None)
    assert all(gauge.enter() for gauge in (circuit.connections, circuit.requests, circuit.pending) for _ in range(1000))
    assert circuit.requests_per_connection == 0


def test_each_worker_gets_its_part_and_at_least_one() -> None:
    circuit = Circuit(CircuitBreaker(10, 4, 1, 7), workers=4)
    assert [gauge.most for gauge in (circuit.connections, circuit.requests, circuit.pending)] == [3, 1, 1]
    assert circuit.requests_per_connection == 7


def test_a_bound_that_shrinks_lets_those_inside_finish() -> None:
    circuit = Circuit(CircuitBreaker(max_requests=3))
    assert [circuit.requests.enter() for _ in range(3)] == [True] * 3
    circuit.update(CircuitBreaker(max_requests=1))
    circuit.requests.leave()
    circuit.requests.leave()
    assert not circuit.requests.enter()
    circuit.requests.leave()
    assert circuit.requests.enter()
    circuit.update(None)
    assert circuit.requests.enter()
