"""Every live connection of this worker: who, where to, how much; its log line and its counts when it ends.

A connection registers before its policies are checked, so that a policy change cannot slip between the two.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mesh.authz import Denial, Permit
from mesh.hbone import format_address
from mesh.identity import Identity
from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Party
from noded.data.alike import Alike
from noded.sink import ATOMIC, Sink
from noded.source_ports import SourcePorts

UNKNOWN = Party("unknown", "unknown", "unknown", "unknown", "unknown")
_STAMPS = 256


class Carrier(Protocol):
    """What moves (or is about to move) a connection's bytes."""

    def counts(self) -> tuple[int, int]:
        """Bytes so far: received from the client, sent to it."""

    def abort(self, reason: str, flags: str = "-", /) -> None:
        """Reset both sides now and finish the flow."""


class Requests(Protocol):
    """Who reads requests out of a connection."""

    def recheck(self) -> None:
        """The policies changed: break off what they do not permit any more."""


class Flow:
    """One connection, from capture to its log line. `finish` is called exactly once, by whoever carries it then."""

    __slots__ = (
        "_counted",
        "_destination_party",
        "_source_party",
        "_tracker",
        "audit",
        "carrier",
        "client",
        "client_port",
        "destination",
        "direction",
        "dry_run",
        "finished",
        "identity",
        "number",
        "opened",
        "peer_identity",
        "policy",
        "port",
        "requests",
        "security",
        "service",
        "started",
        "state",
        "target",
        "target_port",
        "uid",
    )

    def __init__(self, tracker: Tracker, uid: str, direction: str, client: str, client_port: int) -> None:
        self._tracker = tracker
        self.uid = uid
        """The local workload."""
        self.direction = direction
        """`outbound`, `inbound` or `passthrough`."""
        self.client, self.client_port = client, client_port
        self.destination, self.port = "", 0
        """What the client asked for."""
        self.target, self.target_port = "", 0
        """Where it went."""
        self.identity: Identity | None = None
        """The local workload's, where it is in use."""
        self.peer_identity: Identity | None = None
        self._source_party = self._destination_party = UNKNOWN
        self.service = ""
        self.security = "none"
        self.policy = ""
        self.dry_run: tuple[str, ...] = ()
        self.audit: tuple[str, ...] = ()
        self.carrier: Carrier | None = None
        self.state = "connecting"
        self.started = time.time()
        self.opened = self.finished = False
        self.requests: Requests | None = None
        """If it carries requests: they are counted and logged one by one, and the connection is not."""
        self._counted = (0, 0)
        self.number = tracker.register(self)

    def parties(self, source: Party, destination: Party, service: str, security: str) -> None:
        """Whose edge this is; before `establish`."""
        self._source_party, self._destination_party = source, destination
        self.service, self.security = service, security

    @property
    def sides(self) -> tuple[Party, Party, str, str]:
        """Source, destination, service and security, as `parties` had them."""
        return self._source_party, self._destination_party, self.service, self.security

    def decided(self, verdict: Permit | Denial) -> None:
        """Note what the policies said."""
        self.policy, self.dry_run, self.audit = verdict.policy, verdict.dry_run, verdict.audit

    def refused(self) -> None:
        """Note that it did not come to asking them."""
        self.policy, self.dry_run, self.audit = "", (), ()

    def establish(self) -> None:
        """The far side is connected; bytes may flow."""
        self.opened = True
        self.state = "open"
        if self.requests is None:
            self._tally("-").opened += 1

    def finish(self, flags: str = "-", reason: str = "") -> None:
        """It is over. `flags` are Envoy's response flags; `reason` is for people, empty if it ended in order."""
        if self.finished:
            return
        self.finished = True
        self.state = "closed"
        received, sent = self.count_bytes()
        if self.requests is None:
            tally = self._tally(flags)
            if flags == "RBAC":
                tally.denied += 1
            if self.opened:
                tally.closed += 1
            else:
                tally.failed += 1
        self.carrier = None  # they point at each other: without the collector's help both go now
        self._tracker.finished(self, flags, reason, received, sent)

    def count_bytes(self) -> tuple[int, int]:
        """Add to the edge what was carried since last asked; return the totals."""
        if self.carrier is None or self.requests is not None:
            return 0, 0
        received, sent = now = self.carrier.counts()
        if now != self._counted:
            tally = self._tally("-")
            tally.received += received - self._counted[0]
            tally.sent += sent - self._counted[1]
            self._counted = now
        return now

    @property
    def id(self) -> str:
        """What it is called in the log, in lists, and where somebody asks why."""
        return f"{self._tracker.index}-{self.number}"

    def who(self) -> dict[str, Any]:
        """Whose connection it is, as `GET /connections` and `GET /why` show it."""
        outbound = self.direction == "outbound"
        local = self.identity.uri if self.identity else ""
        peer = self.peer_identity.uri if self.peer_identity else ""
        return {
            "id": self.id,
            "worker": self._tracker.index,
            "direction": self.direction,
            "workload": self.uid,
            "source": format_address(self.client, self.client_port),
            "source_identity": local if outbound else peer,
            "destination": format_address(self.destination, self.port),
            "destination_identity": peer if outbound else local,
            "target": format_address(self.target, self.target_port) if self.target else "",
            "service": self.service,
            "http": self.requests is not None,
        }

    def _tally(self, flags: str) -> Tally:
        key = (
            self.direction == "outbound",
            self._source_party,
            self._destination_party,
            self.service,
            self.security,
            flags,
        )
        return self._tracker.tally(key)


class Tally:
    """Counts of one edge since the last report."""

    __slots__ = ("closed", "denied", "failed", "opened", "received", "sent")

    def __init__(self) -> None:
        self.opened = self.closed = self.failed = self.denied = self.received = self.sent = 0


_Edge = tuple[bool, Party, Party, str, str, str]


class Tracker:
    """The live connections, the counts not yet reported, and the access log."""

    def __init__(
        self, source_ports: SourcePorts, *, access_log: bool, text: bool = False, log_fd: int = 1, index: int = 0
    ) -> None:
        self.source_ports, self.index = source_ports, index
        self.logging = access_log
        """Whether there is an access log."""
        self.text = text
        """Whether it is in Envoy's text format, else in JSON."""
        self._log = Sink(log_fd)
        self._flows: dict[int, Flow] = {}
        self._failed: Alike[tuple[Flow, float, str, str]] = Alike()
        """With when and how they ended."""
        self._edges: dict[_Edge, Tally] = {}
        self._next = 0
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""
        self._stamps: dict[int, str] = {}
        """By milliseconds since 1970: many requests begin or end in the same one."""
        self.totals: dict[str, int] = {"access_log_dropped": 0}
        """Counters of this process, by name."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of `totals`."""
        self.totals[name] = self.totals.get(name, 0) + by

    def register(self, flow: Flow) -> int:
        """Called by `Flow`; returns its number."""
        self._next += 1
        self._flows[self._next] = flow
        if flow.direction == "passthrough":
            self.source_ports.take(flow.client_port)
        return self._next

    def __len__(self) -> int:
        return len(self._flows)

    def of(self, uid: str) -> list[Flow]:
        """The live connections of a local workload."""
        return [flow for flow in self._flows.values() if flow.uid == uid]

    def live(self) -> list[Flow]:
        """All of them."""
        return list(self._flows.values())

    def tally(self, key: _Edge) -> Tally:
        """The counts of one edge."""
        found = self._edges.get(key)
        if found is None:
            found = self._edges[key] = Tally()
        return found

    def report(self) -> tuple[EdgeReport, ...]:
        """What happened since the last call, bytes of live connections included."""
        for flow in self._flows.values():
            flow.count_bytes()
        edges, self._edges = self._edges, {}
        return tuple(
            EdgeReport(
                EdgeKey("source" if outbound else "destination", source, destination, service, security, flags),
                EdgeCounts(t.opened, t.closed, t.failed, t.denied, t.received, t.sent),
            )
            for (outbound, source, destination, service, security, flags), t in edges.items()
        )

    def finished(self, flow: Flow, flags: str, reason: str, received: int, sent: int) -> None:
        """Called by `Flow`."""
        self._flows.pop(flow.number, None)
        if flow.direction == "passthrough":
            self.source_ports.release(flow.client_port)
        now = time.time()
        if flags != "-" and flow.requests is None:
            kind = flow.uid, flow.direction, flow.peer_identity, flow.service, flags, reason
            self._failed.add(kind, (flow, now, flags, reason), now)
        if not self.logging or flow.requests is not None:
            return
        if self.text:  # Envoy's default format, of what there is without requests
            target = format_address(flow.target, flow.target_port) if flow.target else "-"
            numbers = f"{received} {sent} {(now - flow.started) * 1000:.0f}"
            self.log(f'[{self.stamp(flow.started)}] "- - -" 0 {flags} {numbers} - "-" "-" "-" "-" "{target}"')
            return
        line: dict[str, Any] = {
            "time": self.stamp(now),
            "type": "access",
            "id": flow.id,
            "direction": flow.direction,
            "workload": flow.uid,
            "source": format_address(flow.client, flow.client_port),
            "destination": format_address(flow.destination, flow.port),
            "target": format_address(flow.target, flow.target_port) if flow.target else "",
            "service": flow.service,
            "peer_identity": flow.peer_identity.uri if flow.peer_identity else "",
            "security": flow.security,
            "policy": flow.policy,
            "flags": flags,
            "reason": reason,
            "received": received,
            "sent": sent,
            "duration_ms": round((now - flow.started) * 1000, 1),
        }
        if flow.dry_run:
            line["dry_run"] = flow.dry_run
        if flow.audit:
            line["audit"] = flow.audit
        self.log(_to_json(line))

    def stamp(self, now: float = 0.0) -> str:
        """The time as the access log writes it."""
        milliseconds = int((now or time.time()) * 1000)
        stamp = self._stamps.get(milliseconds)
        if stamp is None:
            second, rest = divmod(milliseconds, 1000)
            if second != self._second:
                self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            if len(self._stamps) >= _STAMPS:
                self._stamps.clear()
            stamp = self._stamps[milliseconds] = f"{self._stamp}.{rest:03d}Z"
        return stamp

    def log(self, line: str) -> None:
        """Add a line to the access log."""
        self._lines.append(line)

    def flush_log(self) -> None:
        """Write the gathered lines. A reader that does not keep up loses lines (counted), never holds up traffic."""
        lines, self._lines = self._lines, []
        for chunk in _chunks(lines):
            if not self._log.write(chunk):
                self.count("access_log_dropped", chunk.count(b"\n"))

    @property
    def has_lines(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._lines)

    def rows(self) -> list[dict[str, Any]]:
        """The live connections as `GET /connections` shows them."""
        rows = []
        for flow in self._flows.values():
            received, sent = flow.carrier.counts() if flow.carrier else (0, 0)
            rows.append(
                {
                    **flow.who(),
                    "via": "tunnel" if flow.security == "mutual_tls" else "plaintext",
                    "policy": flow.policy,
                    "opened_at": flow.started,
                    "received": received,
                    "sent": sent,
                    "state": flow.state,
                }
            )
        return rows

    def failed_rows(self) -> list[dict[str, Any]]:
        """The last connections that were denied or failed, as `GET /why` shows them but one by one (`Alike.rows`)."""

        def row(failed: tuple[Flow, float, str, str]) -> dict[str, Any]:
            flow, at, flags, reason = failed
            return {
                **flow.who(),
                "kind": "connection",
                "at": at,
                "policy": flow.policy,
                "flags": flags,
                "reason": reason,
            }

        return self._failed.rows(row)


_to_json: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def _chunks(lines: list[str]) -> Iterator[bytes]:
    """Whole lines joined up to the size that a pipe takes at once without blocking."""
    gathered: list[bytes] = []
    size = 0
    for text in lines:
        line = text.encode() + b"\n"
        if gathered and size + len(line) > ATOMIC:
            yield b"".join(gathered)
            gathered, size = [], 0
        gathered.append(line)
        size += len(line)
    if gathered:
        yield b"".join(gathered)
