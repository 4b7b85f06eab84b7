"""Authorizer: Istio's order and matching at layer 4, against an oracle and by the examples of its documentation."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.authz import Authorizer, Denial, Peer, Permit
from mesh.identity import Identity
from mesh.model import Action, Condition, MtlsMode, Operation, PeerAuth, Policy, Rule, Source

from . import istio
from .samples import NAMESPACES, PORTS, ROOT, identities, peer_auths, policies, tuples

CLIENT = Identity("cluster.local", "shop", "client")
PEER = Peer(CLIENT, "10.77.0.1", "10.77.0.2", 8080)
PLAINTEXT = PEER._replace(identity=None)
ANYTHING = (Rule(),)


def authorizer(*policies: Policy, peer_auths: tuple[PeerAuth, ...] = (), **labels: str) -> Authorizer:
    return Authorizer.of(policies, peer_auths, namespace="shop", labels=labels, root_namespace=ROOT)


def allow(*rules: Rule, name: str = "allow", namespace: str = "shop") -> Policy:
    return Policy(name, namespace, Action.ALLOW, rules)


def deny(*rules: Rule, name: str = "deny", namespace: str = "shop") -> Policy:
    return Policy(name, namespace, Action.DENY, rules)


def source(**fields: tuple[str, ...]) -> Rule:
    return Rule(sources=(Source(**fields),))


def permitted(*policies: Policy, peer: Peer = PEER) -> bool:
    return isinstance(authorizer(*policies).check(peer), Permit)


def matches(rule: Rule, peer: Peer = PEER) -> bool:
    """Whether the rule matches, provided that it says the same as an ALLOW and as a DENY."""
    as_allow, as_deny = permitted(allow(rule), peer=peer), not permitted(deny(rule), peer=peer)
    assert as_allow == as_deny
    return as_allow


peers = st.builds(
    Peer,
    st.none() | identities,
    st.sampled_from(["10.77.0.1", "10.77.0.2", "::ffff:10.77.0.1", "192.0.2.1", "fd00::1", "fd00:0:0:1::1"]),
    st.sampled_from(["10.77.0.2", "fd00::2"]),
    st.sampled_from(PORTS),
)
labels = st.sampled_from([{}, {"app": "web"}, {"app": "web", "version": "v1"}])


@given(tuples(policies, 5), tuples(peer_auths, 5), st.sampled_from(NAMESPACES), labels, st.lists(peers, min_size=1))
def test_every_verdict_is_what_istios_documentation_says(
    defined: tuple[Policy, ...],
    auths: tuple[PeerAuth, ...],
    namespace: str,
    labels: dict[str, str],
    conns: list[Peer],
) -> None:
    checks = Authorizer.of(defined, auths, namespace=namespace, labels=labels, root_namespace=ROOT)
    mine = [policy for policy in defined if istio.applies(policy, namespace, labels, ROOT)]
    mine = [policy for policy in mine if policy.action is not Action.CUSTOM or not policy.dry_run]  # nobody is asked
    enforced = [policy for policy in mine if not policy.dry_run]
    for conn in conns + conns:
        mode = istio.mtls_mode(auths, namespace, labels, ROOT, conn.destination_port)
        plain = conn._replace(source_ip=conn.source_ip.removeprefix("::ffff:"))
        verdict = checks.check(conn)

        assert checks.mtls_mode(conn.destination_port) is mode
        assert isinstance(verdict, Permit) == istio.allowed(enforced, mode, plain)
        assert bool(verdict.dry_run) == (istio.allowed(mine, mode, plain) != istio.allowed(enforced, mode, plain))
        if verdict.rule >= 0:
            actions = (Action.ALLOW,) if isinstance(verdict, Permit) else (Action.CUSTOM, Action.DENY)
            decided = [p for p in enforced if p.key == verdict.policy and p.action in actions]
            assert any(
                istio.rule_matches(policy.rules[verdict.rule], policy.action, plain)
                for policy in decided
                if verdict.rule < len(policy.rules)
            )


def test_without_policies_everyone_is_permitted() -> None:
    verdict = authorizer().check(PLAINTEXT)
    assert isinstance(verdict, Permit)
    assert (verdict.policy, verdict.rule, verdict.dry_run) == ("", -1, ())


def test_a_deny_beats_an_allow_and_is_named_with_its_rule() -> None:
    verdict = authorizer(allow(Rule()), deny(source(namespaces=("other",)), source(namespaces=("shop",)))).check(PEER)
    assert isinstance(verdict, Denial)
    assert (verdict.policy, verdict.rule) == ("shop/deny", 1)


def test_an_allow_that_matches_is_named_with_its_rule() -> None:
    verdict = authorizer(allow(source(namespaces=("other",)), source(namespaces=("shop",)))).check(PEER)
    assert isinstance(verdict, Permit)
    assert (verdict.policy, verdict.rule) == ("shop/allow", 1)


def test_one_allow_policy_denies_everyone_it_does_not_match_and_says_so() -> None:
    several = [allow(source(namespaces=("other",)), name=f"a{n}") for n in range(5)]
    verdict = authorizer(*several).check(PEER)
    assert isinstance(verdict, Denial)
    assert (verdict.policy, verdict.rule) == ("", -1)
    assert verdict.reason == "matched no ALLOW policy (shop/a0, shop/a1, shop/a2 and 2 more)"


def test_a_policy_without_rules_matches_nothing_and_an_empty_rule_everything() -> None:
    assert not permitted(allow())
    assert permitted(deny())
    assert permitted(allow(Rule()), peer=PLAINTEXT)
    assert not permitted(deny(Rule()), peer=PLAINTEXT)


@pytest.mark.parametrize(
    ("namespace", "selector", "applies"),
    [
        ("shop", {}, True),
        ("other", {}, False),
        (ROOT, {}, True),
        ("shop", {"app": "web"}, True),
        (ROOT, {"app": "web"}, True),
        ("shop", {"app": "api"}, False),
        (ROOT, {"app": "api"}, False),
        ("shop", {"app": "web", "tier": "back"}, False),
    ],
)
def test_a_policy_applies_in_its_namespace_and_a_root_one_everywhere(
    namespace: str, selector: dict[str, str], applies: bool
) -> None:
    policy = replace(deny(Rule(), namespace=namespace), selector=selector)
    verdict = authorizer(policy, app="web", version="v1").check(PEER)
    assert isinstance(verdict, Denial if applies else Permit)


@pytest.mark.parametrize(
    ("value", "matching"),
    [
        ("cluster.local/ns/shop/sa/client", True),
        ("cluster.local/ns/shop/sa/clien", False),
        ("td/ns/shop/sa/client", False),
        ("spiffe://cluster.local/ns/shop/sa/client", False),
        ("cluster.local/ns/shop/*", True),
        ("cluster.local/ns/other/*", False),
        ("*/sa/client", True),
        ("*/sa/web", False),
        ("*", True),
        ("*ns/shop*", False),
        ("cluster.local/*/sa/client", False),
    ],
)
def test_principals_match_exactly_by_prefix_suffix_or_presence(value: str, matching: bool) -> None:
    assert matches(source(principals=(value,))) is matching
    assert matches(source(not_principals=(value,))) is not matching
    assert matches(Rule(conditions=(Condition("source.principal", (value,)),))) is matching


@pytest.mark.parametrize(
    ("value", "matching"), [("shop", True), ("sh*", True), ("*op", True), ("*", True), ("sho", False)]
)
def test_namespaces_match_exactly_by_prefix_suffix_or_presence(value: str, matching: bool) -> None:
    assert matches(source(namespaces=(value,))) is matching
    assert matches(source(not_namespaces=(value,))) is not matching
    assert matches(Rule(conditions=(Condition("source.namespace", (), (value,)),))) is not matching


@pytest.mark.parametrize(("value", "matching"), [("shop/client", True), ("other/client", False), ("shop/*", False)])
def test_service_accounts_match_exactly(value: str, matching: bool) -> None:
    assert matches(source(service_accounts=(value,))) is matching
    assert matches(source(not_service_accounts=(value,))) is not matching


@pytest.mark.parametrize("field", ["principals", "namespaces", "service_accounts"])
def test_a_plaintext_peer_has_no_identity_to_match_not_even_by_presence(field: str) -> None:
    for value in ("*", "", "shop", "*p", "s*"):
        assert not matches(source(**{field: (value,)}), PLAINTEXT)
        assert matches(source(**{f"not_{field}": (value,)}), PLAINTEXT)


@pytest.mark.parametrize(
    ("value", "address", "matching"),
    [
        ("10.77.0.1", "10.77.0.1", True),
        ("10.77.0.0/24", "10.77.0.1", True),
        ("10.77.0.99/24", "10.77.0.1", True),
        ("10.77.1.0/24", "10.77.0.1", False),
        ("fd00::/64", "fd00::1", True),
        ("fd00::/64", "fd00:0:0:1::1", False),
        ("::/0", "10.77.0.1", False),
        ("0.0.0.0/0", "fd00::1", False),
        ("10.77.0.1", "::ffff:10.77.0.1", True),
        ("::ffff:10.77.0.0/120", "10.77.0.1", True),
        ("fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_addresses_match_by_block(value: str, address: str, matching: bool) -> None:
    assert matches(source(ip_blocks=(value,)), PEER._replace(source_ip=address)) is matching
    assert matches(source(not_ip_blocks=(value,)), PEER._replace(source_ip=address)) is not matching
    for key, peer in (
        ("source.ip", PEER._replace(source_ip=address)),
        ("destination.ip", PEER._replace(destination_ip=address)),
    ):
        assert matches(Rule(conditions=(Condition(key, (value,)),)), peer) is matching
        assert matches(Rule(conditions=(Condition(key, (), (value,)),)), peer) is not matching


def test_ports_are_target_ports() -> None:
    for rule in (
        Rule(operations=(Operation(ports=(80, 8080)),)),
        Rule(conditions=(Condition("destination.port", ("8080",)),)),
    ):
        assert matches(rule)
        assert not matches(rule, PEER._replace(destination_port=8081))
    assert not matches(Rule(operations=(Operation(not_ports=(8080,)),)))


def test_fields_of_a_source_are_anded_and_sources_ored() -> None:
    both = Source(namespaces=("shop",), not_ip_blocks=("10.77.0.1",))
    assert not matches(Rule(sources=(both,)))
    assert matches(Rule(sources=(both,)), PEER._replace(source_ip="10.77.0.9"))
    assert matches(Rule(sources=(both, Source(principals=("*/client",)))))


def test_sources_operations_and_every_condition_must_match() -> None:
    rule = Rule(
        (Source(namespaces=("shop",)),),
        (Operation(ports=(80,)), Operation(ports=(8080,))),
        (Condition("source.ip", ("10.77.0.1",)), Condition("destination.ip", ("10.77.0.2",))),
    )
    assert matches(rule)
    assert not matches(rule, PEER._replace(identity=Identity("cluster.local", "other", "client")))
    assert not matches(rule, PEER._replace(destination_port=443))
    assert not matches(rule, PEER._replace(source_ip="10.77.0.9"))
    assert not matches(rule, PEER._replace(destination_ip="10.77.0.9"))


@pytest.mark.parametrize(
    "unevaluable",
    [
        Rule(sources=(Source(namespaces=("shop",), request_principals=("*",)),)),
        Rule(sources=(Source(remote_ip_blocks=("10.0.0.0/8",)),)),
        Rule(operations=(Operation(methods=("GET",)),)),
        Rule(operations=(Operation(ports=(8080,)), Operation(ports=(8080,), paths=("/x",)))),
        Rule(conditions=(Condition("request.headers[x]", ("y",)),)),
        Rule(conditions=(Condition("connection.sni", ("*",)),)),
        Rule(conditions=(Condition("remote.ip", ("10.77.0.1",)),)),
        Rule(conditions=(Condition("made.up", (), ("z",)),)),
        Rule(conditions=(Condition("source.ip"),)),
        Rule(sources=(Source(),)),
        Rule(operations=(Operation(),)),
        Rule(sources=(Source(ip_blocks=("10.77.0.1", "10.77.0.0/99")),)),
        Rule(sources=(Source(namespaces=("shop",), not_ip_blocks=("10.77.0.0/99",)),)),
        Rule(conditions=(Condition("destination.port", (), ("http",)),)),
    ],
)
def test_what_cannot_be_evaluated_spoils_an_allow_and_counts_as_matched_in_a_deny(unevaluable: Rule) -> None:
    assert not permitted(allow(unevaluable))
    assert not permitted(deny(unevaluable))


def test_the_other_clauses_of_a_deny_rule_with_http_clauses_still_count() -> None:
    posts = deny(Rule(operations=(Operation(ports=(8080,), methods=("GET",)),)))
    assert not permitted(posts)
    assert permitted(posts, peer=PEER._replace(destination_port=8081))


def test_the_other_rules_of_an_allow_policy_with_http_clauses_still_count() -> None:
    http = Rule(operations=(Operation(methods=("GET",)),))
    verdict = authorizer(allow(http, source(namespaces=("shop",)))).check(PEER)
    assert isinstance(verdict, Permit)
    assert verdict.rule == 1


def test_strict_denies_plaintext_and_names_the_policy() -> None:
    strict = PeerAuth("default", "shop", MtlsMode.STRICT)
    checks = authorizer(allow(Rule()), peer_auths=(strict,))
    verdict = checks.check(PLAINTEXT)
    assert isinstance(verdict, Denial)
    assert (verdict.policy, verdict.rule) == ("shop/default", -1)
    assert "STRICT" in verdict.reason
    assert isinstance(checks.check(PEER), Permit)


@pytest.mark.parametrize("mode", [MtlsMode.DISABLE, MtlsMode.PERMISSIVE, MtlsMode.UNSET])
def test_other_modes_let_plaintext_and_tunnels_in(mode: MtlsMode) -> None:
    checks = authorizer(peer_auths=(PeerAuth("default", "shop", mode),))
    assert isinstance(checks.check(PLAINTEXT), Permit)
    assert isinstance(checks.check(PEER), Permit)


def dry(policy: Policy) -> Policy:
    return replace(policy, dry_run=True)


@pytest.mark.parametrize(
    ("defined", "permits", "would"),
    [
        ([dry(deny(Rule()))], True, ("shop/deny would deny",)),
        ([dry(deny(source(namespaces=("other",))))], True, ()),
        ([dry(allow(source(namespaces=("other",))))], True, ("shop/allow would deny",)),
        ([dry(allow(Rule()))], True, ()),
        ([dry(allow(Rule())), dry(allow(name="b"))], True, ()),
        ([dry(allow(Rule())), dry(deny(Rule()))], True, ("shop/deny would deny",)),
        ([dry(allow()), allow(Rule(), name="b")], True, ()),
        ([dry(deny(Rule())), allow(Rule())], True, ("shop/deny would deny",)),
        ([dry(allow(Rule())), allow(name="b")], False, ("shop/allow would allow",)),
        ([dry(allow(Rule())), allow(name="b"), dry(deny(Rule()))], False, ()),
        ([dry(allow(Rule())), deny(Rule())], False, ()),
    ],
)
def test_a_dry_run_policy_changes_nothing_but_is_named_if_it_would(
    defined: list[Policy], permits: bool, would: tuple[str, ...]
) -> None:
    verdict = authorizer(*defined).check(PEER)
    assert isinstance(verdict, Permit) is permits
    assert verdict.dry_run == would


def test_a_permit_cannot_be_made_elsewhere() -> None:
    with pytest.raises(TypeError, match="comes from Authorizer"):
        Permit(None, "shop/allow", 0, "because", ())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Permit("shop/allow", 0, "because", ())  # type: ignore[call-arg, arg-type]
    permit = authorizer().check(PEER)
    assert isinstance(permit, Permit)
    with pytest.raises((TypeError, ValueError), match="seal"):  # Python 3.13: TypeError
        dataclasses.replace(permit, policy="shop/other")  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        permit.policy = "shop/other"  # type: ignore[misc]


def test_a_verdict_is_remembered_by_what_it_depends_on() -> None:
    by_name = authorizer(allow(source(namespaces=("shop",))))
    assert by_name.check(PEER) is by_name.check(PEER._replace(source_ip="10.77.0.9"))
    by_address = authorizer(deny(source(ip_blocks=("10.77.0.9",))))
    assert by_address.check(PEER) is by_address.check(PEER._replace())
    assert isinstance(by_address.check(PEER._replace(source_ip="10.77.0.9")), Denial)
    for rule in (
        Rule(conditions=(Condition("source.ip", (), ("10.77.0.9",)),)),
        Rule(sources=(Source(not_ip_blocks=("10.77.0.9",)),)),
    ):
        checks = authorizer(deny(rule))
        assert isinstance(checks.check(PEER), Denial)
        assert isinstance(checks.check(PEER._replace(source_ip="10.77.0.9")), Permit)


@pytest.mark.parametrize(
    "other",
    [
        PLAINTEXT,
        PEER._replace(identity=replace(CLIENT, service_account="web")),
        PEER._replace(identity=replace(CLIENT, trust_domain="td")),
        PEER._replace(destination_ip="10.77.0.3"),
        PEER._replace(destination_port=8081),
    ],
)
def test_a_remembered_verdict_is_not_given_to_another_peer(other: Peer) -> None:
    conditions = (
        Condition("source.principal", ("cluster.local/ns/shop/sa/client",)),
        Condition("destination.ip", ("10.77.0.2",)),
        Condition("destination.port", ("8080",)),
    )
    checks = authorizer(allow(Rule(conditions=conditions)))
    assert isinstance(checks.check(PEER), Permit)
    assert isinstance(checks.check(other), Denial)


def test_remembered_verdicts_are_bounded() -> None:
    checks = authorizer(deny(Rule(operations=(Operation(ports=(7,)),))))
    for port in range(1, 5000):
        assert isinstance(checks.check(PEER._replace(destination_port=port)), Denial) == (port == 7)
    assert len(checks._memo) <= 1024


def test_an_address_that_is_none_gets_no_verdict() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        authorizer().check(PEER._replace(source_ip="nowhere"))
