"""Capture of one workload: put the plan into its network namespace, check that it is there, take it away."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from redirect import routes, tables
from redirect.netns import inside, open_netns
from redirect.plan import IN_POD, NOTHING, Facts, Family, Layout, Plan, plan, usable_mark


class CaptureError(Exception):
    """Capture of a workload can't be set up, read or removed. The message names the namespace and what to do."""


def new_mark() -> int:
    """A mark for the proxy's sockets in one namespace: a secret of 32 bits, for whoever carries it isn't captured."""
    while not usable_mark(mark := secrets.randbits(32)):
        pass
    return mark


class Capture:
    """The rules of one workload. Every method blocks for some milliseconds: call it with `redirect.thread.run`.

    `netns` is opened anew by each call. Where the path could come to name another namespace, hold a descriptor and pass
    `/proc/self/fd/N`. All methods may be repeated, after any failure and by another process: they look at what is
    there. All raise `CaptureError`.
    """

    def __init__(self, netns: str, mark: int, probed: tuple[str, ...] = ()) -> None:
        """`probed`: interfaces on which the host's own probes arrive, see `redirect.host`."""
        if not usable_mark(mark):
            raise CaptureError(f"{netns}: not a mark for a proxy's sockets; draw one with redirect.capture.new_mark()")
        self._netns = netns
        self._mark, self._probed = mark, probed

    def plan(self) -> Plan:
        """What `apply` would put in place."""
        with self._inside():
            return self._plan_here()

    def apply(self) -> None:
        """Capture connections that begin from now on; those there are go on. Replaces what an earlier run left.

        The listeners should be open: until they are, new connections get no answer. After a failure part of it may be
        in place; `apply` again or `undo`.
        """
        with self._inside():
            wanted = self._plan_here()
            routes.write(wanted)  # first: nothing uses them before the rules do
            for family in wanted.families:
                tables.write(family, wanted)

    def verify(self) -> list[str]:
        """How the kernel's state differs from the plan, a sentence each; empty if it doesn't. Never names the mark."""
        with self._inside():
            wanted = self._plan_here()
            drift = _route_drift(wanted)
            for family in wanted.families:
                drift += table_drift(family, wanted)
            return drift

    def undo_syn(self) -> None:
        """Capture no new connection; those captured go on until they end. `verify` then reports what is missing."""
        with self._inside():
            draining = self._plan_here().draining()
            for family in draining.families:
                if tables.present(family):
                    tables.write(family, draining)

    def undo(self) -> None:
        """Leave no rule, chain, policy rule or route of ours. Captured connections that are still open break."""
        with self._inside():
            for family in NOTHING.families:
                tables.write(family, NOTHING)
            routes.write(NOTHING)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Enter the namespace, and say which one it was when something fails there."""
        try:
            fd = open_netns(self._netns)
            try:
                with inside(fd):
                    yield
            finally:
                os.close(fd)
        except Exception as error:  # root in there decides what is to be read, and must not end noded with it
            raise CaptureError(f"capture in {self._netns}: {error}") from error

    def _plan_here(self) -> Plan:
        return plan(Facts(self._mark, routes.interfaces(), routes.kernel_has_ipv6(), self._probed))


def table_drift(family: Family, wanted: Plan, layout: Layout = IN_POD) -> list[str]:
    """How one table differs from the plan, a sentence each."""
    found = tables.read(family, layout)
    drift = []
    for chain, hook in layout.chains.items():
        where = f"{family.value} {layout.table}"
        if (found[hook] or [()])[0] != (chain,):
            drift.append(f"{where} {hook}: the first rule doesn't jump to {chain}")
        actual = found[chain]
        if actual is None:
            drift.append(f"{where} {chain}: the chain is missing")
            continue
        expected = [tables.render(family, rule) for rule in wanted.rules_of(family) if rule.chain == chain]
        drift += [f"{where} {chain}: {difference}" for difference in _differences(expected, actual)]
    return drift


def _differences(expected: list[tuple[str, ...]], actual: list[tuple[str, ...]]) -> list[str]:
    """What a chain lacks and what it has too much, in iptables' words; the order only if nothing else differs."""
    missing = [_without_marks(rule) for rule in expected if rule not in actual]
    foreign = [_without_marks(rule) for rule in actual if rule not in expected]
    if missing and sorted(missing) == sorted(foreign):
        return ["the rules are for another mark of the proxy"]
    if not missing and not foreign and expected != actual:
        return ["the rules are repeated or out of order"]
    return [f"`{rule}` is missing" for rule in missing] + [f"`{rule}` is not ours" for rule in foreign]


def _without_marks(rule: tuple[str, ...]) -> str:
    """A rule as text without the proxy's mark, or a former one: drift is shown and logged."""
    return " ".join("-m mark --mark …" if word.startswith("-m mark ") else word for word in rule)


def _route_drift(wanted: Plan) -> list[str]:
    rules, table = routes.read()
    differences = (
        ("is missing", set(wanted.policy_rules) - rules, set(wanted.routes) - table),
        ("is not ours", rules - set(wanted.policy_rules), table - set(wanted.routes)),
    )
    drift = []
    for what, policy_rules, local_routes in differences:
        for rule in policy_rules:
            drift.append(
                f"{rule.family.value} policy rule {what}: fwmark {rule.mark:#x} lookup {rule.table} "
                f"priority {rule.priority}"
            )
        for route in local_routes:
            drift.append(
                f"{route.family.value} route {what}: local default dev #{route.interface} table {route.table} "
                f"metric {route.metric}"
            )
    return sorted(drift)
