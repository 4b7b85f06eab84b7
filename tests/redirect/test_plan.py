"""The plan is pure, so what must hold for every mark and every set of interfaces is shown without a kernel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirect.plan import (
    CHAINS,
    CONNECTION_MASK,
    INBOUND,
    NOTHING,
    OUTBOUND,
    RELAYED,
    REROUTE_MARK,
    Facts,
    Family,
    Interface,
    plan,
    usable_mark,
)

marks = st.integers(1, 0xFFFFFFFF).filter(usable_mark)
interfaces = st.lists(
    st.builds(Interface, name=st.just("eth"), index=st.integers(1, 1000), ipv6=st.booleans()),
    max_size=5,
    unique_by=lambda interface: interface.index,
).map(tuple)
facts = st.builds(Facts, mark=marks, interfaces=interfaces, ipv6=st.booleans())


@given(facts)
def test_a_packets_mark_is_trusted_only_if_it_is_the_proxys_in_every_bit(given_facts: Facts) -> None:
    trusted = {match.value for rule in plan(given_facts).rules for match in rule.matches if match.name == "mark"}
    assert trusted == {f"{given_facts.mark:#x}"}


@given(facts)
def test_the_proxys_own_packets_are_never_sent_to_the_rerouting_table(given_facts: Facts) -> None:
    made = plan(given_facts)
    assert {rule.mark for rule in made.policy_rules} == {REROUTE_MARK}
    assert given_facts.mark != REROUTE_MARK


@given(facts)
def test_after_draining_no_rule_is_about_connections_that_begin_but_the_proxys(given_facts: Facts) -> None:
    left = plan(given_facts).draining()
    about_syn = [rule for rule in left.rules if any(match.option == "syn" for match in rule.matches)]
    assert all(f"{given_facts.mark:#x}" in [match.value for match in rule.matches] for rule in about_syn)
    assert {rule.chain for rule in left.rules} == set(CHAINS)
    assert left.policy_rules == plan(given_facts).policy_rules


@given(facts)
def test_every_interface_has_a_route_in_each_family_it_speaks(given_facts: Facts) -> None:
    made = plan(given_facts)
    assert len(set(made.routes)) == len(made.routes)
    for family in made.families:
        indices = [route.interface for route in made.routes if route.family is family]
        assert indices == [i.index for i in given_facts.interfaces if family is Family.IPV4 or i.ipv6]
    assert {rule.family for rule in made.policy_rules} == set(made.families)


def test_without_ipv6_in_the_kernel_nothing_is_planned_for_it() -> None:
    made = plan(Facts(mark=7, interfaces=(Interface("lo", 1, ipv6=False),), ipv6=False))
    assert made.families == (Family.IPV4,)
    assert {rule.family for rule in made.policy_rules} == {route.family for route in made.routes} == {Family.IPV4}


def test_connection_marks_differ_under_their_mask() -> None:
    assert len({mark & CONNECTION_MASK for mark in (INBOUND, OUTBOUND, RELAYED)} - {0}) == 3


@pytest.mark.parametrize("mark", [-1, 0, REROUTE_MARK, 1 << 32])
def test_an_unusable_mark_is_refused(mark: int) -> None:
    with pytest.raises(ValueError, match="mark"):
        plan(Facts(mark=mark, interfaces=(), ipv6=True))


def test_nothing_is_nothing() -> None:
    assert (NOTHING.rules, NOTHING.policy_rules, NOTHING.routes) == ((), (), ())
