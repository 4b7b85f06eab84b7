"""What capture puts into a workload's network namespace: facts in, rules and routes out. Pure.

How a connection is captured, in one picture (`M` is the proxy's mark, drawn at random for each workload):

    outbound  app ──SYN──> OUTPUT: connection := OUTBOUND; every packet of its ORIGINAL direction gets mark REROUTE
                           policy rule: REROUTE -> table 15001 -> local, over lo
                           PREROUTING on lo: TPROXY to 15001
    inbound   wire ──SYN─> PREROUTING: connection := INBOUND; ORIGINAL direction: TPROXY to 15006 (15008 needs none)
    to app    proxy (M) ──SYN over lo, from the client's address──> connection := RELAYED; the app's answers, which are
                           addressed to that client, get REROUTE in OUTPUT and so come back over lo

Why it is the *connection* that is marked, on its SYN: with SYN cookies the kernel forgets the SYN, and the packet that
makes the socket is an ACK; it must meet TPROXY too. And a connection from before enrolment has no mark: it goes on.

What a pod can do with CAP_NET_RAW (SO_MARK, IP_TRANSPARENT, raw sockets) or without (SO_BINDTODEVICE) decided the rest:

- No rule trusts a packet's mark but `M`; REROUTE only chooses a route, and a socket that sets it itself talks to lo.
- Marks of packets are compared in all 32 bits, so `M` cannot overlap REROUTE; connection marks are another register,
  which needs CAP_NET_ADMIN to write.
- A socket bound to a device keeps its device when it is rerouted, so the table has one local route for each interface.
- Whatever else happens, POSTROUTING lets no SYN and no packet of a captured connection out of the namespace unless it
  has `M`.

- `M` is taken off each packet before it leaves netfilter, so neither a packet socket nor an app's accepted socket
  (tcp_fwmark_accept) shows it.

What no rule here stops: packet sockets (AF_PACKET, part of CAP_NET_RAW) write frames below netfilter. A pod with its
own TCP stack on one has the standing of a host outside the mesh: no identity, refused under STRICT.

rp_filter, accept_local, route_localnet and src_valid_mark need no change: packets rerouted over lo carry their route
with them and never meet the source check, and packets from the wire are given no mark (the tests switch both on).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008

REROUTE_MARK = 0x112
"""Packet mark: look this up in `TABLE`."""
TABLE = 15001
PRIORITY = 15
"""After `local` (0), before whatever source routing a CNI plug-in has set up for several interfaces."""

RELAYED, OUTBOUND, INBOUND = 0x111, 0x112, 0x113
"""Connection marks, under `CONNECTION_MASK`: the other bits are other software's."""
CONNECTION_MASK = 0xFFF


class Family(enum.Enum):
    """An address family that has rules of its own."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


@dataclass(frozen=True, slots=True)
class Layout:
    """Our chains in one table, each with the built-in chain whose first rule jumps there."""

    table: str
    chains: dict[str, str]


CHAINS = {"NODEMESH_PREROUTING": "PREROUTING", "NODEMESH_OUTPUT": "OUTPUT", "NODEMESH_POSTROUTING": "POSTROUTING"}
IN_POD = Layout("mangle", CHAINS)

PROBE_SOURCES = {Family.IPV4: "169.254.7.127", Family.IPV6: "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}
"""From where a pod sees the probes of its own host's kubelet (Istio's addresses). See `redirect.host`."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A link of the namespace that is up."""

    name: str
    index: int
    ipv6: bool
    """Whether IPv6 is enabled on it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is before anything is decided."""

    mark: int
    """SO_MARK of the proxy's own sockets in this namespace."""
    interfaces: tuple[Interface, ...]
    ipv6: bool
    """Whether the kernel has IPv6. A namespace that merely has no IPv6 address gets the rules too: one may come."""
    probed: tuple[str, ...] = ()
    """Names of interfaces on which a packet from `PROBE_SOURCES` can only be the host's own (`redirect.host`)."""


@dataclass(frozen=True, slots=True)
class Match:
    """`-m name --option value`, with `inverted` as iptables' `!`."""

    name: str
    option: str
    value: str = ""
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain. Always `-p tcp`: everything else is untouched."""

    chain: str
    target: str
    options: tuple[tuple[str, str], ...] = ()
    matches: tuple[Match, ...] = ()
    in_interface: str = ""
    """Name, `!name` for any other, or empty for all."""
    out_interface: str = ""
    source: str = ""
    """An address, or empty for all; so is `destination`."""
    destination: str = ""
    family: Family | None = None
    """None: the same for both."""
    captures: bool = False
    """Whether the rule is about connections that begin. Without these, nothing new is captured and the rest drains."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """`ip rule add fwmark MARK/0xffffffff lookup TABLE priority PRIORITY`."""

    family: Family
    mark: int
    table: int
    priority: int


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """`ip route add local default dev INTERFACE table TABLE metric METRIC`."""

    family: Family
    table: int
    interface: int
    """Index."""
    metric: int
    """The interface's index: routes to one destination must differ, and lo (1) comes first."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that capture of one workload consists of."""

    families: tuple[Family, ...]
    rules: tuple[Rule, ...]
    policy_rules: tuple[PolicyRule, ...]
    routes: tuple[LocalRoute, ...]

    def rules_of(self, family: Family) -> tuple[Rule, ...]:
        """Those that hold for a family."""
        return tuple(rule for rule in self.rules if rule.family in (None, family))

    def draining(self) -> Plan:
        """The same without what captures new connections."""
        return replace(self, rules=tuple(rule for rule in self.rules if not rule.captures))


NOTHING = Plan(families=(Family.IPV4, Family.IPV6), rules=(), policy_rules=(), routes=())
"""What `undo` leaves."""


def usable_mark(mark: int) -> bool:
    """Whether the proxy's sockets may carry it: 32 bits, not 0 (no mark), not the one that chooses our route."""
    return 0 < mark <= 0xFFFFFFFF and mark != REROUTE_MARK


def plan(facts: Facts) -> Plan:
    """Decide the rules, policy rules and routes. Raises `ValueError` on a mark that `usable_mark` refuses."""
    if not usable_mark(facts.mark):
        raise ValueError(
            f"{facts.mark:#x} can't be a proxy's mark: it must be 32 bits, not 0 and not {REROUTE_MARK:#x}"
        )
    families = (Family.IPV4, Family.IPV6) if facts.ipv6 else (Family.IPV4,)
    return Plan(
        families=families,
        rules=_rules(facts.mark, facts.probed),
        policy_rules=tuple(PolicyRule(family, REROUTE_MARK, TABLE, PRIORITY) for family in families),
        routes=tuple(
            LocalRoute(family, TABLE, interface.index, metric=interface.index)
            for family in families
            for interface in facts.interfaces
            if family is Family.IPV4 or interface.ipv6
        ),
    )


def _rules(mark: int, probed: tuple[str, ...]) -> tuple[Rule, ...]:
    syn = Match("tcp", "syn")
    not_hbone = Match("tcp", "dport", str(HBONE_PORT), inverted=True)
    new = Match("conntrack", "ctstate", "NEW")
    original, reply = Match("conntrack", "ctdir", "ORIGINAL"), Match("conntrack", "ctdir", "REPLY")
    proxy, not_proxy = Match("mark", "mark", f"{mark:#x}"), Match("mark", "mark", f"{mark:#x}", inverted=True)
    reroute = (("set-xmark", f"{REROUTE_MARK:#x}/0xffffffff"),)

    def is_(connection: int) -> Match:
        return Match("connmark", "mark", f"{connection:#x}/{CONNECTION_MASK:#x}")

    def becomes(connection: int) -> tuple[tuple[str, str], ...]:
        return (("set-xmark", f"{connection:#x}/{CONNECTION_MASK:#x}"),)

    def to(port: int) -> tuple[tuple[str, str], ...]:
        return (("on-port", str(port)),)

    pre, out, post = CHAINS
    return (
        Rule(pre, "TPROXY", to(OUTBOUND_PORT), (is_(OUTBOUND), original), in_interface="lo"),
        *(
            Rule(pre, "RETURN", in_interface=interface, source=source, family=family, captures=True)
            for family, source in PROBE_SOURCES.items()
            for interface in probed
        ),
        # NEW, so that a stray or forged SYN can't take over, and thereby kill, a connection from before enrolment.
        Rule(pre, "CONNMARK", becomes(INBOUND), (not_hbone, syn, new), in_interface="!lo", captures=True),
        Rule(pre, "TPROXY", to(INBOUND_PORT), (is_(INBOUND), original), in_interface="!lo"),
        # A SYN that got here is one that conntrack can't place: the app must not see it before the proxy has.
        Rule(pre, "DROP", (), (not_hbone, syn), in_interface="!lo", captures=True),
        Rule(out, "MARK", reroute, (is_(RELAYED), reply)),
        Rule(out, "CONNMARK", becomes(RELAYED), (syn, proxy), out_interface="lo"),
        Rule(out, "RETURN", (), (proxy,)),
        Rule(out, "CONNMARK", becomes(OUTBOUND), (syn,), out_interface="!lo", captures=True),
        Rule(out, "MARK", reroute, (is_(OUTBOUND), original), out_interface="!lo"),
        Rule(post, "DROP", (), (syn, not_proxy), out_interface="!lo", captures=True),
        Rule(post, "DROP", (), (is_(OUTBOUND), not_proxy), out_interface="!lo"),
        Rule(post, "DROP", (), (is_(RELAYED), not_proxy), out_interface="!lo"),
        # Packet sockets can read the marks of what they tap (SO_RCVMARK), and they tap after this.
        Rule(post, "MARK", (("set-xmark", "0x0/0xffffffff"),), (proxy,)),
    )
