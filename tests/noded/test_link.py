"""Messages and descriptors between control and a worker, over a socket pair."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio

from mesh.codec import encode
from noded import link as messages
from noded.link import Link, ToControl, ToWorker


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Link, Link]]:
    """Control's end and the worker's."""
    one, other = socket.socketpair()
    pair = (Link(one, receives=ToControl, sends=ToWorker), Link(other, receives=ToWorker, sends=ToControl))
    yield pair
    for link in pair:
        link.close()


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


CERTIFICATE = messages.Certificate("shop/web", b"chain", b"key", b"roots", 1.5)


async def test_messages_arrive_in_order_and_whole_both_ways(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    await control.send(messages.SetLogLevel("debug"))
    await control.send(CERTIFICATE)
    await worker.send(messages.Ready(7))
    assert await worker.receive() == (messages.SetLogLevel("debug"), [])
    assert await worker.receive() == (CERTIFICATE, [])
    assert await control.receive() == (messages.Ready(7), [])


async def test_a_message_far_larger_than_the_socket_passes(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    large = messages.Certificate("shop/web", os.urandom(3_000_000), b"", b"", 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.send, large)
        nursery.start_soon(control.send, CERTIFICATE)
        assert {await message(worker), await message(worker)} == {large, CERTIFICATE}


async def message(link: Link) -> object:
    received = await link.receive()
    assert received is not None
    return received[0]


async def test_descriptors_come_with_the_message_they_were_sent_with(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    files = [os.open(path, os.O_RDONLY) for path in ("/dev/null", "/dev/zero", "/etc/hostname")]
    await control.send(CERTIFICATE, files[:1])
    await control.send(messages.SetLogLevel("info"))
    await control.send(CERTIFICATE, files[1:])
    received = [await worker.receive() for _ in range(3)]
    fds = [entry[1] for entry in received if entry is not None]
    assert [len(entry) for entry in fds] == [1, 0, 2]
    copies = [fd for entry in fds for fd in entry]
    assert all(same_file(one, other) for one, other in zip(files, copies, strict=True))
    for fd in (*files, *copies):
        os.close(fd)


async def test_a_frame_may_arrive_byte_by_byte() -> None:
    raw, other = socket.socketpair()
    worker = Link(other, receives=ToWorker, sends=ToControl)
    body = encode(CERTIFICATE, ToWorker)
    wire = struct.pack(">II", len(body), 0) + body
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in wire * 2:
                raw.send(bytes([byte]))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(drip)
        assert await worker.receive() == (CERTIFICATE, [])
        assert await worker.receive() == (CERTIFICATE, [])
    raw.close()
    assert await worker.receive() is None
    worker.close()


async def test_the_peers_end_is_none_even_in_the_middle_of_a_frame(ends: tuple[Link, Link]) -> None:
    raw, other = socket.socketpair()
    worker = Link(other, receives=ToWorker, sends=ToControl)
    raw.send(struct.pack(">II", 100, 0) + b"half")
    raw.close()
    assert await worker.receive() is None
    worker.close()


async def test_sending_to_a_peer_that_is_gone_raises(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    worker.close()
    with pytest.raises(OSError):
        await control.send(CERTIFICATE)


async def test_unread_messages_at_the_peers_end_are_its_end(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    await worker.send(messages.Ready(1))
    await control.send(CERTIFICATE)
    control.close()  # with something unread, the kernel says reset
    while (received := await worker.receive()) is not None:
        assert received == (CERTIFICATE, [])


async def test_cancelling_a_receive_loses_nothing(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    for _ in range(3):
        with trio.move_on_after(0.01) as scope:
            await worker.receive()
        assert scope.cancelled_caught
    await control.send(CERTIFICATE)
    assert await worker.receive() == (CERTIFICATE, [])


async def test_cancelling_a_send_leaves_no_half_frame(ends: tuple[Link, Link]) -> None:
    control, worker = ends
    large = messages.Certificate("shop/web", bytes(2_000_000), b"", b"", 0.0)
    async with trio.open_nursery() as nursery:

        async def cancelled() -> None:
            with trio.move_on_after(0.02):
                await control.send(large)

        nursery.start_soon(cancelled)
        await trio.sleep(0.1)
        assert await worker.receive() == (large, [])
    await control.send(CERTIFICATE)
    assert await worker.receive() == (CERTIFICATE, [])


async def test_what_is_no_message_is_a_bug_and_raises(ends: tuple[Link, Link]) -> None:
    raw, other = socket.socketpair()
    worker = Link(other, receives=ToWorker, sends=ToControl)
    raw.send(struct.pack(">II", 3, 0) + b"\xc1\xc1\xc1")
    with pytest.raises(ValueError):
        await worker.receive()
    raw.close()
    worker.close()


async def test_descriptors_that_nobody_claimed_are_closed_with_the_link(ends: tuple[Link, Link]) -> None:
    raw, other = socket.socketpair()
    worker = Link(other, receives=ToWorker, sends=ToControl)
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open("/dev/null", os.O_RDONLY)
    socket.send_fds(raw, [struct.pack(">II", 100, 1)], [fd])
    os.close(fd)
    with trio.move_on_after(0.05):
        await worker.receive()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    worker.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    raw.close()
