"""Rules that are found by who asks and for which path are all those that can match, however the index came about."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.authz.authorizer import Authorizer
from mesh.authz.decider import Peer, facts_of
from mesh.authz.groups import Groups
from mesh.authz.matching import Facts, Reads, compile_rule
from mesh.authz.rules import Kind, RuleGroup, Rules
from mesh.authz.selection import Mtls
from mesh.identity import Identity
from mesh.message import Request
from mesh.model import Action, Condition, Operation, Policy, Rule, Source

ROOT = "nodemesh-system"
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


def _some(*values: str, most: int = 2) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), max_size=most).map(tuple)


_operations = st.builds(
    Operation,
    paths=_some(*PATTERNS),
    not_paths=_some(*PATTERNS[:5], "/{a", most=1),
    methods=st.sampled_from([(), ("GET",), ("POST",)]),
)
_sources = st.builds(
    Source,
    principals=_some("td/ns/shop/sa/web", "td/ns/shop/sa/*", "*", "shop"),
    not_principals=_some("td/ns/shop/sa/api", most=1),
    namespaces=_some("shop", "other", "sh*"),
    service_accounts=_some("shop/web", "other/web", most=1),
    ip_blocks=_some("10.0.0.0/24", "nonsense", most=1),
)
_conditions = st.builds(
    Condition, st.sampled_from(("source.namespace", "request.headers[x-a]", "nonsense")), _some("shop", "1", most=1)
)
_rules = st.builds(
    Rule,
    st.lists(_sources, max_size=2).map(tuple),
    st.lists(_operations, max_size=2).map(tuple),
    st.lists(_conditions, max_size=1).map(tuple),
)
_policies = st.lists(
    st.builds(
        Policy,
        st.sampled_from(("p", "q", "r")),
        st.just("shop"),
        st.sampled_from(Action),
        st.lists(_rules, max_size=2).map(tuple),
        dry_run=st.booleans(),
    ),
    max_size=3,
)
_paths = st.lists(st.sampled_from(("a", "b", "ab", "c", "")), max_size=4).map(lambda parts: "/" + "/".join(parts))
_peers = st.sampled_from((None, Identity("td", "shop", "web"), Identity("td", "shop", "api"), Identity("x", "y", "z")))


def _facts(identity: Identity | None, path: str) -> Facts:
    facts = facts_of(Peer(identity, "10.0.0.1", "10.0.0.2", 80))
    return dataclasses.replace(facts, path=path, method="GET")


_WEB: dict[str, Any] = {"namespace": "shop", "labels": {"app": "web", "tier": "front"}, "root_namespace": ROOT}
_API: dict[str, Any] = {"namespace": "shop", "labels": {"app": "api"}, "root_namespace": ROOT}
_EMPTY = Groups[RuleGroup, Policy](RuleGroup())


@given(_policies, _peers, _paths)
def test_every_rule_that_matches_is_found_in_its_place(
    policies: list[Policy], identity: Identity | None, path: str
) -> None:
    facts = _facts(identity, path)
    rules = Rules(_EMPTY.replace(policies).of(**_WEB))
    for kind in rules.kinds:
        any_path = rules.of_any_path(kind, facts)
        for reads, found in (
            (Reads.CONNECTION, rules.of_connection(kind, facts)),
            (Reads.REQUEST, rules.of_request(kind, facts, any_path)),
        ):
            assert [(rule.key, rule.index) for rule in found] == [
                (policy.key, index)
                for policy in sorted(policies, key=lambda policy: policy.key)
                if kind in _KINDS[policy.action] and (policy.dry_run is (kind in _DRY) or kind is Kind.AUDIT)
                for index, rule in enumerate(policy.rules)
                if (test := compile_rule(rule, policy.action, reads)) is not None and test(facts)
            ]


_KINDS = {
    Action.CUSTOM: {Kind.CUSTOM},
    Action.AUDIT: {Kind.AUDIT},
    Action.DENY: {Kind.DENY, Kind.DRY_DENY},
    Action.ALLOW: {Kind.ALLOW, Kind.DRY_ALLOW},
}
_DRY = {Kind.DRY_DENY, Kind.DRY_ALLOW}


_CASES = (
    Rule(),
    Rule((Source(),)),
    Rule((Source(principals=("td/ns/shop/sa/web", "td/ns/shop/sa/api")),), (Operation(paths=("/a", "/a/*")),)),
    Rule((Source(principals=("td/ns/shop/sa/*",)), Source(namespaces=("y",)))),
    Rule((Source(namespaces=("shop",), ip_blocks=("10.0.0.0/24",)),)),
    Rule((Source(service_accounts=("shop/web",)),), (Operation(methods=("GET",)),)),
    Rule(operations=(Operation(paths=("/a/b", "/{*}/b")),)),
    Rule(operations=(Operation(paths=("*b",)), Operation(not_paths=("/a*",)))),
    Rule(conditions=(Condition("request.headers[x-a]", ("1",)),)),
)
_simple = st.builds(
    Policy,
    st.sampled_from(("p", "q", "r")),
    st.sampled_from(("shop", ROOT)),
    st.sampled_from(Action),
    st.lists(st.sampled_from(_CASES), max_size=2).map(tuple),
    st.sampled_from(({}, {"app": "web"}, {"app": "api"}, {"app": "web", "tier": "front"})),
    st.sampled_from((False, False, True)),
)
_steps = st.lists(
    st.tuples(st.lists(_simple, max_size=4), _some("shop/p", "shop/q", f"{ROOT}/r")), min_size=1, max_size=3
)


@given(_steps, _peers, _paths)
def test_changed_one_after_the_other_policies_are_what_they_are_made_anew(
    steps: list[tuple[list[Policy], tuple[str, ...]]], identity: Identity | None, path: str
) -> None:
    groups = _EMPTY
    there: dict[str, list[Policy]] = {}
    peer = Peer(identity, "10.0.0.1", "10.0.0.2", 80)
    request = Request(b"GET", b"web", path.encode(), [])
    for added, gone in steps:
        groups = groups.apply(added, gone)
        for key in {*gone, *(policy.key for policy in added)}:
            there[key] = [policy for policy in added if policy.key == key]
        fresh = _EMPTY.replace([one for key in there for one in there[key]])
        assert list(groups) == list(fresh)
        for workload in (_WEB, _API):
            mine, theirs = groups.of(**workload), fresh.of(**workload)
            assert sorted(map(_inside, mine)) == sorted(map(_inside, theirs))
            one, other = Authorizer(mine, Mtls()), Authorizer(theirs, Mtls())
            assert one.check(peer) == other.check(peer)
            assert one.check_request(peer, request) == other.check_request(peer, request)
            assert one.asks(peer, request) == other.asks(peer, request)
            assert (one.reads_requests, one.asks_others) == (other.reads_requests, other.asks_others)


def _inside(group: RuleGroup) -> str:
    """All that a group consists of."""
    found = {place: [rule.order for rule in rules] for place, rules in group.found.items()}
    parts = (found, group.names, group.lengths, group.keys, group.members)
    return repr([sorted(part.items(), key=repr) for part in parts] + [group.by_source, group.of_requests])


def _policy(name: str, rule: Rule, **selector: str) -> Policy:
    return Policy(name, "shop", Action.ALLOW, (rule,), selector)


def test_a_change_leaves_what_it_does_not_concern_as_it_was() -> None:
    one = _policy("one", Rule(), app="web")
    before = _EMPTY.replace([one, _policy("two", Rule(), app="api"), _policy("all", Rule())])
    after = before.apply([_policy("two", Rule(), app="web")], ["shop/gone"])
    assert set(before.of(**_API)) > set(after.of(**_API))
    assert len(set(before.of(**_WEB)) & set(after.of(**_WEB))) == 1
    assert after.apply([dataclasses.replace(one)], []) is after
    assert after.replace([_policy("all", Rule()), one, _policy("two", Rule(), app="web")]) is after


def test_a_rule_of_which_not_paths_cannot_be_read_is_found_for_every_path() -> None:
    rule = Rule(operations=(Operation(paths=("/a",), not_paths=("/{b",)),))
    for action in (Action.DENY, Action.CUSTOM):
        rules = Rules(_EMPTY.replace([Policy("p", "shop", action, (rule,))]).of(**_WEB))
        (kind,), facts = rules.kinds, _facts(None, "/c")
        assert len(list(rules.of_request(kind, facts, rules.of_any_path(kind, facts)))) == 1


def test_several_of_one_key_are_looked_at_in_one_order_however_they_came() -> None:
    """Two API groups may have a policy of the same name each."""
    policies = [
        Policy("p", "shop", Action.CUSTOM, (Rule(), Rule()), selector, provider=provider)
        for provider, selector in (("a", {}), ("b", {"app": "web"}), ("c", {"tier": "front"}))
    ]
    for n in range(3):
        groups = _EMPTY
        for count in range(4):
            groups = groups.replace((policies[n:] + policies[:n])[:count])
        found = Rules(groups.of(**_WEB)).of_connection(Kind.CUSTOM, _facts(None, "/"))
        assert [(rule.provider, rule.index) for rule in found] == [(name, i) for name in "abc" for i in (0, 1)]


class _Spied(Rules):
    """Says which rules were looked at."""

    def _in_order(self, *places: Any) -> Any:
        found = list(super()._in_order(*places))
        self.looked = [*getattr(self, "looked", []), *(rule.key for rule in found)]
        return found


def test_of_many_rules_only_those_are_looked_at_that_are_for_the_peer_and_the_path() -> None:
    policies = [
        _policy(
            f"p{n}",
            Rule(
                (Source(principals=(f"td/ns/shop/sa/{n}",)),) if n % 2 else (),
                (Operation(paths=(f"/p{n}/*", f"/v2/p{n}")),) if n % 3 else (),
            ),
        )
        for n in range(1000)
    ]
    rules = _Spied(_EMPTY.replace(policies).of(**_WEB))
    facts = _facts(Identity("td", "shop", "17"), "/p20/x")
    assert [rule.key for rule in rules.of_connection(Kind.ALLOW, facts)] == [
        f"shop/p{n}" for n in sorted(range(0, 1000, 6), key=str)
    ]
    assert len(rules.looked) == 167
    rules.looked.clear()
    assert [rule.key for rule in rules.of_request(Kind.ALLOW, facts, ())] == ["shop/p20"]
    for path in ("/p17/x", "/v2/p19", "/v2/p19/", "/p1234", "/"):
        list(rules.of_request(Kind.ALLOW, dataclasses.replace(facts, path=path), ()))
    assert rules.looked == ["shop/p20", "shop/p17"]
    assert rules.named(Kind.ALLOW, 2) == (["shop/p0", "shop/p1"], 1000)
