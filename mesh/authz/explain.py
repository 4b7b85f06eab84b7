"""Why a workload's policies say what they say: every rule's clauses held against the facts, one by one.

The verdict is the enforced one (`Authorizer`); the steps are worked out apart, from the same fields and the
same matching. For people who ask, not for traffic.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from mesh.authz.authorizer import Authorizer
from mesh.authz.decider import Ask, Denial, Peer, Permit, decide, facts_of
from mesh.authz.matching import (
    CONNECTION_ATTRIBUTES,
    OPERATION_FIELDS,
    SOURCE_FIELDS,
    Facts,
    Field,
    Reads,
    request_fact,
)
from mesh.authz.requests import Requests, principal_of
from mesh.message import CREDENTIALS, Request
from mesh.model import Action, Condition, Operation, Policy, Rule, Source

_SHOWN = 200
"""Characters of a fact."""
_ON_TCP = "needs a request, which a TCP connection does not have"


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause of a rule, held against the facts."""

    place: str
    """`from[0]`, `to[0]` or `when[0]`."""
    name: str
    """As the manifest has it: `paths`, `notPaths`, `request.headers[x-team]`."""
    wanted: tuple[str, ...]
    """One of these must be the fact, or (`negated`) none may."""
    negated: bool
    value: str
    """The fact; empty if there is none. Of headers that hold credentials only that there is one."""
    met: bool
    problem: str = ""
    """Why it cannot be evaluated: then an ALLOW or AUDIT rule matches nothing, DENY and CUSTOM take it as met."""


@dataclass(frozen=True, slots=True)
class RuleStep:
    """One rule of a policy."""

    rule: int
    matched: bool
    clauses: tuple[Clause, ...]
    missed: tuple[Clause, ...]
    """If it did not match, the fewest clauses that would have to be met."""


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """One policy, in the order in which they count."""

    policy: str
    """`<namespace>/<name>`."""
    action: str
    dry_run: bool
    matched: int
    """Index of the first rule that matched, or -1."""
    decided: bool
    """Whether the verdict is this one's."""
    rules: tuple[RuleStep, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict and how it came about."""

    verdict: Permit | Denial
    mtls_mode: str
    """Of the target port; STRICT decides about plaintext before any policy."""
    asks: tuple[Ask, ...]
    """Of a request, the providers of CUSTOM policies that match: each must permit it first, and may not."""
    steps: tuple[PolicyStep, ...]

    @property
    def allowed(self) -> bool:
        """The verdict."""
        return isinstance(self.verdict, Permit)

    @property
    def nearest(self) -> tuple[PolicyStep, RuleStep] | None:
        """Of a peer that no ALLOW policy let in, the rule that came closest; None if there is none or it isn't so."""
        if self.allowed or self.verdict.policy:
            return None
        could = [
            (step, rule)
            for step in self.steps
            if step.action == Action.ALLOW.value and not step.dry_run
            for rule in step.rules
            if rule.missed and not any(clause.problem for clause in rule.clauses)
        ]
        return min(could, key=lambda one: len(one[1].missed), default=None)


class Case(NamedTuple):
    """A peer and its request (or its connection, where `reads` says so)."""

    peer: Peer
    reads: Reads
    method: str = ""
    path: str = ""
    host: str = ""
    headers: Mapping[str, str | list[str]] = {}
    claims: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, peer: Peer, request: Request | None, claims: Mapping[str, Any] | None) -> Case:
        """As `Authorizer.check_request` sees it, or without a request as `check` does."""
        if request is None:
            return cls(peer, Reads.CONNECTION)
        headers: dict[str, list[str]] = {}
        for raw, value in request.headers:
            name, text = raw.decode("latin-1"), value.decode("latin-1")
            headers.setdefault(name, []).append(text)
        path = request.path.partition(b"?")[0].decode("latin-1")
        host = request.authority.decode("latin-1").lower()
        return cls(peer, Reads.REQUEST, request.method.decode("latin-1"), path, host, headers, claims)

    def facts(self) -> Facts:
        """What rules can ask. Raises `ValueError` if an address is not one."""
        facts = facts_of(self.peer)
        if self.reads is Reads.CONNECTION:
            return facts
        return Facts(
            *(facts.principal, facts.namespace, facts.service_account, facts.source, facts.destination, facts.port),
            *(self.method, self.path, self.host, self.headers.get, self.claims, principal_of(self.claims)),
        )


class Judge:
    """A workload's policies without memory, for a case that may be imagined."""

    def __init__(self, authorizer: Authorizer) -> None:
        self.policies = authorizer.policies
        self._rules, self.strict = authorizer.rules, authorizer.strict

    def decide(self, case: Case) -> Permit | Denial:
        """The verdict."""
        if (strict := self.strict(case.peer)) is not None:
            return strict
        facts = case.facts()
        if case.reads is Reads.REQUEST:
            return Requests(None, facts, self._rules).decide(facts)
        return decide(self._rules, lambda kind: self._rules.of_connection(kind, facts), asked=False)

    def asks(self, case: Case) -> tuple[Ask, ...]:
        """Who must permit a request before it comes to a verdict."""
        if case.reads is Reads.CONNECTION or self.strict(case.peer):
            return ()
        facts = case.facts()
        return Requests(None, facts, self._rules).asked(facts)


def explain(authorizer: Authorizer, case: Case) -> Explanation:
    """Say why. Raises `ValueError` if an address in the peer is not one."""
    judge = Judge(authorizer)
    verdict = judge.decide(case)
    facts = case.facts()
    steps = []
    for policy in sorted(judge.policies, key=_order):
        rules = tuple(held(rule, index, policy, facts, case.reads).step for index, rule in enumerate(policy.rules))
        first = next((step.rule for step in rules if step.matched), -1)
        decided = not policy.dry_run and policy.key == verdict.policy and first == verdict.rule >= 0
        steps.append(PolicyStep(policy.key, policy.action.value, policy.dry_run, first, decided, rules))
    mode = authorizer.mtls_mode(case.peer.destination_port).value
    return Explanation(verdict, mode, judge.asks(case), tuple(steps))


_ORDER = (Action.CUSTOM, Action.DENY, Action.ALLOW, Action.AUDIT)


def _order(policy: Policy) -> tuple[bool, int]:
    return policy.dry_run, _ORDER.index(policy.action)


class Test(NamedTuple):
    """A clause that can be held against other facts, too."""

    clause: Clause
    read: Callable[[Facts], Any]
    among: Callable[[Any], bool]
    fact: str
    """What it reads: a field of `Facts`, or a condition's key."""

    def met_by(self, facts: Facts) -> bool:
        """Whether these facts meet it."""
        return self.among(self.read(facts)) is not self.clause.negated


class Held(NamedTuple):
    """A rule held against facts."""

    step: RuleStep
    groups: tuple[tuple[tuple[Test, ...], ...], ...]
    """Sources, operations, and each condition, where there are any: one alternative of each group must be met."""


def held(rule: Rule, index: int, policy: Policy, facts: Facts, reads: Reads) -> Held:
    """Evaluate a rule, clause by clause."""
    groups = [
        tuple(tuple(_fields(one, SOURCE_FIELDS, f"from[{i}]", facts, reads)) for i, one in enumerate(rule.sources)),
        tuple(tuple(_fields(one, OPERATION_FIELDS, f"to[{i}]", facts, reads)) for i, one in enumerate(rule.operations)),
        *((tuple(_condition(one, f"when[{i}]", facts, reads)),) for i, one in enumerate(rule.conditions)),
    ]
    present = tuple(group for group in groups if group)
    clauses = tuple(test.clause for group in present for alternative in group for test in alternative)
    allow = policy.action not in (Action.DENY, Action.CUSTOM)
    missed = [
        test.clause
        for group in present
        for test in min((_missed(alternative, allow) for alternative in group), key=len)
    ]
    matched = not missed and not (allow and any(clause.problem for clause in clauses))
    if allow and not matched and not missed:  # an alternative that is not needed cannot be evaluated
        missed = [clause for clause in clauses if clause.problem]
    return Held(RuleStep(index, matched, clauses, tuple(missed)), present)


def _missed(alternative: tuple[Test, ...], allow: bool) -> list[Test]:
    return [test for test in alternative if (allow if test.clause.problem else not test.clause.met)]


def _fields(
    of: Source | Operation, fields: tuple[Field, ...], place: str, facts: Facts, reads: Reads
) -> Iterator[Test]:
    some = False
    for field in fields:
        problem = _ON_TCP if field.of_request and reads is Reads.CONNECTION else ""
        values, not_values = getattr(of, field.name), getattr(of, f"not_{field.name}")
        name = _manifest_name(field.name)
        for test in _tests(place, name, attrgetter(field.fact), field, values, not_values, facts, problem):
            some = True
            yield test
    if not some:
        yield _unevaluable(place, "", (), False, "says nothing")


def _condition(condition: Condition, place: str, facts: Facts, reads: Reads) -> Iterator[Test]:
    key, values, not_values = condition.key, condition.values, condition.not_values
    if (known := CONNECTION_ATTRIBUTES.get(key)) is not None:
        found = list(_tests(place, key, attrgetter(known[0]), Field(key, *known), values, not_values, facts, ""))
    elif (fact := request_fact(key)) is not None:
        problem = _ON_TCP if reads is Reads.CONNECTION else ""
        found = list(_tests(place, key, fact[0], Field(key, key, fact[1]), values, not_values, facts, problem))
    else:
        found = [_unevaluable(place, key, values, False, "is no attribute that is known here")]
    yield from found or [_unevaluable(place, key, (), False, "says nothing")]


def _tests(
    place: str,
    name: str,
    read: Callable[[Facts], Any],
    field: Field,
    values: tuple[Any, ...],
    not_values: tuple[Any, ...],
    facts: Facts,
    problem: str,
) -> Iterator[Test]:
    compiled_ = {}
    for negated, wanted in ((False, values), (True, not_values)):
        try:
            compiled_[negated] = field.compiled(wanted)
        except ValueError as error:
            problem = problem or str(error)
    for negated, wanted in ((False, values), (True, not_values)):
        if not wanted:
            continue
        shown = name if not negated or "." in name else f"not{name[:1].upper()}{name[1:]}"
        texts = tuple(str(value) for value in wanted)
        if problem:
            yield _unevaluable(place, shown, texts, negated, problem)
            continue
        among = compiled_[negated]
        met = among(read(facts)) is not negated
        clause = Clause(place, shown, texts, negated, _shown(name, read(facts)), met)
        yield Test(clause, read, among, field.fact)


def _unevaluable(place: str, name: str, wanted: tuple[str, ...], negated: bool, problem: str) -> Test:
    clause = Clause(place, name, wanted, negated, "", met=False, problem=problem)
    return Test(clause, lambda _facts: None, lambda _value: False, "")


def _manifest_name(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _shown(name: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if name.startswith("request.headers[") and name[len("request.headers[") : -1].lower().encode() in CREDENTIALS:
        return "(hidden)"
    if isinstance(value, tuple):
        version, number = value
        address = ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)
        return str(address)
    text = printable(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def printable(text: str) -> str:
    """Without the halves of characters that JSON may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
