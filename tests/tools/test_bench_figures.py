"""What `tools/bench` makes of its measurements."""

from __future__ import annotations

import os

from bench import usage
from bench.figures import Run, Series, document, table
from bench.load import Requests


def run(rps: float, cpu: float, requests: int = 1000) -> Run:
    return Run(Requests(requests, rps, p50_us=rps / 10, p99_us=rps / 5, errors=0), cpu_us=cpu * requests)


def series(*values: float) -> Series:
    return Series(
        keep_alive={count: [run(value * count, value) for value in values] for count in (1, 64)},
        connects=[run(value, 2 * value) for value in values],
        bulk_gbps=list(values),
        rss_mb={"a": 10.0, "b": 20.5},
    )


def test_the_document_holds_medians_in_the_shape_that_was_promised() -> None:
    results = {"nodemesh": series(1.0, 3.0, 100.0), "envoy": series(2.0, 2.0, 2.0)}
    written = document(results)
    assert set(written) == {"rows", "bulk_gbps", "connects_per_s", "rss_mb"}
    assert written["rows"][1] == {
        "path": "nodemesh",
        "connections": 64,
        "rps": 192.0,
        "p50_us": 19.2,
        "p99_us": 38.4,
        "cpu_us_per_request": 3.0,
    }
    assert [(row["path"], row["connections"]) for row in written["rows"]] == [
        ("nodemesh", 1),
        ("nodemesh", 64),
        ("envoy", 1),
        ("envoy", 64),
    ]
    assert written["bulk_gbps"] == written["connects_per_s"] == {"nodemesh": 3.0, "envoy": 2.0}
    assert written["rss_mb"] == {"nodemesh": 30.5, "envoy": 30.5}


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_of_the_medians() -> None:
    results = {"nodemesh": series(1.0, 2.0, 30.0), "envoy": series(2.0, 1.0, 10.0)}
    (line,) = [line for line in table(results).splitlines() if line.startswith("bulk")]
    assert line.split()[4:] == ["2.00", "2.00", "2.00", "0.50–3.00", "≥", "0.67"]


def test_without_a_peer_there_are_no_ratios() -> None:
    head = table({"nodemesh": series(1.0), "direct": series(1.0)}).splitlines()[0]
    assert head.split() == ["nodemesh", "direct"]


def test_a_family_begins_with_its_parent_and_holds_its_children() -> None:
    child = os.fork()
    if not child:
        os.execvp("sleep", ["sleep", "30"])
    try:
        family = usage.family(os.getpid())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert family[0] == os.getpid()
    assert child in family


def test_cpu_time_grows_with_work_and_memory_is_in_megabytes() -> None:
    before = usage.cpu_us([os.getpid()])
    while usage.cpu_us([os.getpid()]) <= before:
        sum(range(100_000))
    assert 5 < usage.rss_mb(os.getpid()) < 10_000
