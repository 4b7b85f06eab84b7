"""Workloads join and leave at run time."""

from __future__ import annotations

import threading
import time

import pytest

from testbed.api import ApiError
from tests.e2e.pods import Bed, echo, eventually, talks


def test_a_workload_joins_and_leaves_under_load_and_nobody_else_notices(bed: Bed) -> None:
    near, stop, failures = bed.testbed.spec.pod("near"), threading.Event(), []
    done = 0

    def load() -> None:
        nonlocal done
        while not stop.is_set():
            if not bed["client"].reaches(bed["web"].v4):
                failures.append(time.monotonic())
            done += 1

    with bed["web"].serve(echo), bed["client"].connect(bed["web"].v4) as conn:
        assert talks(conn)
        thread = threading.Thread(target=load)
        thread.start()
        try:
            for _ in range(3):
                bed.testbed.remove(near)
                bed.testbed.enrol(near)
        finally:
            stop.set()
            thread.join()
        assert talks(conn)
    assert (failures, done > 10) == ([], True)


def test_connections_from_before_enrolment_go_on_untouched(bed: Bed) -> None:
    near = bed.testbed.spec.pod("near")
    bed.testbed.remove(near)
    try:
        with bed["near"].serve(echo), bed.fabric.connect(bed["near"].v4) as inward, bed.fabric.serve(echo, 8090):
            outward = bed["near"].connect("172.30.0.253", 8090)
            assert talks(inward)
            assert talks(outward)
            bed.testbed.enrol(near)
            assert bed.connections("near") == []
            assert talks(inward)
            assert talks(outward)
            outward.close()
    finally:
        bed.testbed.enrol(near)
        bed.settle()


def test_enrolling_again_changes_nothing(bed: Bed) -> None:
    web = bed.testbed.spec.pod("web")
    with bed["web"].serve(echo), bed["client"].connect(bed["web"].v4) as conn:
        assert talks(conn)
        assert bed.testbed.enrol(web)["state"] == "ready"
        assert talks(conn)


def test_a_removed_workload_has_no_trace_of_capture_and_talks_in_plaintext(bed: Bed) -> None:
    near = bed.testbed.spec.pod("near")
    enter = bed.testbed.enter(
        near, ["sh", "-c", "iptables-legacy-save; ip6tables-legacy-save; ip rule; ip -6 rule; ip route show table all"]
    )
    bed.testbed.remove(near)
    try:
        without = bed.testbed.capture(enter).stdout
        assert "TPROXY" not in without
        bed.testbed.enrol(near)
        assert "TPROXY" in bed.testbed.capture(enter).stdout
        bed.testbed.remove(near)
        assert bed.testbed.capture(enter).stdout.count("TPROXY") == 0
        with bed.fabric.serve(echo) as server:
            assert bed["near"].reaches("172.30.0.253")
        assert server.peers == [bed["near"].v4]
    finally:
        bed.testbed.enrol(near)
        bed.settle()


def test_a_node_may_enrol_only_what_its_join_token_names(bed: Bed) -> None:
    stranger = bed.testbed.spec.pod("outsider")
    with pytest.raises(ApiError, match="admin"):
        bed.testbed.enrol(stranger, service_account="admin")
    assert stranger.uid not in [w["uid"] for w in bed.api("outsider", "/workloads") if w["state"] == "ready"]


def test_certificates_are_the_workloads_own(bed: Bed) -> None:
    def identities() -> dict[str, str]:
        return {c["uid"]: c["identity"] for c in bed.api("client", "/certs") if c["state"] == "valid"}

    found = eventually(lambda: len(identities()) == 3 and identities())
    assert found["shop/client"] == "spiffe://cluster.local/ns/shop/sa/client"
    assert found["shop/near"] == "spiffe://cluster.local/ns/shop/sa/near"
