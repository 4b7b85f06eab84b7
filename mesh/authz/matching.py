"""One rule of an `AuthorizationPolicy`, compiled to a test of a connection.

Semantics: https://istio.io/latest/docs/reference/config/security/authorization-policy/ and `.../conditions/`, at layer
4 as Istio's ztunnel has them:

- Clauses of one source or operation are ANDed, values of one clause ORed; a `not…` clause fails if any value matches.
- Identity clauses (principals, namespaces, service accounts) never match a peer without one, so their `not…` forms
  always do: `notPrincipals: ["*"]` is how one says "plaintext".
- What cannot be evaluated here (HTTP clauses, `connection.sni`, which HBONE does not have, an unknown key, an
  unreadable value, a source, operation or condition that says nothing) makes an ALLOW rule match nothing, and counts
  as matched in a DENY rule: either way, more is denied than was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

from mesh.cidr import Address, Blocks
from mesh.model import Action, Condition, Operation, Policy, Rule, Source


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rule can ask about a connection. The three names are None for a peer without an identity."""

    principal: str | None
    namespace: str | None
    service_account: str | None
    """`<namespace>/<name>`."""
    source: Address
    destination: Address
    port: int
    """Target port."""


Test = Callable[[Facts], bool]
_Among = Callable[[Any], bool]


class _Clauses:
    """The clauses of one source, operation or condition, all of which must match."""

    __slots__ = ("evaluable", "tests")

    def __init__(self) -> None:
        self.tests: list[Test] = []
        self.evaluable = True
        """False once there was a clause that cannot be evaluated here."""

    def add(
        self,
        fact: str,
        compiled: Callable[[tuple[Any, ...]], _Among],
        values: tuple[str, ...] | tuple[int, ...],
        not_values: tuple[str, ...] | tuple[int, ...],
    ) -> None:
        """Require the fact to be among `values`, if there are any, and not among `not_values`."""
        read = attrgetter(fact)
        try:
            among = compiled(values) if values else None
            not_among = compiled(not_values) if not_values else None
        except ValueError:
            self.evaluable = False
            return
        if among is not None:
            self.tests.append(lambda facts: among(read(facts)))
        if not_among is not None:
            self.tests.append(lambda facts: not not_among(read(facts)))


@lru_cache(2048)  # the workloads of a namespace share its policies, and an update leaves most of them as they were
def compile_rule(rule: Rule, action: Action) -> Test | None:
    """Return the test of whether `rule` matches a connection, or None if it can match none."""
    sources = [_source(source) for source in rule.sources]
    operations = [_operation(operation) for operation in rule.operations]
    conditions = [_condition(condition) for condition in rule.conditions]
    if action is Action.ALLOW and not all(clauses.evaluable for clauses in (*sources, *operations, *conditions)):
        return None
    tests = [_all(condition.tests) for condition in conditions]
    for alternatives in (operations, sources):
        if alternatives:
            tests.insert(0, _any([_all(clauses.tests) for clauses in alternatives]))
    return _all(tests)


def _all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def every(facts: Facts) -> bool:
        for test in tests:  # noqa: SIM110 (`all` of a generator takes twice the time)
            if not test(facts):
                return False
        return True

    return every


def _any(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def some(facts: Facts) -> bool:
        for test in tests:  # noqa: SIM110
            if test(facts):
                return True
        return False

    return some


def reads_requests(policy: Policy) -> bool:
    """Whether a request can make a difference to `policy` that its connection does not make."""
    return any(
        any(source.http_clauses for source in rule.sources)
        or any(operation.http_clauses for operation in rule.operations)
        or any(condition.key not in _CONDITIONS for condition in rule.conditions)
        for rule in policy.rules
    )


def reads_source_address(policy: Policy) -> bool:
    """Whether the peer's address can make a difference to `policy`."""
    return any(
        any(source.ip_blocks or source.not_ip_blocks for source in rule.sources)
        or any(condition.key == "source.ip" for condition in rule.conditions)
        for rule in policy.rules
    )


def _source(source: Source) -> _Clauses:
    clauses = _Clauses()
    clauses.add("principal", _names, source.principals, source.not_principals)
    clauses.add("namespace", _names, source.namespaces, source.not_namespaces)
    clauses.add("service_account", _exact, source.service_accounts, source.not_service_accounts)
    clauses.add("source", _blocks, source.ip_blocks, source.not_ip_blocks)
    if source.http_clauses or not clauses.tests:
        clauses.evaluable = False
    return clauses


def _operation(operation: Operation) -> _Clauses:
    clauses = _Clauses()
    clauses.add("port", _exact, operation.ports, operation.not_ports)
    if operation.http_clauses or not clauses.tests:
        clauses.evaluable = False
    return clauses


def _condition(condition: Condition) -> _Clauses:
    clauses = _Clauses()
    if (known := _CONDITIONS.get(condition.key)) is not None:
        clauses.add(*known, condition.values, condition.not_values)
    if not clauses.tests:
        clauses.evaluable = False
    return clauses


def _exact(values: tuple[Any, ...]) -> _Among:
    return frozenset(values).__contains__


def _ports(values: tuple[str, ...]) -> _Among:
    return frozenset(int(value) for value in values).__contains__


def _blocks(values: tuple[str, ...]) -> _Among:
    return Blocks(values).__contains__


def _names(values: tuple[str, ...]) -> _Among:
    """Any of some strings: exact, `prefix*`, `*suffix`, or `*` (every suffix) for presence. Any other `*` is itself."""
    suffixes = tuple(value[1:] for value in values if value.startswith("*"))
    prefixes = tuple(value[:-1] for value in values if value.endswith("*") and not value.startswith("*"))
    exact = frozenset(value for value in values if "*" not in (value[:1], value[-1:]))

    def among(name: str | None) -> bool:
        return name is not None and (name in exact or name.startswith(prefixes) or name.endswith(suffixes))

    return among


_CONDITIONS: dict[str, tuple[str, Callable[[tuple[Any, ...]], _Among]]] = {
    "source.principal": ("principal", _names),
    "source.namespace": ("namespace", _names),
    "source.ip": ("source", _blocks),
    "destination.ip": ("destination", _blocks),
    "destination.port": ("port", _ports),
}
"""The keys that mean something at layer 4: the fact each one reads, and how its values are compiled."""
