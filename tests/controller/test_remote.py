from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.kubernetes.access import Access
from controller.kubernetes.client import Refused, Unreachable
from controller.kubernetes.remote import Remote
from tests.controller.fake_cluster import FakeCluster, serving


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    with serving() as found:
        yield found


def run(cluster: FakeCluster, *words: str, pod: str = "p", stdin: bool = False) -> Remote:
    return Remote(cluster.access, "nodemesh-system", pod, "c", words, stdin=stdin, timeout=10)


def test_output_errors_and_status_arrive(cluster: FakeCluster) -> None:
    cluster.commands = lambda pod, words, line: (3, f"{pod} {words}".encode(), b"went wrong")
    with run(cluster, "a", "b c&d") as remote:
        assert remote.wait() == b"p ['a', 'b c&d']"
        assert (remote.status, remote.stderr, remote.reason) == (3, b"went wrong", "")


def test_much_output_arrives_whole(cluster: FakeCluster) -> None:
    big = bytes(range(256)) * 10_000
    cluster.commands = lambda pod, words, line: (0, big, b"")
    with run(cluster, "cat") as remote:
        assert remote.wait() == big
        assert remote.status == 0


def test_lines_go_in_and_lines_come_out(cluster: FakeCluster) -> None:
    cluster.commands = lambda pod, words, line: (0, line[::-1] + b"\n", b"")
    with run(cluster, "rev", stdin=True) as remote:
        long = b"x" * 200_000 + b"y"
        remote.write(b"abc\n" + long + b"\n")
        assert remote.read_line() == b"cba"
        assert remote.read_line() == long[::-1]


def test_a_refusal_is_told_with_its_status(cluster: FakeCluster) -> None:
    with pytest.raises(Refused) as refused:
        run(cluster, "x", pod="refused")
    assert refused.value.code == 403


def test_a_connection_that_ends_is_not_taken_for_success(cluster: FakeCluster) -> None:
    with run(cluster, "x", pod="cut", stdin=True) as remote:
        assert remote.read_line() == b""
        assert remote.status == 1
        assert remote.reason


def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        Remote(Access("http://127.0.0.1:9"), "n", "p", "c", ["x"], timeout=2)
