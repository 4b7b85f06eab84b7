"""Which rules of many policies a request's path leaves to be looked at.

Most rules for requests ask for a path, and most paths are asked for by few rules: so one look-up for each length of a
prefix finds them, however many there are. What is found may still not match; what is not found cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mesh.authz.templates import check_template
from mesh.model import Policy, Rule

if TYPE_CHECKING:
    from mesh.authz.decider import Compiled


class ByPath:
    """Rules in their order, each as if it were a policy of its own with this one rule."""

    __slots__ = ("_always", "_exact", "_lengths", "_prefixes", "_rules")

    def __init__(self, policies: Iterable[tuple[Policy, Compiled]]) -> None:
        self._rules: list[Compiled] = []
        self._always: list[int] = []
        self._exact: dict[str, list[int]] = {}
        self._prefixes: dict[str, list[int]] = {}
        for policy, compiled in policies:
            for index, test in compiled.rules:
                self._place(policy.rules[index], len(self._rules))
                self._rules.append(compiled._replace(rules=((index, test),)))
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})

    def _place(self, rule: Rule, number: int) -> None:
        found = _patterns(rule)
        if found is None:
            self._always.append(number)
            return
        for pattern, exact in found:
            (self._exact if exact else self._prefixes).setdefault(pattern, []).append(number)

    def among(self, path: str) -> Sequence[Compiled]:
        """Those that may match a request for this path, in order."""
        found = set(self._exact.get(path, ()))
        for length in self._lengths:
            if length > len(path):
                break
            if (more := self._prefixes.get(path[:length])) is not None:
                found.update(more)
        found.update(self._always)
        rules = self._rules
        return [rules[number] for number in sorted(found)]


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
                # `/a/{**}` is of `/a`, too
                found.append((value.partition("{")[0].rstrip("/"), False))
            elif value.startswith("*"):
                return None
            else:
                found.append((value[:-1], False) if value.endswith("*") else (value, True))
    return found or None
