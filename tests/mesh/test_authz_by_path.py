"""Rules that are found by a request's path are all those that can match it, in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mesh.authz.by_path import ByPath
from mesh.authz.decider import Compiled, Peer, compiled, facts_of
from mesh.authz.matching import Reads
from mesh.model import Action, Operation, Policy, Rule

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
    pairs = [(policy, compiled(policy, Reads.REQUEST)) for policy in policies]
    facts = dataclasses.replace(FACTS, path=path)
    everything = [(one.key, index) for _, one in pairs for index, test in one.rules if test(facts)]
    found = ByPath(pairs).among(path)
    assert [(one.key, one.first_match(facts)) for one in found if one.first_match(facts) >= 0] == everything


def test_of_many_rules_only_those_are_looked_at_whose_path_it_is() -> None:
    looked: list[int] = []

    def note(number: int) -> Callable[[object], bool]:
        def test(_facts: object) -> bool:
            looked.append(number)
            return False

        return test

    policies = [
        Policy(f"p{n}", "shop", Action.ALLOW, (Rule(operations=(Operation(paths=(f"/p{n}/*", f"/v2/p{n}")),)),))
        for n in range(1000)
    ]
    pairs = [(policy, Compiled(policy.key, ((0, note(n)),))) for n, policy in enumerate(policies)]
    by_path = ByPath(pairs)
    for path in ("/p17/x", "/v2/p999", "/v2/p999/", "/p1234", "/"):
        for one in by_path.among(path):
            one.first_match(FACTS)
    assert looked == [17, 999]
