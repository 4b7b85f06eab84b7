"""Logs whose reader stalls, or goes."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noded.sink import ATOMIC, Sink, SinkHandler


def pipe() -> tuple[int, int]:
    return os.pipe()


def stream() -> tuple[int, int]:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


@pytest.fixture(params=[pipe, stream])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    make: Callable[[], tuple[int, int]] = request.param
    made = make()
    yield made
    for fd in made:
        with contextlib.suppress(OSError):
            os.close(fd)


def finishes(function: Callable[[], object]) -> bool:
    """Whether it returns at all, which what waits for the reader doesn't."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def drained(fd: int) -> bytes:
    os.set_blocking(fd, False)
    parts = []
    try:
        while data := os.read(fd, 1 << 20):
            parts.append(data)
    except BlockingIOError:
        pass
    return b"".join(parts)


def test_a_reader_that_stalls_loses_lines_and_holds_up_nobody(ends: tuple[int, int]) -> None:
    reader, writer = ends
    sink = Sink(writer)
    line = b"x" * (ATOMIC - 1) + b"\n"
    written: list[bool] = []
    assert finishes(lambda: written.extend(sink.write(line) for _ in range(1000)))
    assert written[0]
    assert not written[-1]
    got = drained(reader)
    assert got == line * written.count(True)
    assert sink.write(b"again\n")
    assert drained(reader) == b"again\n"


def test_the_descriptor_itself_stays_as_it_was_for_those_who_share_it(ends: tuple[int, int]) -> None:
    Sink(ends[1]).write(b"one\n")
    assert os.get_blocking(ends[1])


def test_what_got_out_in_part_does_not_spoil_the_next_line() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    assert not sink.write(b"y" * 1_000_000)
    drained(reader)
    assert sink.write(b"next\n")
    assert drained(reader) == b"\nnext\n"
    os.close(reader)
    os.close(writer)


def test_a_log_whose_reader_stalls_does_not_stop_the_program(ends: tuple[int, int]) -> None:
    logger = logging.Logger("test")
    logger.addHandler(SinkHandler(ends[1]))

    def log() -> None:
        for _ in range(2000):
            logger.info("no tunnel from %s", "x" * 500)

    assert finishes(log)
    assert drained(ends[0]).startswith(b"no tunnel from xxx")


def test_a_reader_that_is_gone_is_no_error(ends: tuple[int, int]) -> None:
    sink = Sink(ends[1])
    os.close(ends[0])
    assert not sink.write(b"who hears\n")


def test_a_file_is_appended_to_where_the_others_write(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    first, second = Sink(fd), Sink(fd)
    assert [first.write(b"one\n"), second.write(b"two\n"), first.write(b"three\n")] == [True] * 3
    os.close(fd)
    assert path.read_text() == "one\ntwo\nthree\n"
