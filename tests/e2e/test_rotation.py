"""The authority's root is replaced while the mesh is in use."""

from __future__ import annotations

import subprocess
import sys
import threading

from tests.e2e.pods import Bed, echo, talks


def test_no_connection_fails_while_the_root_is_replaced(own_bed: Bed) -> None:
    bed = own_bed
    stop, failures, done = threading.Event(), list[str](), [0]

    def connect_again_and_again() -> None:
        while not stop.is_set():
            try:
                with bed["client"].connect(bed["web"].v4) as conn:
                    if not talks(conn):
                        failures.append("no echo")
            except OSError as error:
                failures.append(str(error))
            done[0] += 1

    def roots() -> list[str]:
        found = bed.testbed.controller_api("GET", "/v1/ca")["roots"]
        return [root["sha256"] for root in found]

    before = roots()
    with bed["web"].serve(echo), bed["client"].connect(bed["web"].v4) as old:
        assert talks(old)
        load = threading.Thread(target=connect_again_and_again)
        load.start()
        try:
            argv = ["-n", bed.testbed.spec.name, "meshctl", "ca", "rotate", "--timeout", "60s"]
            rotated = subprocess.run(
                [sys.executable, "-P", "-m", "testbed", *argv], capture_output=True, text=True, timeout=120
            )
        finally:
            stop.set()
            load.join()
        assert rotated.returncode == 0, rotated.stderr
        assert talks(old), "a connection from before the rotation"
    after = roots()
    assert len(after) == 1
    assert after != before
    assert failures == []
    assert done[0] > 10
