"""kubelet's probes: connections that the host itself makes to its pods, which have no identity and must pass STRICT.

In the host's namespace, TCP connections that a process of root opens to an enrolled pod's address are marked and get a
source address of their own (`PROBE_SOURCES`, as with Istio, so that policies and logs can name it). In the pod, what
comes from it on a guarded interface isn't captured (`plan`). That nobody else can send from it is up to `guard`; what
comes to the host with it from anywhere is dropped here. Whoever has root in the host's network is the host: a
container with hostNetwork and uid 0 can do what kubelet can.

All of this happens in the network namespace of the calling thread. Call it with `redirect.thread.run`.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from redirect import guard, tables
from redirect.capture import CaptureError, table_drift
from redirect.guard import PROBE_MARK, PROBE_MASK
from redirect.netns import NamespaceError
from redirect.plan import PROBE_SOURCES, Family, Layout, Match, Plan, Rule
from redirect.routes import kernel_has_ipv6

LAYOUTS = (
    Layout("raw", {"NODEMESH_PROBE_RAW": "PREROUTING"}),
    Layout("mangle", {"NODEMESH_PROBE_MARK": "OUTPUT"}),
    Layout("nat", {"NODEMESH_PROBE_NAT": "POSTROUTING"}),
)
_RAW, _MARK, _NAT = (next(iter(layout.chains)) for layout in LAYOUTS)


def plan(addresses: tuple[str, ...], ipv6: bool) -> Plan:
    """The host's rules for pods of these addresses. Pure."""
    families = (Family.IPV4, Family.IPV6) if ipv6 else (Family.IPV4,)
    if not addresses:
        return Plan(families, (), (), ())
    mark = f"{PROBE_MARK:#x}/{PROBE_MASK:#x}"
    marks = (("set-xmark", mark),)
    connection = Match("connmark", "mark", mark)
    rules: list[Rule] = []
    for family in families:
        source = PROBE_SOURCES[family]
        rules.append(Rule(_RAW, "DROP", in_interface="!lo", source=source, family=family))
        matches = (Match("tcp", "syn"), Match("owner", "uid-owner", "0"))
        rules += [
            Rule(_MARK, "CONNMARK", marks, matches, destination=address, family=family)
            for address in addresses
            if (":" in address) == (family is Family.IPV6)
        ]
        # All of its packets, also those that belong to no socket any more.
        rules.append(Rule(_MARK, "MARK", marks, (connection,), family=family))
        # A net of one address. Not SNAT: libxt_NAT registers all its targets at once, so that a process has it for one
        # family only (libxtables ends the process that tries it again).
        rules.append(Rule(_NAT, "NETMAP", (("to", source),), (Match("mark", "mark", mark), connection), family=family))
    return Plan(families, tuple(rules), (), ())


@dataclass(slots=True)
class _Pod:
    addresses: tuple[str, ...]
    indices: tuple[int, ...]


@dataclass(slots=True)
class Probes:
    """The host's half of letting probes in. Methods block for some milliseconds, and raise `CaptureError`."""

    _pods: dict[int, _Pod] = field(default_factory=dict)

    def admit(self, key: int, netns: int, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Let probes to a pod through; names of its interfaces on which a probe's source can be trusted.

        `key` is the caller's name for the pod. None of its interfaces is a veth: no names, and probes are captured.
        """
        with _errors():
            ends = guard.host_ends(netns)
            for index in ends.values():
                guard.put(index)
            canonical = tuple(sorted(str(ipaddress.ip_address(address)) for address in addresses))
            self._pods = {k: pod for k, pod in self._pods.items() if not set(pod.addresses) & set(canonical)}
            self._pods[key] = _Pod(canonical, tuple(ends.values()))
            self.apply()
            return tuple(sorted(ends))

    def leave(self, key: int, *, dead: bool) -> None:
        """A pod leaves the mesh, or (`dead`) has left the world. Nothing happens if it isn't known."""
        pod = self._pods.pop(key, None)
        if pod is not None:
            with _errors():
                self.apply()
                for index in () if dead else pod.indices:
                    guard.remove(index)

    def apply(self) -> None:
        """Write the host's rules."""
        with _errors():
            wanted = self._plan()
            for layout in LAYOUTS:
                for family in wanted.families:
                    tables.write(family, _part(wanted, layout), layout)

    def verify(self) -> list[str]:
        """How the kernel's rules and filters differ, a sentence each."""
        with _errors():
            wanted = self._plan()
            drift = []
            for layout in LAYOUTS if wanted.rules else ():
                for family in wanted.families:
                    drift += table_drift(family, _part(wanted, layout), layout)
            for pod in self._pods.values():
                for index in pod.indices:
                    with contextlib.suppress(OSError):  # it has ended
                        if not guard.there(index):
                            drift.append(f"the filter on interface {index}, to {', '.join(pod.addresses)}, is missing")
            return drift

    def repair(self) -> None:
        """Put back what others have removed."""
        with _errors():
            for pod in self._pods.values():
                for index in pod.indices:
                    with contextlib.suppress(OSError):
                        guard.put(index)
        self.apply()

    def _plan(self) -> Plan:
        return plan(tuple(address for pod in self._pods.values() for address in pod.addresses), kernel_has_ipv6())


def undo() -> None:
    """Leave no rule and no filter of ours in the host's namespace, whoever put them there. Raises `CaptureError`."""
    with _errors():
        nothing = plan((), ipv6=True)
        for layout in LAYOUTS:
            for family in nothing.families:
                tables.write(family, nothing, layout)
        for index in guard.veths():
            guard.remove(index)


def _part(wanted: Plan, layout: Layout) -> Plan:
    return Plan(wanted.families, tuple(rule for rule in wanted.rules if rule.chain in layout.chains), (), ())


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (tables.TableError, NamespaceError, OSError) as error:
        raise CaptureError(f"letting probes in, on the host: {error}") from error
