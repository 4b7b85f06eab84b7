"""Which rules of many policies a peer, and a request's path, leave to be looked at.

Most rules name the peers or the paths that they are for, and most peers and paths are named by few rules: so some
look-ups find them, however many there are. What is found may still not match; what is not found cannot. A rule is
compiled when it is first looked at, and stays compiled as long as its policy does.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Self, TypeVar

from mesh.authz.groups import Group
from mesh.authz.matching import Facts, Reads, Test, compile_rule, reads_requests, reads_source_address
from mesh.authz.templates import check_template
from mesh.model import Action, Policy, Rule

_COMBINATIONS = 64
"""Of peers and paths: a rule with more of them is found by its paths alone."""
HEADER = "request.headers["


class Kind(enum.IntEnum):
    """What a policy counts as."""

    CUSTOM = 0
    DENY = 1
    ALLOW = 2
    AUDIT = 3
    DRY_DENY = 4
    DRY_ALLOW = 5


_ENFORCED = {
    Action.CUSTOM: Kind.CUSTOM, Action.DENY: Kind.DENY, Action.ALLOW: Kind.ALLOW, Action.AUDIT: Kind.AUDIT,
}  # fmt: skip
_DRY = {Action.DENY: Kind.DRY_DENY, Action.ALLOW: Kind.DRY_ALLOW, Action.AUDIT: Kind.AUDIT}


def _kind(policy: Policy) -> Kind | None:
    """None: it is nothing to anybody."""
    return (_DRY if policy.dry_run else _ENFORCED).get(policy.action)


class How(enum.IntEnum):
    """How a rule is looked for."""

    CONNECTION = 0
    ANY = 1
    """Of a request, whatever its path."""
    EXACT = 2
    PREFIX = 3
    HEADERS = 4
    """It asks for headers."""


_Place = tuple[Kind, How, str | None, str]
"""Where a rule is found: by its kind, how, whom it names (None: nobody), and a path or the beginning of one."""
_K = TypeVar("_K", bound=Hashable)


class Numbered:
    """One rule of a policy."""

    __slots__ = ("_policy", "_tests", "kind", "order")

    def __init__(self, key: str, place: int, policy: Policy, index: int, kind: Kind) -> None:
        """`place` is the policy's among those of its key and selector."""
        self.order = key, tuple(sorted(policy.selector.items())), place, index
        self.kind = kind
        self._policy = policy
        self._tests: dict[Reads, Test] | None = None

    @property
    def key(self) -> str:
        """The policy's."""
        return self.order[0]

    @property
    def index(self) -> int:
        """In its policy."""
        return self.order[-1]

    @property
    def provider(self) -> str:
        """The policy's."""
        return self._policy.provider

    @property
    def headers(self) -> list[str]:
        """The attributes of headers that it asks for."""
        return [condition.key for condition in self._rule.conditions if condition.key.startswith(HEADER)]

    @property
    def _rule(self) -> Rule:
        return self._policy.rules[self.index]

    def matches(self, facts: Facts, reads: Reads) -> bool:
        """Whether it does."""
        if self._tests is None:
            self._tests = {}
        if (test := self._tests.get(reads)) is None:
            test = self._tests[reads] = compile_rule(self._rule, self._policy.action, reads) or _never
        return test(facts)

    def places(self) -> Iterator[_Place]:
        """Where it is found, each once."""
        kind, rule = self.kind, self._rule
        names, patterns = _names(rule), _patterns(rule)
        if len(names) * len(patterns) > _COMBINATIONS:
            names = {None}
        closes = kind in (Kind.CUSTOM, Kind.DENY, Kind.DRY_DENY)
        headers = bool(self.headers)
        for name in names:
            if closes or not reads_requests(rule):  # others match no connection, with a clause that needs a request
                yield kind, How.CONNECTION, name, ""
            if headers:
                yield kind, How.HEADERS, name, ""
            for how, path in patterns:
                yield kind, how, name, path


def _never(_facts: Facts) -> bool:
    return False


_order = attrgetter("order")


class RuleGroup(Group[Policy]):
    """The policies of one namespace and selector, and where their rules are found."""

    __slots__ = ("_rules", "by_source", "found", "keys", "lengths", "names", "of_requests")

    def __init__(self) -> None:
        super().__init__()
        self.found: Mapping[_Place, tuple[Numbered, ...]] = {}
        """In their order."""
        self.names: Mapping[str | None, int] = {}
        """Of peers, and how many places there are for them."""
        self.lengths: Mapping[tuple[Kind, int], int] = {}
        """Of prefixes of paths, and how many places there are for them."""
        self.keys: Mapping[Kind, list[str]] = {}
        """The policies of each kind that there is, also such as have no rule, in order."""
        self.by_source = self.of_requests = 0
        """How many ask for the source address, and how many for what only a request can answer."""
        self._rules: Mapping[str, tuple[Numbered, ...]] = {}
        """By the policies' key."""

    def changed(self, keys: Iterable[str], added: Mapping[str, tuple[Policy, ...]]) -> Self:
        """See `Group`. Touches only the places of the rules that go or come."""
        keys = list(keys)
        made = super().changed(keys, added)
        made._rules = rules = dict(self._rules)
        gone = [policy for key in keys for policy in self.members.get(key, ())]
        leaving = {rule for key in keys for rule in rules.pop(key, ())}
        coming: list[Numbered] = []
        for key, policies in added.items():
            rules[key] = tuple(
                Numbered(key, place, policy, index, kind)
                for place, policy in enumerate(policies)
                if (kind := _kind(policy)) is not None
                for index in range(len(policy.rules))
            )
            coming += rules[key]
        new = [policy for policies in added.values() for policy in policies]
        made.by_source = self.by_source + sum(map(reads_source_address, new)) - sum(map(reads_source_address, gone))
        made.of_requests = self.of_requests + sum(map(_of_requests, new)) - sum(map(_of_requests, gone))
        made.keys = _named(self.keys, new, gone)
        left = [place for rule in leaving for place in rule.places()]
        taken = [(place, rule) for rule in coming for place in rule.places()]
        made.found = _moved(self.found, leaving, left, taken)
        come = [place for place, _ in taken]
        made.names = _counted(self.names, (place[2] for place in come), (place[2] for place in left))
        made.lengths = _counted(self.lengths, _lengths(come), _lengths(left))
        return made


def _moved(
    found: Mapping[_Place, tuple[Numbered, ...]],
    leaving: Collection[Numbered],
    left: Iterable[_Place],
    taken: Iterable[tuple[_Place, Numbered]],
) -> dict[_Place, tuple[Numbered, ...]]:
    moved = dict(found)
    touched: dict[_Place, list[Numbered]] = {place: [] for place in left}
    for place, rule in taken:
        touched.setdefault(place, []).append(rule)
    for place, rules in touched.items():
        rules += [rule for rule in moved.pop(place, ()) if rule not in leaving]
        if rules:
            moved[place] = tuple(sorted(rules, key=_order))
    return moved


def _named(before: Mapping[Kind, list[str]], new: list[Policy], gone: list[Policy]) -> dict[Kind, list[str]]:
    left, named = {policy.key for policy in gone}, dict(before)
    for kind in {kind for policy in (*new, *gone) if (kind := _kind(policy)) is not None}:
        keys = [key for key in named.pop(kind, ()) if key not in left]
        keys += [policy.key for policy in new if _kind(policy) is kind]
        if keys:
            named[kind] = sorted(keys)
    return named


def _lengths(places: Iterable[_Place]) -> Iterator[tuple[Kind, int]]:
    return ((kind, len(path)) for kind, how, _name, path in places if how is How.PREFIX)


def _of_requests(policy: Policy) -> bool:
    return policy.action is Action.CUSTOM or any(map(reads_requests, policy.rules))


def _counted(before: Mapping[_K, int], more: Iterable[_K], less: Iterable[_K]) -> dict[_K, int]:
    counts = Counter(before)
    counts.update(more)
    counts.subtract(less)
    return {key: count for key, count in counts.items() if count}


def _names(rule: Rule) -> set[str | None]:
    """A peer must have one of these for its principal, service account or namespace; None if it may be anyone."""
    found: set[str | None] = set()
    for source in rule.sources:
        for names in (source.principals, source.service_accounts, source.namespaces):
            if names and not any(name.startswith("*") or name.endswith("*") for name in names):
                found.update(names)
                break
        else:
            return {None}
    return found or {None}


def _patterns(rule: Rule) -> set[tuple[How, str]]:
    """What a path must be, or begin with, if the rule is to match."""
    found: set[tuple[How, str]] = set()
    for operation in rule.operations:
        if not operation.paths or not _readable((*operation.paths, *operation.not_paths)):
            return {(How.ANY, "")}
        for value in operation.paths:
            if "{" in value:
                found.add((How.PREFIX, value.partition("{")[0]))
            elif value.startswith("*"):
                return {(How.ANY, "")}
            else:
                found.add((How.PREFIX, value[:-1]) if value.endswith("*") else (How.EXACT, value))
    return found or {(How.ANY, "")}


def _readable(paths: tuple[str, ...]) -> bool:
    """Whether a clause of these, `notPaths` included, can be evaluated; else all of it counts as matched in a DENY."""
    try:
        for path in paths:
            if "{" in path:
                check_template(path)
    except ValueError:
        return False
    return True


class Rules:
    """Those of one workload: of all groups that select it."""

    __slots__ = ("_groups", "_lengths", "kinds")

    def __init__(self, groups: Iterable[RuleGroup]) -> None:
        self._groups = tuple(groups)
        self.kinds = frozenset(kind for group in self._groups for kind in group.keys)
        """Those of which there are policies."""
        self._lengths = {
            kind: sorted({length for group in self._groups for of, length in group.lengths if of is kind})
            for kind in self.kinds
        }

    def named(self, kind: Kind, most: int | None = None) -> tuple[list[str], int]:
        """The first policies of a kind, and how many there are of it."""
        found = [group.keys[kind] for group in self._groups if kind in group.keys]
        return sorted(key for keys in found for key in keys[:most])[:most], sum(map(len, found))

    def of_connection(self, kind: Kind, facts: Facts) -> Iterator[Numbered]:
        """Those that match a connection, in order."""
        for rule in self._in_order((kind, How.CONNECTION, name, "") for name in self._called(facts)):
            if rule.matches(facts, Reads.CONNECTION):
                yield rule

    def of_any_path(self, kind: Kind, facts: Facts) -> list[Numbered]:
        """Those that ask for no path and match some request of a peer, in order."""
        places = ((kind, How.ANY, name, "") for name in self._called(facts))
        return [rule for rule in self._in_order(places) if rule.matches(facts, Reads.EITHER)]

    def of_request(self, kind: Kind, facts: Facts, any_path: Collection[Numbered]) -> Iterator[Numbered]:
        """Those that match a request, in order; `any_path` are its peer's."""
        for rule in self._in_order(self._of_path(kind, facts), any_path):
            if rule.matches(facts, Reads.REQUEST):
                yield rule

    def headers(self, facts: Facts) -> set[str]:
        """The attributes of headers that some rule asks for, of those that match some request of a peer."""
        places = ((kind, How.HEADERS, name, "") for kind in self.kinds for name in self._called(facts))
        return {
            name for rule in self._in_order(places) if rule.matches(facts, Reads.EITHER) for name in rule.headers
        }  # fmt: skip

    def _of_path(self, kind: Kind, facts: Facts) -> Iterator[_Place]:
        path, lengths = facts.path, self._lengths[kind]
        for name in self._called(facts):
            yield kind, How.EXACT, name, path
            for length in lengths:
                if length > len(path):
                    break
                yield kind, How.PREFIX, name, path[:length]

    def _called(self, facts: Facts) -> list[str | None]:
        """What rules call a peer, of what they may."""
        names = (None,) if facts.principal is None else (facts.principal, facts.service_account, facts.namespace, None)
        return [name for name in names if any(name in group.names for group in self._groups)]

    def _in_order(self, places: Iterable[_Place], others: Collection[Numbered] = ()) -> Collection[Numbered]:
        found: list[Collection[Numbered]] = [others] if others else []
        for place in places:
            for group in self._groups:
                if (rules := group.found.get(place)) is not None:
                    found.append(rules)
        if len(found) <= 1:
            return found[0] if found else ()
        return sorted({rule for rules in found for rule in rules}, key=_order)
