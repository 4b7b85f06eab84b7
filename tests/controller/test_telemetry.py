from __future__ import annotations

from dataclasses import replace

from controller.telemetry import Telemetry
from controller.tokens import Scope
from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Party

SHOP = Scope(("shop/*",))


def party(name: str, namespace: str = "shop") -> Party:
    return Party(name, namespace, "", name, "v1")


def report(source: Party, destination: Party, reporter: str = "source", **counts: int) -> EdgeReport:
    return EdgeReport(EdgeKey(reporter, source, destination, "", "none", "-"), EdgeCounts(**counts))


def test_counts_add_up_and_times_span_them() -> None:
    now = [100.0]
    telemetry = Telemetry(lambda: now[0])
    for _ in range(2):
        telemetry.add("n", SHOP, [report(party("a"), party("b"), opened=1, received=10)])
        now[0] += 5
    ((_key, edge),) = telemetry.edges()
    assert (edge.opened, edge.received, edge.first_seen, edge.last_seen) == (2, 20, 100, 105)


def test_a_node_is_believed_only_about_its_own_side() -> None:
    telemetry = Telemetry(lambda: 0.0)
    theirs = party("x", "bank")
    telemetry.add(
        "n",
        SHOP,
        [
            report(theirs, party("b"), "source"),
            report(party("a"), theirs, "destination"),
            report(party("a"), party("b"), "somebody"),
            report(party("a"), theirs, "source", opened=1),
        ],
    )
    assert telemetry.rejected == 3
    assert len(telemetry) == 1


def test_counts_and_texts_that_no_honest_node_sends_are_dropped() -> None:
    telemetry = Telemetry(lambda: 0.0)
    telemetry.add("n", SHOP, [report(party("a"), party("b"), opened=-1), report(party("a"), party("b"), sent=1 << 63)])
    telemetry.add("n", SHOP, [report(party("a" * 600), party("b"))])
    assert (telemetry.rejected, len(telemetry)) == (3, 0)


def test_the_edge_that_was_quiet_longest_makes_room() -> None:
    telemetry = Telemetry(lambda: 0.0, limit=2)
    for name in ("a", "b", "a", "c"):
        telemetry.add("n", SHOP, [report(party(name), party("z"), opened=1)])
    assert {key.source.workload for key, _edge in telemetry.edges()} == {"a", "c"}
    assert telemetry.evicted == 1


def test_an_edge_reported_by_two_nodes_is_one() -> None:
    telemetry = Telemetry(lambda: 0.0)
    for node in ("n", "m"):
        telemetry.add(node, SHOP, [report(party("a"), party("b"), opened=1)])
    ((_key, edge),) = telemetry.edges()
    assert edge.opened == 2


def test_a_connection_that_a_policy_closed_is_no_longer_open() -> None:
    telemetry = Telemetry(lambda: 0.0)
    opened = report(party("a"), party("b"), opened=2)
    denied = EdgeReport(replace(opened.key, flags="RBAC"), EdgeCounts(closed=1, denied=1))
    telemetry.add("n", SHOP, [opened, denied])
    assert telemetry.open_now() == {opened.key: 1}
