"""Two pods joined by a cable: network namespaces with an address each, sockets inside them, a TCP server in one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import trio

from redirect.netns import inside, open_netns

PORT = 8080


@dataclass(frozen=True)
class Pod:
    """A network namespace with one address."""

    name: str
    """Also the namespace's."""
    address: str
    netns: int
    """Its descriptor."""

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def socket(self) -> socket.socket:
        """A TCP socket in the namespace."""
        with inside(self.netns):
            return socket.socket()

    async def connect(self, address: str, port: int = PORT) -> trio.SocketStream:
        """A connection from a program in the pod, which knows of no mesh."""
        sock = self.socket()
        sock.setblocking(False)
        wrapped = trio.socket.from_stdlib_socket(sock)
        with trio.fail_after(60):
            await wrapped.connect((address, port))
        return trio.SocketStream(wrapped)


@contextlib.contextmanager
def cabled() -> Iterator[tuple[Pod, Pod]]:
    """A client's pod and a server's; gone afterwards."""
    names = [f"nmi{os.getpid()}{side}" for side in ("client", "server")]
    addresses = ["10.77.1.2", "10.77.2.2"]
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        _ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
        pods = []
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            netns = open_netns(f"/run/netns/{name}")
            stack.callback(os.close, netns)
            pods.append(Pod(name, address, netns))
        yield pods[0], pods[1]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Served:
    """What the server's program saw."""

    clients: list[str]
    """The address of each that connected."""


Handler = Callable[[trio.SocketStream], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(pod: Pod, handler: Handler) -> AsyncIterator[Served]:
    """A program in `pod` that gives each connection on `PORT` to `handler`."""
    sock = pod.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", PORT))
    sock.listen(64)
    sock.setblocking(False)
    served = Served([])

    async def serve(stream: trio.SocketStream) -> None:
        served.clients.append(stream.socket.getpeername()[0])
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        nursery.start_soon(partial(trio.serve_listeners, serve, [listener]))
        yield served
        nursery.cancel_scope.cancel()


async def echo_upper(stream: trio.SocketStream) -> None:
    """Send back in upper case what comes, and end when the client has."""
    async for data in stream:
        await stream.send_all(data.upper())
    await stream.send_eof()


async def greet(stream: trio.SocketStream) -> None:
    """Speak first, as MySQL and SMTP servers do; then say what came."""
    await stream.send_all(b"220 ready\r\n")
    line = await stream.receive_some(100)
    await stream.send_all(b"250 " + line)
    await stream.send_eof()
