"""The smallest changes to a request or its peer that would turn a verdict round, each tried on the policies themselves.

A search by number of changes: what stands against the other verdict (a DENY rule that matches, ALLOW rules that do
not) names the facts to change, the rules' own values what to. Where it was and who served it are not changed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mesh.authz.authorizer import Authorizer
from mesh.authz.decider import Denial, Permit
from mesh.authz.explain import Case, Held, Judge, Test, held
from mesh.authz.matching import Reads
from mesh.identity import Identity, IdentityError
from mesh.model import Action, Policy

MOST = 3
"""Ways that are returned."""
_TRIES = 400
_WORK = 20_000
"""Cases that are put to the policies, and rules that are looked at for it; beyond, what was found is all."""
_NEAR = 32
"""Rules that are worked towards at a time, those that miss least."""
_TOGETHER = 4
"""Facts that are changed at once."""
_EACH = 3
"""Values that are tried for one fact, towards one rule."""

_HARD = {"identity": 2, "source address": 2, "token": 1}
"""A client's identity is harder to change than what it asks for: of equal numbers of changes, easier ones first."""


@dataclass(frozen=True, slots=True)
class Change:
    """Of one fact."""

    what: str
    """`path`, `method`, `host`, `header <name>`, `token`, `identity` or `source address`."""
    to: str
    """A value that would do; empty: none at all."""
    clause: str
    """The clause that asks for it, e.g. `paths`."""
    wanted: tuple[str, ...]
    """What that clause has."""
    among: bool
    """Whether the fact would be one of these then, or none of them."""


@dataclass(frozen=True, slots=True)
class Flip:
    """Changes that turn the verdict round, all together."""

    changes: tuple[Change, ...]
    verdict: Permit | Denial


class _Node(NamedTuple):
    size: int
    hardness: int
    number: int
    changes: tuple[Change, ...]
    case: Case


def flips(authorizer: Authorizer, case: Case) -> tuple[Flip, ...]:
    """Up to `MOST` ways, of those with the fewest changes; none if no change was found that does it.

    Raises `ValueError` if an address in the peer is not one.
    """
    judge = Judge(authorizer)
    wanted: type[Permit] | type[Denial] = Denial if isinstance(judge.decide(case), Permit) else Permit
    numbers = itertools.count()
    heap = [_Node(0, 0, next(numbers), (), case)]
    seen: set[tuple[str, ...]] = set()
    found: list[Flip] = []
    rules = sum(len(policy.rules) for policy in judge.policies)
    for _ in range(max(10, min(_TRIES, _WORK // (rules + 1)))):
        if not heap or (found and heap[0].size > len(found[0].changes)):
            break
        node = heapq.heappop(heap)
        verdict = judge.decide(node.case)
        if isinstance(verdict, wanted):
            told = tuple(sorted(f"{change.what} {change.clause}" for change in node.changes))
            if told not in seen:
                seen.add(told)
                found.append(Flip(node.changes, verdict))
                if len(found) == MOST:
                    break
            continue
        for changes, changed in _moves(judge, node.case, verdict, {change.what for change in node.changes}):
            every = (*node.changes, *changes)
            if len(every) <= _TOGETHER:
                hardness = sum(_HARD.get(change.what, 0) for change in every)
                heapq.heappush(heap, _Node(len(every), hardness, next(numbers), every, changed))
    return tuple(found)


_Move = tuple[tuple[Change, ...], Case]


def _moves(judge: Judge, case: Case, verdict: Permit | Denial, taken: set[str]) -> Iterator[_Move]:
    """Steps towards the other verdict that leave alone what is `taken`."""
    denying = (Action.DENY, Action.CUSTOM) if case.reads is Reads.CONNECTION else (Action.DENY,)
    deny = [policy for policy in judge.policies if policy.action in denying and not policy.dry_run]
    allow = [policy for policy in judge.policies if policy.action is Action.ALLOW and not policy.dry_run]
    enforced = [*deny, *allow]
    if isinstance(verdict, Denial) and verdict.policy and verdict.rule < 0:
        yield from _with_identity(enforced, case, taken)
        return
    if verdict.rule >= 0:
        for policy in enforced:
            if policy.key == verdict.policy and verdict.rule < len(policy.rules):
                yield from _unmatch(_held(policy, verdict.rule, case), case, taken)
    if isinstance(verdict, Permit) and case.peer.identity is not None and "identity" not in taken:
        plaintext = case._replace(peer=case.peer._replace(identity=None))
        if judge.strict(plaintext.peer):
            yield (Change("identity", "", "mutual TLS", (), among=False),), plaintext
    if isinstance(verdict, Denial) and verdict.rule >= 0:
        return  # a DENY rule: no ALLOW rule helps
    facts = case.facts()
    every = (
        (policy, held(rule, index, policy, facts, case.reads))
        for policy in (deny if isinstance(verdict, Permit) else allow)
        for index, rule in enumerate(policy.rules)
    )
    for policy, rule in heapq.nsmallest(_NEAR, every, key=lambda one: len(one[1].step.missed)):
        yield from _match(rule, case, taken, allow=policy.action is Action.ALLOW)


def _held(policy: Policy, rule: int, case: Case) -> Held:
    return held(policy.rules[rule], rule, policy, case.facts(), case.reads)


def _unmatch(rule: Held, case: Case, taken: set[str]) -> Iterator[_Move]:
    for group in rule.groups:
        for alternative in group:
            if all(test.clause.met or test.clause.problem for test in alternative):
                for test in alternative:
                    if not test.clause.problem:
                        yield from _changed([test], case, taken, met=False)


def _match(rule: Held, case: Case, taken: set[str], *, allow: bool) -> Iterator[_Move]:
    if rule.step.matched or (allow and any(clause.problem for clause in rule.step.clauses)):
        return
    for chosen in itertools.islice(itertools.product(*rule.groups), _TRIES):
        by_fact: dict[str, list[Test]] = {}
        for test in itertools.chain(*chosen):
            if not test.clause.problem:
                by_fact.setdefault(_element(test), []).append(test)
        missing = [tests for tests in by_fact.values() if not all(test.clause.met for test in tests)]
        moves: list[_Move] = [((), case)]
        for tests in missing:
            moves = [
                ((*before, *changes), changed)
                for before, at in moves
                for changes, changed in itertools.islice(_changed(tests, at, taken, met=True), _EACH)
            ]
        if missing:
            yield from moves


def _with_identity(policies: list[Policy], case: Case, taken: set[str]) -> Iterator[_Move]:
    """For plaintext where mutual TLS is required: of those that the policies speak of, first any that is not named."""
    if "identity" in taken:
        return
    named = [
        test
        for policy in policies
        for rule in range(len(policy.rules))
        for group in _held(policy, rule, case).groups
        for alternative in group
        for test in alternative
        if not test.clause.problem and _element(test) == "identity"
    ]
    candidates = [_ANYBODY, *(one for test in named for one in _identities(test.clause.wanted, test.fact, None))]
    for identity in dict.fromkeys(one for one in candidates if one is not None):
        change = Change("identity", identity.principal, "mutual TLS", (), among=True)
        yield (change,), case._replace(peer=case.peer._replace(identity=identity))


def _changed(tests: list[Test], case: Case, taken: set[str], *, met: bool) -> Iterator[_Move]:
    """One fact changed so that all these clauses are met, or none is."""
    what = _element(tests[0])
    if what in taken or not what:
        return
    for to, changed in _candidates(tests, what, case, met):
        facts = changed.facts()
        if all(test.met_by(facts) is met for test in tests):
            telling = next((test for test in tests if test.clause.met is not met), tests[0]).clause
            name = telling.name or what
            yield (Change(what, to, name, telling.wanted, telling.negated is not met),), changed


def _element(test: Test) -> str:
    """What of the case a clause reads; empty for what is not changed."""
    fact = test.fact
    if fact in ("principal", "namespace", "service_account"):
        return "identity"
    if fact in ("source", "remote.ip"):
        return "source address"
    if fact == "request_principal" or fact.startswith("request.auth."):
        return "token"
    if fact.startswith("request.headers["):
        return f"header {fact[len('request.headers[') : -1].lower()}"
    return fact if fact in ("method", "path", "host") else ""


def _candidates(tests: list[Test], what: str, case: Case, met: bool) -> Iterator[tuple[str, Case]]:
    """Values of a fact that may meet the clauses, or miss them, and the case with each."""
    wanted = [test for test in tests if test.clause.negated is not met]
    """Those whose values the fact is to be among."""
    values = tuple(value for test in wanted for value in test.clause.wanted)
    if what == "identity":
        own = case.peer.identity
        some = [one for test in wanted for one in _identities(test.clause.wanted, test.fact, own)]
        for identity in dict.fromkeys((*some, *_elsewhere(own))):
            text = identity.principal if identity is not None else ""
            yield text, case._replace(peer=case.peer._replace(identity=identity))
    elif what == "source address":
        for address in (*(value.partition("/")[0] for value in values), "192.0.2.1", "198.51.100.1", "2001:db8::1"):
            yield address, case._replace(peer=case.peer._replace(source_ip=address))
    elif what == "token":
        yield from _tokens(wanted, case)
    elif what in ("method", "path", "host"):
        for text in (*_texts(values, what), *_OTHER[what]):
            if what != "path" or text.startswith("/"):
                yield text, _with(case, what, text)
    else:
        name = what.removeprefix("header ")
        for text in _texts(values, "header"):
            yield text, case._replace(headers={**case.headers, name: text})
        yield "", case._replace(headers={key: value for key, value in case.headers.items() if key != name})
        yield "other", case._replace(headers={**case.headers, name: "other"})


def _with(case: Case, what: str, text: str) -> Case:
    if what == "method":
        return case._replace(method=text)
    return case._replace(path=text) if what == "path" else case._replace(host=text.lower())


_OTHER = {
    "method": ("GET", "POST", "PUT", "DELETE", "OTHER"),
    "path": ("/", "/other", "/x/y/z"),
    "host": ("other.example", "other"),
}
_ANY = {"method": "GET", "path": "/", "host": "any.example", "header": "any"}
_ANYBODY = Identity("cluster.local", "default", "default")


def _texts(values: tuple[str, ...], what: str) -> Iterator[str]:
    """Texts that patterns take."""
    for value in values:
        if what == "path" and "{" in value:
            yield value.replace("{**}", "x").replace("{*}", "x")
        elif value == "*":
            yield _ANY[what]
        elif what == "host" and value.startswith("*."):
            yield "any" + value[1:]  # nobody can ask for what begins with a dot, or ends with a colon
        elif what == "host" and value.endswith(":*"):
            yield value[:-1] + "80"
        elif value.startswith("*"):
            yield ("/x" if what == "path" and not value.startswith("*/") else "") + value[1:]
        elif value.endswith("*"):
            yield from (value[:-1], value[:-1] + "x")
        else:
            yield value


def _identities(values: tuple[str, ...], fact: str, own: Identity | None) -> Iterator[Identity | None]:
    """Identities that patterns of a clause may take."""
    own = own or _ANYBODY
    for text in _texts(values, "header"):
        try:
            if fact == "principal":
                yield from _principals(text, own)
            elif fact == "namespace":
                yield Identity(own.trust_domain, text, own.service_account)
            else:
                namespace, _, account = text.partition("/")
                yield Identity(own.trust_domain, namespace, account)
        except IdentityError:
            continue


def _principals(text: str, own: Identity) -> Iterator[Identity]:
    """Identities that hold this text at their start, at their end, or altogether."""
    if text == "any":
        yield own
        return
    parts, named = text.split("/"), own.principal.split("/")
    for whole in (parts, [*parts, *named[len(parts) :]], [*named[: -len(parts)], *parts]):
        match whole:
            case [trust_domain, "ns", namespace, "sa", account]:
                try:
                    yield Identity(trust_domain or own.trust_domain, namespace or "any", account or "any")
                except IdentityError:
                    continue


def _elsewhere(own: Identity | None) -> Iterator[Identity | None]:
    base = own or _ANYBODY
    yield Identity(base.trust_domain, base.namespace, "other")
    yield Identity(base.trust_domain, "other", base.service_account)
    yield Identity(base.trust_domain, "other", "other")
    yield None


def _tokens(wanted: list[Test], case: Case) -> Iterator[tuple[str, Case]]:
    for test in wanted:
        for text in _texts(test.clause.wanted, "header"):
            claims = _claiming(test.fact, text, case.claims or {})
            if claims is not None:
                yield text, case._replace(claims=claims)
    yield "", case._replace(claims=None)
    other = {**(case.claims or {}), "iss": "https://other.example", "sub": "other"}
    yield "https://other.example/other", case._replace(claims=other)


def _claiming(fact: str, text: str, claims: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Claims that say so."""
    if fact in ("request_principal", "request.auth.principal"):
        issuer, _, subject = text.rpartition("/")
        return {**claims, "iss": issuer or "https://any.example", "sub": subject or "any"}
    if fact in ("request.auth.audiences", "request.auth.presenter"):
        return {**claims, ("aud" if fact.endswith("audiences") else "azp"): text}
    return _nested(claims, fact[len("request.auth.claims[") : -1].split("]["), text)


def _nested(claims: Any, names: list[str], text: str) -> Mapping[str, Any]:
    outer = dict(claims) if isinstance(claims, Mapping) else {}
    outer[names[0]] = text if len(names) == 1 else _nested(outer.get(names[0]), names[1:], text)
    return outer
