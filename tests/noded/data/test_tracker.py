"""What is counted, logged and shown of connections, and that a slow reader of the log holds nobody up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.authz import Authorizer, Denial, Peer
from mesh.identity import Identity
from mesh.model import Action, EdgeCounts, Party, Policy
from noded.data.tracker import Flow, Tracker
from tests.noded.data.loopback import source_ports

CLIENT = Party("client", "shop", "spiffe://c/ns/shop/sa/client", "client", "v1")
WEB = Party("web", "shop", "spiffe://c/ns/shop/sa/web", "web", "v1")


class Carried:
    """A carrier with counts to set."""

    def __init__(self) -> None:
        self.received = self.sent = 0

    def counts(self) -> tuple[int, int]:
        return self.received, self.sent

    def abort(self, reason: str, flags: str = "-", /) -> None:
        raise AssertionError("not asked for")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def tracker(log_fd: int = -1, *, access_log: bool = True) -> Tracker:
    return Tracker(source_ports(), access_log=access_log, log_fd=log_fd)


def flow(made: Tracker, direction: str = "outbound", port: int = 40_000) -> tuple[Flow, Carried]:
    one = Flow(made, "shop/client", direction, "10.0.0.1", port)
    one.parties(CLIENT, WEB, "web.shop.svc.cluster.local", "mutual_tls")
    carried = Carried()
    one.carrier = carried
    return one, carried


def counts(made: Tracker) -> dict[str, EdgeCounts]:
    """By flags."""
    return {report.key.flags: report.counts for report in made.report()}


def test_bytes_of_live_connections_are_reported_as_they_go_and_once() -> None:
    made = tracker()
    one, carried = flow(made)
    one.establish()
    carried.received, carried.sent = 10, 20
    assert counts(made) == {"-": EdgeCounts(1, 0, 0, 0, 10, 20)}
    assert counts(made) == {}
    carried.received = 15
    one.finish()
    assert counts(made) == {"-": EdgeCounts(0, 1, 0, 0, 5, 0)}
    assert len(made) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=20))
def test_reports_add_up_to_what_was_carried(steps: list[tuple[int, int, bool]]) -> None:
    made = tracker()
    one, carried = flow(made)
    one.establish()
    total = [0, 0]
    for received, sent, report in steps:
        carried.received += received
        carried.sent += sent
        if report:
            for row in made.report():
                total[0] += row.counts.received
                total[1] += row.counts.sent
    one.finish("DC", "reset")
    for row in made.report():
        total[0] += row.counts.received
        total[1] += row.counts.sent
    assert total == [carried.received, carried.sent]


def test_a_connection_that_never_opened_failed_and_one_that_was_denied_was_denied() -> None:
    made = tracker()
    flow(made)[0].finish("UF", "refused")
    flow(made)[0].finish("RBAC", "denied")
    assert counts(made) == {"UF": EdgeCounts(0, 0, 1, 0, 0, 0), "RBAC": EdgeCounts(0, 0, 1, 1, 0, 0)}


def test_a_connection_ends_once() -> None:
    made = tracker()
    one, _ = flow(made)
    one.establish()
    one.finish("DC", "first")
    one.finish("UC", "second")
    assert counts(made)["DC"].closed == 1
    assert len(made._lines) == 1


def test_the_sides_of_an_edge_tell_who_reports() -> None:
    made = tracker()
    flow(made, "outbound")[0].finish()
    flow(made, "inbound")[0].finish()
    assert sorted(report.key.reporter for report in made.report()) == ["destination", "source"]


def test_a_source_port_is_taken_while_its_plaintext_connection_lives() -> None:
    made = tracker()
    one, _ = flow(made, "passthrough", 12_345)
    two, _ = flow(made, "passthrough", 12_345)
    tunnelled, _ = flow(made, "inbound", 12_346)
    one.finish()
    assert made.source_ports.used(12_345)
    two.finish()
    assert not made.source_ports.used(12_345)
    assert not made.source_ports.used(12_346)
    tunnelled.finish()


def test_a_log_line_says_who_where_how_much_and_why(pipe: tuple[int, int]) -> None:
    made = tracker(pipe[1])
    one, carried = flow(made)
    one.destination, one.port, one.target, one.target_port = "10.96.0.1", 80, "fd00::2", 8080
    one.peer_identity = Identity("c", "shop", "web")
    policies = (Policy("no-one", "shop", Action.ALLOW, ()), Policy("maybe", "shop", Action.ALLOW, (), dry_run=True))
    verdict = Authorizer.of(policies, (), namespace="shop", labels={}, root_namespace="r").check(
        Peer(None, "10.0.0.1", "fd00::2", 8080)
    )
    assert isinstance(verdict, Denial)
    one.decided(verdict)
    carried.received, carried.sent = 3, 4
    assert not made.has_lines
    one.finish("RBAC", 'why "quoted"')
    assert made.has_lines
    made.flush_log()
    assert not made.has_lines
    line = json.loads(os.read(pipe[0], 10_000))
    assert line.pop("time").endswith("Z")
    assert line.pop("duration_ms") >= 0
    line.pop("dry_run", None)
    assert line == {
        "type": "access",
        "id": "0-1",
        "direction": "outbound",
        "workload": "shop/client",
        "source": "10.0.0.1:40000",
        "destination": "10.96.0.1:80",
        "target": "[fd00::2]:8080",
        "service": "web.shop.svc.cluster.local",
        "peer_identity": "spiffe://c/ns/shop/sa/web",
        "security": "mutual_tls",
        "policy": verdict.policy,
        "flags": "RBAC",
        "reason": 'why "quoted"',
        "received": 3,
        "sent": 4,
    }


def test_without_an_access_log_nothing_is_written_and_all_is_counted() -> None:
    made = tracker(access_log=False)
    flow(made)[0].finish()
    assert not made.has_lines
    assert counts(made)["-"].failed == 1


def test_a_reader_that_does_not_keep_up_loses_lines_which_are_counted(pipe: tuple[int, int]) -> None:
    made = tracker(pipe[1])
    for _ in range(2000):
        flow(made)[0].finish("UF", "x" * 100)
    made.flush_log()  # a pipe takes 64 KiB; a blocking write would hang here
    dropped = made.totals["access_log_dropped"]
    assert 0 < dropped < 2000
    lines = os.read(pipe[0], 1 << 20).splitlines()
    assert len(lines) == 2000 - dropped
    assert all(json.loads(line)["flags"] == "UF" for line in lines), "only whole lines"


def test_a_reader_that_is_gone_loses_all_lines() -> None:
    read, write = os.pipe()
    os.close(read)
    made = tracker(write)
    for _ in range(50):
        flow(made)[0].finish()
    made.flush_log()
    assert made.totals["access_log_dropped"] == 50
    os.close(write)


def test_rows_show_the_live_connections_from_both_sides() -> None:
    made = tracker()
    out, carried = flow(made, "outbound")
    out.identity, out.peer_identity = Identity("c", "shop", "client"), Identity("c", "shop", "web")
    into, _ = flow(made, "inbound")
    into.identity, into.peer_identity = out.peer_identity, out.identity
    waiting = Flow(made, "shop/client", "passthrough", "10.0.0.1", 1)
    carried.received = 7
    out.establish()
    rows = {row["direction"]: row for row in made.rows()}
    for row in (rows["outbound"], rows["inbound"]):
        assert row["source_identity"].endswith("/sa/client")
        assert row["destination_identity"].endswith("/sa/web")
        assert row["via"] == "tunnel"
    assert (rows["outbound"]["state"], rows["outbound"]["received"]) == ("open", 7)
    assert (rows["passthrough"]["state"], rows["passthrough"]["via"]) == ("connecting", "plaintext")
    assert len({row["id"] for row in rows.values()}) == 3
    assert made.of("shop/client") == made.live() == [out, into, waiting]
    assert made.of("other") == []


def test_totals_count() -> None:
    made = tracker()
    made.count("held")
    made.count("held", 2)
    assert made.totals["held"] == 3
