"""Daemons die and come back: no state lost, no manual step, nothing open and nothing in the clear meanwhile."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.pods import Bed, echo, eventually, talks
from tests.e2e.test_policy import DENY_CLIENT


def restart_node(bed: Bed, pod: str) -> None:
    bed.testbed.processes.stop(f"node/{bed.node(pod).name}", 40)
    bed.testbed.start_node(bed.node(pod))


@pytest.mark.parametrize("side", ["client", "web"])
def test_noded_killed_means_a_reset_then_closed_doors_then_all_as_before(own_bed: Bed, side: str) -> None:
    bed = own_bed
    with bed["web"].serve(echo) as server, bed["client"].connect(bed["web"].v4) as conn:
        assert talks(conn)
        bed.testbed.processes.kill(f"node/{bed.node(side).name}")
        with pytest.raises(ConnectionResetError):
            conn.recv(1)
        seen = len(server.peers)
        assert not bed["client"].reaches(bed["web"].v4, seconds=3)
        assert len(server.peers) == seen, "a connection got around the dead noded"
        restart_node(bed, side)
        assert eventually(lambda: bed["client"].reaches(bed["web"].v4))
    assert set(server.peers) == {bed["client"].v4}


def test_a_worker_killed_is_replaced_and_its_connections_end_with_a_reset(own_bed: Bed) -> None:
    bed = own_bed
    with bed["web"].serve(echo) as server, bed["client"].connect(bed["web"].v4) as conn:
        assert talks(conn)
        node = bed.node("web")
        before = bed.testbed.node_api(node, "GET", "/status")
        (row,) = bed.connections("web")
        (pid,) = [worker["pid"] for worker in before["workers"] if worker["index"] == row["worker"]]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionError):
            conn.recv(1)
        eventually(lambda: server.ended)

        def replaced() -> bool:
            workers = bed.testbed.node_api(node, "GET", "/status")["workers"]
            return pid not in [w["pid"] for w in workers] and len(workers) == len(before["workers"])

        eventually(replaced)
        assert bed.testbed.node_api(node, "GET", "/status")["pid"] == before["pid"]
        assert eventually(lambda: bed["client"].reaches(bed["web"].v4))


def test_the_controller_away_means_nothing_to_running_workloads_nor_to_a_node_that_restarts(own_bed: Bed) -> None:
    bed = own_bed
    deny_near = DENY_CLIENT.replace("client", "near")
    with bed["web"].serve(echo), bed["client"].connect(bed["web"].v4) as conn, bed.resources(deny_near):
        assert talks(conn)
        bed.testbed.processes.kill("controller")
        assert talks(conn)
        assert bed["client"].reaches(bed["web"].v4)
        assert not bed["near"].reaches(bed["web"].v4)
        node = bed.node("web")
        bed.testbed.processes.stop(f"node/{node.name}", 40)
        bed.testbed.launch_node(node)
        assert eventually(lambda: bed["client"].reaches(bed["web"].v4), 30)
        assert not bed["near"].reaches(bed["web"].v4), "the policy was forgotten"
        bed.testbed.start_controller()
        for pod in ("client", "web"):
            bed.testbed.await_node(bed.node(pod))


def test_a_controller_that_was_killed_knows_all_it_knew_and_nodes_follow_it_again(own_bed: Bed) -> None:
    bed = own_bed
    before = {
        path: bed.testbed.controller_api("GET", path)["items"] for path in ("/v1/services", "/v1/resources/services")
    }
    roots = bed.testbed.controller_api("GET", "/v1/ca")["roots"]
    bed.testbed.processes.kill("controller")
    bed.testbed.start_controller()
    for pod in ("client", "web"):
        bed.testbed.await_node(bed.node(pod))
    assert bed.testbed.controller_api("GET", "/v1/ca")["roots"] == roots
    for path, items in before.items():
        assert bed.testbed.controller_api("GET", path)["items"] == items
    with bed["web"].serve(echo), bed.resources(DENY_CLIENT):
        assert not bed["client"].reaches(bed["web"].v4)
        assert bed["near"].reaches(bed["web"].v4)


def test_an_orderly_restart_lets_a_short_connection_end_in_order(own_bed: Bed) -> None:
    bed = own_bed
    with bed["web"].serve(echo), bed["client"].connect(bed["web"].v4) as conn:
        assert talks(conn)
        node = bed.node("web")
        record = bed.testbed.processes.record(f"node/{node.name}")
        assert record is not None
        record.terminate()
        eventually(lambda: not bed["near"].reaches(bed["web"].v4))
        assert talks(conn), "it was cut off before the drain's deadline"
        conn.close()
        eventually(lambda: not record.alive)
        bed.testbed.start_node(node)
        assert eventually(lambda: bed["client"].reaches(bed["web"].v4))
