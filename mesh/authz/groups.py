"""Policies of one kind by whom they select: immutable, each made from the one before by a delta.

Those of one namespace and selector are a group, which the workloads that it selects share with all that is compiled of
it. After a change every group that it does not concern is the same object, so a workload sees at once whether it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar


class Selecting(Protocol):
    """A policy of any kind."""

    @property
    def namespace(self) -> str:
        """Where it is, and applies; everywhere if that is the root namespace."""

    @property
    def selector(self) -> Mapping[str, str]:
        """The labels that a workload must have."""

    @property
    def key(self) -> str:
        """`<namespace>/<name>`."""


P = TypeVar("P", bound=Selecting)
G = TypeVar("G", bound="Group[Any]")
_Members = Mapping[str, tuple[P, ...]]
"""By key. Several may have one: of Kubernetes' two API groups, and what stands in for a policy of another kind."""
_Selector = tuple[tuple[str, str], ...]
_Place = tuple[str, tuple[str, str] | None]
"""A namespace, and the first pair of a selector: so a workload's labels lead to its groups."""


class Group(Generic[P]):
    """Those of one namespace and selector."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: _Members[P] = {}

    def __iter__(self) -> Iterator[P]:
        """Its policies, by key."""
        for _key, policies in sorted(self.members.items()):
            yield from policies

    def changed(self, keys: Iterable[str], added: _Members[P]) -> Self:
        """Without what it had of these keys, and with others of them."""
        made = type(self)()
        made.members = _replaced(self.members, keys, added)
        return made


class Groups(Generic[G, P]):
    """All groups. Begin with the empty one that new ones are made from; change with `replace` and `apply` only."""

    __slots__ = ("_empty", "_members", "_places")

    def __init__(
        self,
        empty: G,
        members: _Members[P] | None = None,
        places: Mapping[_Place, Mapping[_Selector, G]] | None = None,
    ) -> None:
        self._empty, self._members, self._places = empty, members or {}, places or {}

    def __iter__(self) -> Iterator[P]:
        """Every policy, by key."""
        for _key, policies in sorted(self._members.items()):
            yield from policies

    def of(self, *, namespace: str, labels: Mapping[str, str], root_namespace: str) -> tuple[G, ...]:
        """Those that select a workload; an empty selector selects all of its namespace, or of the mesh."""
        found = []
        for place in dict.fromkeys((root_namespace, namespace)):
            for pair in (None, *labels.items()):
                if (groups := self._places.get((place, pair))) is not None:
                    for selector, group in groups.items():
                        if all(labels.get(key) == value for key, value in selector):
                            found.append(group)
        return tuple(found)

    def replace(self, policies: Iterable[P]) -> Self:
        """These are all now."""
        new = by_key(policies)
        return self._changed(new, self._members.keys() - new.keys())

    def apply(self, added: Iterable[P], gone: Iterable[str]) -> Self:
        """With these for all that there were of their keys, and without those of other keys."""
        return self._changed(by_key(added), gone)

    def _changed(self, new: Mapping[str, tuple[P, ...]], gone: Iterable[str]) -> Self:
        before = self._members
        keys = [key for key in gone if key in before and key not in new]
        new = {key: policies for key, policies in new.items() if before.get(key) != policies}
        keys += new
        if not keys:
            return self
        touched: dict[tuple[str, _Selector], tuple[set[str], dict[str, tuple[P, ...]]]] = {}
        for key in keys:
            for policy in before.get(key, ()):
                touched.setdefault(_group(policy), (set(), {}))[0].add(key)
            for policy in new.get(key, ()):
                _, added = touched.setdefault(_group(policy), (set(), {}))
                added[key] = (*added.get(key, ()), policy)
        places = dict(self._places)
        for (namespace, selector), (leaving, added) in touched.items():
            place = namespace, selector[0] if selector else None
            groups = dict(places.get(place, {}))
            group = groups.get(selector, self._empty).changed(leaving, added)
            if group.members:
                groups[selector] = group
            else:
                del groups[selector]
            places[place] = groups
            if not groups:
                del places[place]
        return type(self)(self._empty, _replaced(before, keys, new), places)


def _replaced(members: _Members[P], keys: Iterable[str], added: _Members[P]) -> dict[str, tuple[P, ...]]:
    changed = dict(members)
    for key in keys:
        changed.pop(key, None)
    changed.update(added)
    return changed


def by_key(policies: Iterable[P]) -> dict[str, tuple[P, ...]]:
    """Those of one key in the order given."""
    found: dict[str, tuple[P, ...]] = {}
    for policy in policies:
        key = policy.key
        found[key] = (*found.get(key, ()), policy)
    return found


def _group(policy: Selecting) -> tuple[str, _Selector]:
    return policy.namespace, tuple(sorted(policy.selector.items()))
