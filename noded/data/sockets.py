"""Socket options of the data plane, and sockets made inside a workload's network namespace."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections import deque

from redirect.netns import NamespaceError, inside

_SO_MARK = 36
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 180, 75, 9
_USER_TIMEOUT_MS = (_KEEPALIVE_IDLE + _KEEPALIVE_INTERVAL * _KEEPALIVE_PROBES) * 1000
_RESET = struct.pack("ii", 1, 0)
_ORDERLY = struct.pack("ii", 0, 0)
_BATCH = 8

FIRST_READ, FULL_READ = 32_768, 262_144
"""Bytes to ask a socket for: at first, and once it has filled that."""

log = logging.getLogger(__name__)


def tune(sock: socket.socket) -> None:
    """Options for either leg of a connection. A listener's are inherited by what it accepts.

    The linger makes a close a reset until `orderly`: if this process dies, the peer must not see a clean end of data.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def orderly(sock: socket.socket) -> None:
    """Both directions ended as they should: let the close be an ordinary one."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
    except OSError:
        pass


def canonical(address: str) -> str:
    """An address as `mesh.model` writes it: dual-stack listeners report IPv4 as `::ffff:a.b.c.d`."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address.partition("%")[0]


class SocketMaker:
    """Non-blocking TCP sockets inside one network namespace, made a few at a time: entering costs 11 µs.

    They carry the workload's mark, so that the capture rules let them by. Close it with the workload.
    """

    def __init__(self, netns: int, mark: int) -> None:
        self._netns, self._mark = netns, struct.pack("=I", mark)
        self._ready: dict[tuple[int, bool], deque[socket.socket]] = {}

    def make(self, address: str, *, transparent: bool = False) -> socket.socket:
        """A socket to connect to `address`; `transparent` if it is to be bound to an address that isn't local.

        Raises `OSError`. The caller owns it.
        """
        key = (socket.AF_INET6 if ":" in address else socket.AF_INET, transparent)
        ready = self._ready.setdefault(key, deque())
        if not ready:
            try:
                with inside(self._netns):
                    ready.extend(
                        socket.socket(key[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                        for _ in range(_BATCH)
                    )
            except NamespaceError as error:
                raise OSError(errno.ENONET, str(error)) from error
            for sock in ready:
                self._prepare(sock, *key)
        return ready.popleft()

    def _prepare(self, sock: socket.socket, family: int, transparent: bool) -> None:
        tune(sock)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)
        if transparent:
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self) -> None:
        """Close the spare sockets and the namespace's descriptor."""
        for ready in self._ready.values():
            for sock in ready:
                sock.close()
        self._ready.clear()
        os.close(self._netns)
