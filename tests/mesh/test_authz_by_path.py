"""Rules that are found by a request's path are all those that can match it, in their order."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from mesh.authz.by_path import ByPath
from mesh.authz.decider import Peer, compiled, facts_of
from mesh.authz.matching import Reads
from mesh.identity import Identity
from mesh.model import Action, Operation, Policy, Rule, Source

FACTS = dataclasses.replace(facts_of(Peer(None, "10.0.0.1", "10.0.0.2", 80)), method="GET")
PATTERNS = (
    "/",
    "*",
    "/a",
    "/a*",
    "/a/*",
    "/ab",
    "*b",
    "/a/b",
    "/{*}/b",
    "/a/{*}",
    "/a/{**}",
    "/{**}",
    "/a/{*}/c",
    "/{a",
)
_operations = st.builds(
    Operation,
    paths=st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple),
    not_paths=st.lists(st.sampled_from(PATTERNS[:5]), max_size=1).map(tuple),
    methods=st.sampled_from([(), ("GET",), ("POST",)]),
)
_rules = st.builds(Rule, operations=st.lists(_operations, max_size=2).map(tuple))
_policies = st.lists(
    st.builds(
        Policy,
        st.sampled_from(("p", "q")),
        st.just("shop"),
        st.sampled_from((Action.ALLOW, Action.DENY)),
        st.lists(_rules, max_size=3).map(tuple),
    ),
    max_size=5,
)
_paths = st.lists(st.sampled_from(("a", "b", "ab", "c", "")), max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(_policies, _paths)
def test_every_rule_that_matches_is_found_in_its_place(policies: list[Policy], path: str) -> None:
    facts = dataclasses.replace(FACTS, path=path)
    everything = [
        (policy.key, index)
        for policy in policies
        for index, test in compiled(policy, Reads.REQUEST).rules
        if test(facts)
    ]  # fmt: skip
    for found in (ByPath(policies), ByPath(policies).narrowed(FACTS)):
        assert [(key, index) for key, index, test in found.among(path) if test(facts)] == everything


def test_of_many_rules_only_those_are_looked_at_whose_path_it_is() -> None:
    policies = [
        Policy(f"p{n}", "shop", Action.ALLOW, (Rule(operations=(Operation(paths=(f"/p{n}/*", f"/v2/p{n}")),)),))
        for n in range(1000)
    ]
    by_path = ByPath(policies)
    looked = [
        key for path in ("/p17/x", "/v2/p999", "/v2/p999/", "/p1234", "/") for key, _, _ in by_path.among(path)
    ]  # fmt: skip
    assert looked == ["shop/p17", "shop/p999"]
    assert by_path.keys == [policy.key for policy in policies]


def test_rules_that_ask_for_no_path_are_looked_at_for_the_peers_that_they_name() -> None:
    policies = [
        Policy(f"p{n}", "shop", Action.ALLOW, (Rule(sources=(Source(principals=(f"td/ns/shop/sa/{n}",)),)),))
        for n in range(1000)
    ]
    peer = facts_of(Peer(Identity("td", "shop", "17"), "10.0.0.1", "10.0.0.2", 80))
    assert [key for key, _, _ in ByPath(policies).narrowed(peer).among("/")] == ["shop/p17"]
