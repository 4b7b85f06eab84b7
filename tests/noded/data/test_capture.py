"""Accepting when there is nothing left to accept with."""

from __future__ import annotations

import errno
import logging
import os
import socket

import pytest
import trio

from noded.data import capture
from noded.data.capture import Listener
from tests.noded.data.loopback import mesh, until


class Exhausted(socket.socket):
    """A listener whose process has no descriptor left, for `left` attempts."""

    left = 1_000_000
    attempts = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.attempts += 1
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_without_descriptors_it_is_tried_again_after_a_rest_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh() as made:
        sock = Exhausted()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        got: list[socket.socket] = []
        monkeypatch.setattr(capture, "_REST_SECONDS", 0.02)
        with caplog.at_level(logging.ERROR):
            listener = Listener(made.engine, made.web.local, sock, lambda _local, client, _peer: got.append(client))
            client = socket.create_connection(sock.getsockname())
            await until(lambda: sock.attempts > 2)
            tried = sock.attempts
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert sock.attempts - tried < 10
            sock.left = 0
            await until(lambda: got)
        assert caplog.text.count("cannot accept for shop/web: Too many open files") == 1
        listener.close()
        for each in (client, *got):
            each.close()


async def test_a_listener_closed_while_it_rests_stays_closed() -> None:
    async with mesh() as made:
        sock = Exhausted()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        listener = Listener(made.engine, made.web.local, sock, lambda *_: None)
        client = socket.create_connection(sock.getsockname())
        await until(lambda: sock.attempts)
        listener.close()
        await trio.sleep(2 * capture._REST_SECONDS)
        await made.joined(made.serve())
        client.close()
