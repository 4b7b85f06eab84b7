from __future__ import annotations

from controller.cli.replicas import edges, nodes

EDGE = {
    "reporter": "source",
    "source": {"workload": "client"},
    "destination": {"workload": "web"},
    "service": "web.shop",
    "security": "mutual_tls",
    "flags": "-",
    "opened": 2,
    "closed": 1,
    "open": 1,
    "first_seen": 10,
    "last_seen": 20,
}


def test_a_node_is_what_the_controller_says_that_it_is_connected_to() -> None:
    here, away = {"name": "a", "connected": True, "last_seen": 1}, {"name": "a", "connected": False, "last_seen": 9}
    assert nodes([[here], [away]]) == nodes([[away], [here]]) == [here]


def test_of_a_node_that_none_has_the_latest_word_counts() -> None:
    late, early = {"name": "a", "last_seen": 9}, {"name": "a", "last_seen": None}
    assert nodes([[late, {"name": "b"}], [early]]) == nodes([[early], [{"name": "b"}, late]]) == [late, {"name": "b"}]


def test_an_edge_that_was_reported_to_two_is_added_up() -> None:
    other = {**EDGE, "opened": 3, "closed": 3, "open": 0, "first_seen": 5, "last_seen": 7}
    (edge,) = edges([[EDGE], [other]])
    assert [edge[name] for name in ("opened", "open", "failed", "first_seen", "last_seen")] == [5, 1, 0, 5, 20]


def test_a_connection_that_was_opened_under_one_and_closed_under_another_is_not_open() -> None:
    other = {**EDGE, "flags": "DC", "opened": 0, "closed": 1, "open": 0}
    assert [(edge["flags"], edge["open"]) for edge in edges([[EDGE], [other]])] == [("-", 0), ("DC", 0)]


def test_different_edges_stay_apart() -> None:
    assert len(edges([[EDGE], [{**EDGE, "security": "none"}], [{**EDGE, "reporter": "destination"}]])) == 3
