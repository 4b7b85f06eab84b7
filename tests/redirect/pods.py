"""Two namespaces joined by a wire, sockets in them, a listener on the wire, and a stand-in for the proxy."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from redirect.capture import Capture, new_mark
from redirect.netns import inside, listener, open_netns

SO_MARK = 36
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
OUTBOUND, INBOUND, HBONE = 15001, 15006, 15008
FAMILIES = (socket.AF_INET, socket.AF_INET6)
SECONDS = 5.0

Address = tuple[str, int]


def ip(*arguments: str) -> str:
    """Run iproute2's `ip`."""
    return command("ip", *arguments)


def command(*arguments: str) -> str:
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, f"{' '.join(arguments)}: {result.stderr}"
    return result.stdout


def plain(address: object) -> Address:
    """Host and port of a socket address, with IPv4-mapped IPv6 as IPv4."""
    assert isinstance(address, tuple)
    return str(address[0]).removeprefix("::ffff:"), int(address[1])


@dataclass
class Host:
    """One namespace: a pod, or the host at the other end of its wire."""

    name: str
    fd: int
    v4: str
    v6: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def address(self, family: int) -> str:
        return self.v4 if family == socket.AF_INET else self.v6

    def open(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        with inside(self.fd):
            sock = socket.socket(family, kind, protocol)
        sock.settimeout(SECONDS)
        return sock

    def listen(self, address: str, port: int = 0, *, backlog: int = 128) -> socket.socket:
        sock = self.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def run(self, *arguments: str) -> str:
        return command("ip", "netns", "exec", self.name, *arguments)

    def sysctl(self, name: str, value: int) -> None:
        self.run("sysctl", "-qw", f"{name}={value}")


@contextlib.contextmanager
def wire() -> Iterator[tuple[Host, Host]]:
    """A pod and a peer, IPv4 and IPv6 on one link; the interface is `eth0` in both."""
    prefix = f"nmr{os.getpid()}"
    hosts = []
    try:
        for letter, number in (("p", 1), ("q", 2)):
            name = f"{prefix}{letter}"
            ip("netns", "add", name)
            hosts.append(Host(name, open_netns(f"/run/netns/{name}"), f"10.99.0.{number}", f"fd99::{number}"))
        pod, peer = hosts
        ip("-n", pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer.name)
        for host in hosts:
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "address", "add", f"{host.v4}/24", "dev", "eth0")
            ip("-n", host.name, "address", "add", f"{host.v6}/64", "dev", "eth0", "nodad")
            # no link-local address: what the kernel adds once it has made sure of one would come at any moment
            ip("-n", host.name, "link", "set", "eth0", "addrgenmode", "none")
            ip("-n", host.name, "link", "set", "eth0", "up")
        for host, other in ((pod, peer), (peer, pod)):
            ip("-n", host.name, "route", "add", "default", "via", other.v4)
            ip("-n", host.name, "-6", "route", "add", "default", "via", other.v6)
        yield pod, peer
    finally:
        for host in hosts:
            os.close(host.fd)
            ip("netns", "del", host.name)


@dataclass
class Echo:
    """Greets each client with its address as seen here, echoes, and after the client's end of data says `end`."""

    sock: socket.socket
    seen: list[Address] = field(default_factory=list)

    def __enter__(self) -> Echo:
        self._accepter = threading.Thread(target=self._accept, daemon=True)
        self._accepter.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self._accepter.join(SECONDS)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def _accept(self) -> None:
        self.sock.settimeout(None)
        while True:
            try:
                connection, address = self.sock.accept()
            except OSError:
                return
            self.seen.append(plain(address))
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: object) -> None:
        host, port = plain(address)
        with connection, contextlib.suppress(OSError):
            connection.sendall(f"{host} {port}\n".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.sendall(b"end")


def read_line(sock: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1)
        assert data, f"connection ended after {line!r}"
        line += data
    return line.decode().strip()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def exchange(sock: socket.socket) -> Address:
    """Greeting, echo, half-close, last words; the address that the server saw.

    The client speaks first: when an accept queue overflows under SYN cookies, a silent client is forgotten for good.
    """
    sock.sendall(b"ping")
    host, port = read_line(sock).split()
    assert sock.recv(4, socket.MSG_WAITALL) == b"ping"
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b"end"
    return host, int(port)


@dataclass(frozen=True)
class Accepted:
    """What the stand-in proxy saw of one connection."""

    port: int
    client: Address
    original: Address


class Proxy:
    """Plays `noded` in one namespace: accepts what is captured and dials on with the mark; refuses its own ports."""

    def __init__(self, pod: Host, mark: int, *, backlog: int = 4096) -> None:
        self._pod, self._mark = pod, mark
        self.accepted: list[Accepted] = []
        self._listeners = {port: listener(pod.fd, port, backlog=backlog) for port in (OUTBOUND, INBOUND, HBONE)}
        self._wake, self._waker = socket.socketpair()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._waker.close()
        self._thread.join(SECONDS)
        for sock in tuple(self._open):  # as the kernel does when a process dies; a thread may still be reading
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for sock in (*self._listeners.values(), self._wake):
            sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for port, sock in self._listeners.items():
                selector.register(sock, selectors.EVENT_READ, port)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    connection, client = key.fileobj.accept()
                    connection.settimeout(None)
                    seen = Accepted(key.data, plain(client), plain(connection.getsockname()))
                    self.accepted.append(seen)
                    self._open.add(connection)
                    threading.Thread(target=self._serve, args=(connection, seen), daemon=True).start()

    def _serve(self, client: socket.socket, seen: Accepted) -> None:
        try:
            if seen.original[1] in (OUTBOUND, INBOUND, HBONE):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            with self._dial(seen) as server:
                server.settimeout(None)
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()
        except OSError:
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            self._open.discard(client)
            client.close()

    def _dial(self, seen: Accepted) -> socket.socket:
        family = socket.AF_INET6 if ":" in seen.original[0] else socket.AF_INET
        sock = self._pod.open(family)
        set_mark(sock, self._mark)
        if seen.port == INBOUND:
            transparent(sock)
            # Another port than the client's own: the kernel already has that pair of addresses, from the captured side.
            sock.bind((seen.client[0], seen.client[1] ^ 1))
        sock.connect(seen.original)
        return sock


def set_mark(sock: socket.socket, mark: int) -> None:
    """SO_MARK, packed by hand: Python takes an int option for signed."""
    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", mark))


def transparent(sock: socket.socket) -> None:
    """Let a socket have an address that isn't the namespace's."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Tap:
    """Records the TCP packets that reach a host's `eth0` from the wire, as (source port, destination port, payload)."""

    def __init__(self, host: Host) -> None:
        with inside(host.fd):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        self._sock.bind(("eth0", 0x0003))
        self._sock.setblocking(False)
        self._packets: list[tuple[int, int, bytes]] = []

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def packets(self) -> list[tuple[int, int, bytes]]:
        """What came so far. A packet on a veth is here by the time its sender's system call has returned."""
        while True:
            try:
                packet, (_device, protocol, kind, *_rest) = self._sock.recvfrom(65536)
            except BlockingIOError:
                return self._packets
            if kind == socket.PACKET_OUTGOING:
                continue
            if protocol == 0x0800 and packet[9] == socket.IPPROTO_TCP:
                self._add(packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")])
            elif protocol == 0x86DD and packet[6] == socket.IPPROTO_TCP:
                self._add(packet[40 : 40 + int.from_bytes(packet[4:6], "big")])

    def _add(self, segment: bytes) -> None:
        source, destination = struct.unpack_from("!HH", segment)
        self._packets.append((source, destination, segment[(segment[12] >> 4) * 4 :]))

    def from_port(self, port: int) -> list[tuple[int, int, bytes]]:
        return [packet for packet in self.packets() if packet[0] == port]


@dataclass
class World:
    """A pod with a mark for its proxy, its peer, and a tap on the peer's side of the wire."""

    pod: Host
    peer: Host
    mark: int
    capture: Capture
    tap: Tap

    def proxy(self, *, backlog: int = 4096) -> Proxy:
        return Proxy(self.pod, self.mark, backlog=backlog)

    def echo(self, host: Host, family: int = socket.AF_INET, address: str | None = None) -> Echo:
        return Echo(host.listen(address or host.address(family)))


@contextlib.contextmanager
def world() -> Iterator[World]:
    with wire() as (pod, peer), Tap(peer) as tap:
        mark = new_mark()
        yield World(pod, peer, mark, Capture(pod.path, mark), tap)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true in the time that anything here may take."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
