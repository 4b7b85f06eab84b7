"""Writing our chains into a table (a pod's mangle, mostly) with python-iptables, and reading them back.

python-iptables keeps one `Table` object a process, bound to the network namespace in which it last read the kernel's
table; so every function here starts with `refresh()`, runs inside the workload's namespace (`netns.inside`), and is
called on the one thread that does rule work (`thread.run`). It takes no xtables lock, so we do.

A table goes to the kernel whole: one `commit` replaces all of it at once, and packets see the old rules or the new.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import iptc

from redirect import extensions
from redirect.plan import IN_POD, Family, Layout, Plan, Rule

LOCK = "/run/xtables.lock"
_LOCK_SECONDS = 10.0
_COMMIT_ATTEMPTS = 5

extensions.adapt()


class TableError(Exception):
    """The kernel's rules can't be read or changed."""


@contextlib.contextmanager
def lock(path: str = LOCK, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock that iptables itself takes. Raises `TableError` when another program holds it for too long."""
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TableError(
                        f"{path} has been held for {seconds:g} s by another program changing iptables; "
                        f"find it with `fuser {path}`"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def write(family: Family, plan: Plan, layout: Layout = IN_POD) -> None:
    """Make our chains hold the plan's rules and nothing else, each jumped to first thing from its built-in chain.

    With no rules in the plan, the chains and jumps are removed. Raises `TableError`.
    """

    def change(table: Any) -> None:
        for chain, hook in layout.chains.items():
            rules = [rule for rule in plan.rules_of(family) if rule.chain == chain]
            if not rules:
                _remove_jumps(table, hook, chain, keep_first=False)
                if table.is_chain(chain):
                    table.flush_entries(chain)
                    table.delete_chain(chain)
                continue
            if table.is_chain(chain):
                table.flush_entries(chain)
            else:
                table.create_chain(chain)
            for rule in rules:
                iptc.Chain(table, chain).append_rule(_encode(family, rule))
            if _targets(table, hook)[:1] != [chain]:
                iptc.Chain(table, hook).insert_rule(_jump(family, chain), 0)
            _remove_jumps(table, hook, chain, keep_first=True)

    if not plan.rules and not present(family, layout):
        return
    _commit(family, layout, change)


def read(family: Family, layout: Layout = IN_POD) -> dict[str, list[tuple[str, ...]] | None]:
    """Our chains as they are: for each the rules in the form of `render`, or None where the chain is missing.

    The key of a built-in chain holds one entry, the target of its first rule. Raises `TableError`.
    """
    with _errors(family, layout):
        table = _table(family, layout)
        found: dict[str, list[tuple[str, ...]] | None] = {}
        for chain, hook in layout.chains.items():
            found[hook] = [(target,) for target in _targets(table, hook)]
            found[chain] = [_decode(rule) for rule in iptc.Chain(table, chain).rules] if table.is_chain(chain) else None
        return found


def render(family: Family, rule: Rule) -> tuple[str, ...]:
    """A planned rule in the words in which `read` gives the kernel's."""
    with _errors(family, IN_POD):
        return _decode(_encode(family, rule))


def present(family: Family, layout: Layout = IN_POD) -> bool:
    """Whether any of our chains exists. False also where the kernel has no such table."""
    try:
        with _errors(family, layout):
            table = _table(family, layout)
            return any(table.is_chain(chain) for chain in layout.chains)
    except TableError:
        return False


def _table(family: Family, layout: Layout) -> Any:
    kind = iptc.Table if family is Family.IPV4 else iptc.Table6
    table = kind(layout.table, autocommit=False)
    table.refresh()
    return table


def _commit(family: Family, layout: Layout, change: Callable[[Any], None]) -> None:
    """Read, change and write back; once more if somebody who takes no lock (a pod's own iptables) was faster."""
    with lock(), _errors(family, layout):
        for attempt in range(_COMMIT_ATTEMPTS):
            table = _table(family, layout)
            change(table)
            try:
                table.commit()
            except iptc.IPTCError as error:
                if os.strerror(errno.EAGAIN) not in str(error) or attempt == _COMMIT_ATTEMPTS - 1:
                    raise
            else:
                return


@contextlib.contextmanager
def _errors(family: Family, layout: Layout) -> Iterator[None]:
    """Translate python-iptables' errors once; ValueError is its word for rules of a pod's root that it can't read."""
    try:
        yield
    except (iptc.IPTCError, iptc.XTablesError, ValueError) as error:
        raise TableError(
            f"{family.value} {layout.table} table: {error}; noded's start-up check says what the kernel lacks"
        ) from error


def _encode(family: Family, rule: Rule) -> Any:
    encoded = iptc.Rule() if family is Family.IPV4 else iptc.Rule6()
    encoded.protocol = "tcp"
    if rule.in_interface:
        encoded.in_interface = rule.in_interface
    if rule.out_interface:
        encoded.out_interface = rule.out_interface
    if rule.source:
        encoded.src = rule.source
    if rule.destination:
        encoded.dst = rule.destination
    matches: dict[str, Any] = {}  # options of one kind share one match, as `-m tcp ! --dport 1 --syn` does
    for match in rule.matches:
        if match.name not in matches:
            matches[match.name] = encoded.create_match(match.name)
        matches[match.name].set_parameter(match.option, f"!{match.value}" if match.inverted else match.value)
    _load_target(encoded.nfproto, rule.target)
    target = encoded.create_target(rule.target)
    for option, value in rule.options:
        target.set_parameter(option, value)
    return encoded


def _load_target(protocol: int, name: str) -> None:
    """Make libxtables know a target for both families.

    A library that serves both (libxt_TPROXY) registers itself for the family of the moment when it is loaded. Asked for
    the other, libxtables notes the name as unknown; python-iptables then registers it, but only a new initialisation
    forgets that note. It must be the first target of all: libxtables ends the process when something is registered that
    stands in its list before another.
    """
    extensions = iptc.xtables.xtables(protocol)
    if not extensions.find_target(name):
        extensions._xtinit(protocol)
        extensions.find_target(name)


def _jump(family: Family, chain: str) -> Any:
    jump = iptc.Rule() if family is Family.IPV4 else iptc.Rule6()
    jump.protocol = "tcp"
    jump.create_target(chain)
    return jump


def _decode(rule: Any) -> tuple[str, ...]:
    """A rule as words, like iptables-save's, in one order whichever way it was built."""
    words = [f"-p {rule.protocol}"]
    words += [f"{flag} {name}" for flag, name in (("-i", rule.in_interface), ("-o", rule.out_interface)) if name]
    ends = (("-s", rule.src), ("-d", rule.dst))
    words += [f"{flag} {shown}" for flag, end in ends if (shown := _end(end))]
    for match in rule.matches:
        parameters = match.get_all_parameters()
        words += [f"-m {match.name} --{option} {' '.join(parameters[option])}" for option in sorted(parameters)]
    words.append(f"-j {rule.target.name}")
    parameters = rule.target.get_all_parameters()
    words += [f"--{option} {' '.join(parameters[option])}" for option in sorted(parameters)]
    return tuple(words)


def _end(end: str) -> str:
    """An end of a rule, `""` for any address; python-iptables writes it with a prefix length or a mask."""
    try:
        interface = ipaddress.ip_interface(end)
    except ValueError:  # `!` before it, or a mask with gaps: not one of ours
        return end
    return str(interface.ip) if interface.network.prefixlen else ""


def _targets(table: Any, hook: str) -> list[str]:
    """The targets of a built-in chain's rules in order. Doesn't decode them: they may need extensions we lack."""
    targets = []
    entry = table.first_rule(hook)
    while entry:
        targets.append((table.get_target(entry) or b"").decode(errors="backslashreplace"))
        entry = table.next_rule(entry)
    return targets


def _remove_jumps(table: Any, hook: str, chain: str, *, keep_first: bool) -> None:
    """Remove every jump to `chain` from `hook`, but for one in the first place if `keep_first`."""
    positions = [position for position, target in enumerate(_targets(table, hook)) if target == chain]
    for position in reversed(positions):
        if not (keep_first and position == 0) and not table._iptc.iptc_delete_num_entry(
            hook.encode(), position, table._handle
        ):
            raise iptc.IPTCError(f"can't delete the jump to {chain}: {table.strerror()}")


for _protocol in (iptc.xtables.NFPROTO_IPV4, iptc.xtables.NFPROTO_IPV6):
    _load_target(_protocol, "TPROXY")
