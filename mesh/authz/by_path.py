"""Which rules of many policies a request's path leaves to be looked at.

Most rules for requests ask for a path, and most paths are asked for by few rules: so one look-up for each length of a
prefix finds them, however many there are. What is found may still not match; what is not found cannot.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from mesh.authz.matching import Facts, Reads, Test, compile_rule
from mesh.authz.templates import check_template
from mesh.model import Policy, Rule


class ByPath:
    """The rules of some policies in their order. Each is compiled when it is first looked at."""

    __slots__ = ("_always", "_exact", "_lengths", "_peers", "_prefixes", "_rules", "_tests", "keys")

    def __init__(self, policies: Iterable[Policy]) -> None:
        self.keys: list[str] = []
        """Of the policies, also of such as have no rule."""
        self._rules: list[tuple[Policy, int]] = []
        self._tests: dict[int, Test | None] = {}
        self._peers: dict[int, Test | None] = {}
        """Whether a peer can have a request that matches."""
        self._always: list[int] = []
        self._exact: dict[str, list[int]] = {}
        self._prefixes: dict[str, list[int]] = {}
        for policy in policies:
            self.keys.append(policy.key)
            for index, rule in enumerate(policy.rules):
                self._place(rule, len(self._rules))
                self._rules.append((policy, index))
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})

    def _place(self, rule: Rule, number: int) -> None:
        found = _patterns(rule)
        if found is None:
            self._always.append(number)
            return
        for pattern, exact in found:
            (self._exact if exact else self._prefixes).setdefault(pattern, []).append(number)

    def narrowed(self, facts: Facts) -> ByPath:
        """For one peer: without the rules that ask for no path and that no request of its can match."""
        narrowed = copy.copy(self)
        narrowed._always = [number for number in self._always if self._possible(number, facts)]
        return narrowed

    def _possible(self, number: int, facts: Facts) -> bool:
        policy, index = self._rules[number]
        if number not in self._peers:
            self._peers[number] = compile_rule(policy.rules[index], policy.action, Reads.EITHER)
        test = self._peers[number]
        return test is not None and test(facts)

    def among(self, path: str) -> Iterator[tuple[str, int, Test]]:
        """Those that may match a request for this path, in order: the policy's key, the rule's index, and its test."""
        found = set(self._exact.get(path, ()))
        for length in self._lengths:
            if length > len(path):
                break
            if (more := self._prefixes.get(path[:length])) is not None:
                found.update(more)
        found.update(self._always)
        for number in sorted(found):
            policy, index = self._rules[number]
            if number not in self._tests:
                self._tests[number] = compile_rule(policy.rules[index], policy.action, Reads.REQUEST)
            if (test := self._tests[number]) is not None:
                yield policy.key, index, test


def _patterns(rule: Rule) -> list[tuple[str, bool]] | None:
    """What a path must be (True), or begin with (False), if the rule is to match; None if any may."""
    found: list[tuple[str, bool]] = []
    for operation in rule.operations:
        if not operation.paths:
            return None
        for value in operation.paths:
            if "{" in value:
                try:
                    check_template(value)
                except ValueError:  # the clause cannot be evaluated, which in a DENY rule counts as matched
                    return None
                found.append((value.partition("{")[0], False))
            elif value.startswith("*"):
                return None
            else:
                found.append((value[:-1], False) if value.endswith("*") else (value, True))
    return found or None
