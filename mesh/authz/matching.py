"""One rule of an `AuthorizationPolicy`, compiled to a test of a connection, or of a request.

Semantics: https://istio.io/latest/docs/reference/config/security/authorization-policy/ and `.../conditions/`, at layer
4 as Istio's ztunnel has them:

- Clauses of one source or operation are ANDed, values of one clause ORed; a `not…` clause fails if any value matches.
- Identity clauses (principals, namespaces, service accounts) never match a peer without one, so their `not…` forms
  always do: `notPrincipals: ["*"]` is how one says "plaintext".
- What cannot be evaluated (of a connection HTTP clauses; `connection.sni`, which HBONE does not have, an unknown key,
  an unreadable value, a source, operation or condition that says nothing) makes an ALLOW or AUDIT rule match nothing,
  and counts as matched in a DENY or CUSTOM rule: either way, more is denied than was asked for.
- Of a request: hosts match whatever their case, paths without their query, of a header that comes several times any
  value. With no proxy in front that is trusted, the remote address is the peer's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from mesh.authz.templates import paths
from mesh.cidr import Address, Blocks
from mesh.model import Action, Condition, Operation, Policy, Rule, Source


class Reads(enum.Enum):
    """What a rule is compiled for."""

    CONNECTION = "connection"
    """HTTP clauses cannot be evaluated."""
    REQUEST = "request"
    EITHER = "either"
    """HTTP clauses are taken as met: whether any request of a connection can match at all."""


def _no_header(_name: str) -> str | None:
    return None


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
    method: str = ""
    path: str = ""
    """Normalised, without the query."""
    host: str = ""
    """In lower case."""
    headers: Callable[[str], str | list[str] | None] = _no_header
    """A request header's value, or all of them, by its name in lower case."""
    claims: Mapping[str, Any] | None = None
    """Of the request's JWT, once it was verified."""
    request_principal: str | None = None
    """`<issuer>/<subject>` of it."""


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
        self.add_read(attrgetter(fact), compiled, values, not_values)

    def add_read(
        self,
        read: Callable[[Facts], Any],
        compiled: Callable[[tuple[Any, ...]], _Among],
        values: tuple[str, ...] | tuple[int, ...],
        not_values: tuple[str, ...] | tuple[int, ...],
    ) -> None:
        """The same of what `read` returns."""
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


def compile_rule(rule: Rule, action: Action, reads: Reads = Reads.CONNECTION) -> Test | None:
    """Return the test of whether `rule` matches a connection (or a request), or None if it can match none."""
    sources = [_source(source, reads) for source in rule.sources]
    operations = [_operation(operation, reads) for operation in rule.operations]
    conditions = [_condition(condition, reads) for condition in rule.conditions]
    if action in (Action.ALLOW, Action.AUDIT) and not all(
        clauses.evaluable for clauses in (*sources, *operations, *conditions)
    ):
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


def reads_requests(rule: Rule) -> bool:
    """Whether it has a clause that only a request can answer; then only a DENY or CUSTOM rule matches a connection."""
    return (
        any(source.http_clauses for source in rule.sources)
        or any(operation.http_clauses for operation in rule.operations)
        or any(request_fact(condition.key) is not None for condition in rule.conditions)
    )


def reads_source_address(policy: Policy) -> bool:
    """Whether the peer's address can make a difference to `policy`."""
    return any(
        any(
            source.ip_blocks or source.not_ip_blocks or source.remote_ip_blocks or source.not_remote_ip_blocks
            for source in rule.sources
        )
        or any(condition.key in ("source.ip", "remote.ip") for condition in rule.conditions)
        for rule in policy.rules
    )


def _source(source: Source, reads: Reads) -> _Clauses:
    return _fields(source, SOURCE_FIELDS, reads)


def _operation(operation: Operation, reads: Reads) -> _Clauses:
    return _fields(operation, OPERATION_FIELDS, reads)


def _fields(of: Source | Operation, fields: tuple[Field, ...], reads: Reads) -> _Clauses:
    clauses = _Clauses()
    for field in fields:
        if reads is Reads.REQUEST or not field.of_request:
            clauses.add(field.fact, field.compiled, getattr(of, field.name), getattr(of, f"not_{field.name}"))
    return _checked(clauses, bool(of.http_clauses), reads)


def _condition(condition: Condition, reads: Reads) -> _Clauses:
    clauses = _Clauses()
    http = False
    if (known := CONNECTION_ATTRIBUTES.get(condition.key)) is not None:
        clauses.add(*known, condition.values, condition.not_values)
    elif (fact := request_fact(condition.key)) is not None:
        http = True
        if reads is Reads.REQUEST:
            clauses.add_read(*fact, condition.values, condition.not_values)
    return _checked(clauses, http, reads)


def _checked(clauses: _Clauses, http: bool, reads: Reads) -> _Clauses:
    """Of HTTP clauses: unevaluable for a connection, left out where they are taken as met."""
    if http and reads is Reads.EITHER:
        clauses.tests = clauses.tests or [_met]
    elif (http and reads is Reads.CONNECTION) or not clauses.tests:
        clauses.evaluable = False
    return clauses


def _met(_facts: Facts) -> bool:
    return True


def _exact(values: tuple[Any, ...]) -> _Among:
    return frozenset(values).__contains__


def _ports(values: tuple[str, ...]) -> _Among:
    return frozenset(int(value) for value in values).__contains__


def _blocks(values: tuple[str, ...]) -> _Among:
    return Blocks(values).__contains__


def matching_names(values: tuple[str, ...]) -> _Among:
    """Any of some strings: exact, `prefix*`, `*suffix`, or `*` (every suffix) for presence. Any other `*` is itself."""
    suffixes = tuple(value[1:] for value in values if value.startswith("*"))
    prefixes = tuple(value[:-1] for value in values if value.endswith("*") and not value.startswith("*"))
    exact = frozenset(value for value in values if "*" not in (value[:1], value[-1:]))

    def among(name: str | None) -> bool:
        return name is not None and (name in exact or name.startswith(prefixes) or name.endswith(suffixes))

    return among


def _hosts(values: tuple[str, ...]) -> _Among:
    return matching_names(tuple(value.lower() for value in values))


def _lists(values: tuple[str, ...]) -> _Among:
    """Of a claim, or a header, that may have several: any of them."""
    among = matching_names(values)

    def any_among(found: Any) -> bool:
        if isinstance(found, list):
            return any(isinstance(item, str) and among(item) for item in found)
        return isinstance(found, str) and among(found)

    return any_among


def request_fact(key: str) -> tuple[Callable[[Facts], Any], Callable[[tuple[Any, ...]], _Among]] | None:
    """How the value of one of Istio's attributes of requests is read and matched; None for what is none.

    https://istio.io/latest/docs/reference/config/security/conditions/
    """
    if key == "remote.ip":
        return attrgetter("source"), _blocks
    if key == "request.auth.principal":
        return attrgetter("request_principal"), matching_names
    if key == "request.auth.audiences":
        return lambda facts: (facts.claims or {}).get("aud"), _lists
    if key == "request.auth.presenter":
        return lambda facts: (facts.claims or {}).get("azp"), _lists
    if key.startswith("request.headers[") and key.endswith("]"):
        name = key[len("request.headers[") : -1].lower()
        return lambda facts: facts.headers(name), _lists
    if key.startswith("request.auth.claims[") and key.endswith("]"):
        names = key[len("request.auth.claims[") : -1].split("][")
        return lambda facts: _claim(facts.claims, names), _lists
    return None


def _claim(claims: Mapping[str, Any] | None, names: list[str]) -> Any:
    found: Any = claims
    for name in names:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


CONNECTION_ATTRIBUTES: dict[str, tuple[str, Callable[[tuple[Any, ...]], _Among]]] = {
    "source.principal": ("principal", matching_names),
    "source.namespace": ("namespace", matching_names),
    "source.ip": ("source", _blocks),
    "destination.ip": ("destination", _blocks),
    "destination.port": ("port", _ports),
}
"""The keys that mean something at layer 4: the fact each one reads, and how its values are compiled."""


class Field(NamedTuple):
    """A field of `Source` or `Operation`, and its `not_…`."""

    name: str
    fact: str
    compiled: Callable[[tuple[Any, ...]], _Among]
    of_request: bool = False
    """Whether only a request can answer it."""


SOURCE_FIELDS = (
    Field("principals", "principal", matching_names),
    Field("namespaces", "namespace", matching_names),
    Field("service_accounts", "service_account", _exact),
    Field("ip_blocks", "source", _blocks),
    Field("request_principals", "request_principal", matching_names, True),
    Field("remote_ip_blocks", "source", _blocks, True),
)
OPERATION_FIELDS = (
    Field("ports", "port", _exact),
    Field("methods", "method", matching_names, True),
    Field("paths", "path", paths, True),
    Field("hosts", "host", _hosts, True),
)
