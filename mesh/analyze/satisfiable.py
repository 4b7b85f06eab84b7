"""Whether any connection at all could match a part of a rule.

A part is reduced to the facts it asks about (identity, source address, destination address, port), which are
independent of each other. For each, candidates are tried that must contain a match if there is one: the values named,
the borders of the blocks named, and something that is none of them. The test is `mesh.authz`'s own. Where candidates
cannot cover what a wildcard may stand for, the answer is that it may match.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from mesh.authz.matching import Facts, compile_rule
from mesh.cidr import Address, parse_address
from mesh.model import Action, Condition, Operation, Rule, Source

_IDENTITY_KEYS = ("source.principal", "source.namespace")
_SOME: Address = (4, 0x0A4D0102)
_MANY = 256
"""More values than this in one clause are not searched: the answer is that it may match."""


def identity_contradicts(source: Source | None, conditions: Sequence[Condition], trust_domain: str) -> bool:
    """Whether no identity (nor the lack of one) satisfies the source's names and the conditions on names."""
    only = None
    if source is not None:
        only = Source(
            source.principals, source.not_principals, source.namespaces, source.not_namespaces,
            source.service_accounts, source.not_service_accounts,
        )  # fmt: skip
    relevant = [c for c in conditions if c.key in _IDENTITY_KEYS]
    names = _names(only, relevant)
    if only == Source():
        only = None
    if (only is None and not relevant) or len(names) > _MANY:
        return False
    if any("*" in value and value != "*" for value in names):
        return False
    identities: list[tuple[str | None, str | None, str | None]] = [(None, None, None)]
    trust_domains, namespaces, accounts = {trust_domain}, {"none-of-them"}, {"none-of-them"}
    for value in names:
        parts = value.split("/")
        if len(parts) == 5:
            trust_domains.add(parts[0])
            namespaces.add(parts[2])
            accounts.add(parts[4])
        elif len(parts) == 2:
            namespaces.add(parts[0])
            accounts.add(parts[1])
        else:
            namespaces.add(value)
    if len(trust_domains) * len(namespaces) * len(accounts) > _MANY * _MANY:
        return False
    identities += [(f"{t}/ns/{n}/sa/{a}", n, f"{n}/{a}") for t in trust_domains for n in namespaces for a in accounts]
    rule = Rule((only,) if only else (), (), tuple(relevant))
    return not _any(rule, (Facts(p, n, a, _SOME, _SOME, 1) for p, n, a in identities))


def _names(source: Source | None, conditions: Iterable[Condition]) -> set[str]:
    found: set[str] = set()
    if source is not None:
        found.update(source.principals, source.not_principals, source.namespaces, source.not_namespaces)
        found.update(source.service_accounts, source.not_service_accounts)
    for condition in conditions:
        found.update(condition.values, condition.not_values)
    return found


def source_address_contradicts(source: Source | None, conditions: Sequence[Condition]) -> bool:
    """Whether no client address satisfies the source's blocks and the conditions on `source.ip`."""
    only = Source(ip_blocks=source.ip_blocks, not_ip_blocks=source.not_ip_blocks) if source else Source()
    relevant = [c for c in conditions if c.key == "source.ip"]
    blocks = [*only.ip_blocks, *only.not_ip_blocks, *(v for c in relevant for v in (*c.values, *c.not_values))]
    rule = Rule((only,) if only != Source() else (), (), tuple(relevant))
    return bool(blocks) and not _any(rule, (Facts(None, None, None, a, _SOME, 1) for a in _borders(blocks)))


def destination_contradicts(conditions: Sequence[Condition]) -> bool:
    """Whether no server address satisfies the conditions on `destination.ip`."""
    relevant = [c for c in conditions if c.key == "destination.ip"]
    blocks = [v for c in relevant for v in (*c.values, *c.not_values)]
    rule = Rule((), (), tuple(relevant))
    return bool(blocks) and not _any(rule, (Facts(None, None, None, _SOME, a, 1) for a in _borders(blocks)))


def port_contradicts(operation: Operation | None, conditions: Sequence[Condition]) -> bool:
    """Whether no port satisfies the operation's ports and the conditions on `destination.port`."""
    only = Operation(operation.ports, operation.not_ports) if operation else Operation()
    relevant = [c for c in conditions if c.key == "destination.port"]
    named = {*only.ports, *only.not_ports, *(int(v) for c in relevant for v in (*c.values, *c.not_values))}
    rule = Rule((), (only,) if only != Operation() else (), tuple(relevant))
    other = next(port for port in range(1, 65537) if port not in named)
    return bool(named) and not _any(rule, (Facts(None, None, None, _SOME, _SOME, p) for p in (*named, other)))


def _any(rule: Rule, candidates: Iterable[Facts]) -> bool:
    test = compile_rule(rule, Action.DENY)
    return test is None or any(map(test, candidates))


def _borders(blocks: Iterable[str]) -> Iterator[Address]:
    """Where a block begins and where it has just ended: an intersection of blocks and complements begins at one."""
    yield 4, 0
    yield 6, 1 << 64
    for text in blocks:
        network = ipaddress.ip_network(text, strict=False)
        yield parse_address(str(network.network_address))
        after = int(network.broadcast_address) + 1
        if after < 1 << network.max_prefixlen:
            yield (4 if network.version == 4 else 6), after
