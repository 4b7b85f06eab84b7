"""Entering network namespaces: descriptors, listeners and addresses of a workload.

A namespace belongs to a thread (`man 2 setns`), so whoever enters one must come back before anything else runs on that
thread: no await between. This module is imported by the workers and stays light.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_NS_GET_NSTYPE = 0xB703

_libc = ctypes.CDLL(None, use_errno=True)

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_SCOPE_UNIVERSE = 0


class NamespaceError(Exception):
    """A path is no network namespace, or entering it failed."""


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at `path` (`/run/netns/x`, `/proc/PID/ns/net`); the caller closes it.

    Raises `NamespaceError` if there is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"network namespace {path}: {error.strerror}; check that it exists") from error
    if not _is_netns(fd):
        os.close(fd)
        raise NamespaceError(f"{path} is not a network namespace; give /run/netns/NAME or /proc/PID/ns/net")
    return fd


def new_netns() -> int:
    """A descriptor of a new network namespace, which lives as long as something refers to it; the caller closes it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            raise NamespaceError(f"making a network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _return(home)
    finally:
        os.close(home)


def _is_netns(fd: int) -> bool:
    """Whether the descriptor is of a network namespace: the kernel knows its kind (`man 2 ioctl_ns`)."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise NamespaceError(f"entering a network namespace: {os.strerror(code)}; noded needs CAP_SYS_ADMIN")


def _return(home: int) -> None:
    """Back to where the thread was, or the end: it would go on under a workload's rules and routes."""
    if _libc.setns(home, _CLONE_NEWNET) != 0:
        os.abort()


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body in the network namespace `fd`, then return to where the thread was. No await in the body.

    Raises `NamespaceError` if it can't be entered; if the way back fails, the process ends.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
        try:
            yield
        finally:
            _return(home)
    finally:
        os.close(home)


def listener(netns_fd: int, port: int, *, backlog: int = 4096) -> socket.socket:
    """A non-blocking TCP listener on every address of the namespace, that takes what TPROXY hands it.

    Dual-stack where the kernel has IPv6 (an IPv4 peer shows as `::ffff:a.b.c.d`), else IPv4. SO_REUSEPORT, so that each
    worker may have its own. The caller closes it. Raises `OSError` (EADDRINUSE: the workload itself listens there).
    """
    with inside(netns_fd):
        try:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            sock.bind(("::", port))
        else:
            sock.bind(("0.0.0.0", port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def addresses(fd: int) -> tuple[str, ...]:
    """The namespace's addresses of global scope, canonical, IPv4 first, in the kernel's order.

    Asked over rtnetlink by hand: twenty lines here spare the workers a 25 MB import.
    """
    with inside(fd):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    with sock:
        sock.settimeout(5)
        body = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        found: list[str] = []
        while True:
            data = sock.recv(65536)
            offset = 0
            while offset < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, offset)
                if kind == _NLMSG_DONE:
                    return tuple(sorted(found, key=lambda text: ":" in text))
                if kind == _NLMSG_ERROR:
                    raise NamespaceError("the kernel refused to list the namespace's addresses")
                if kind == _RTM_NEWADDR:
                    found.extend(_global_address(data[offset + _HEADER.size : offset + length]))
                offset += (length + 3) & ~3


def _global_address(message: bytes) -> tuple[str, ...]:
    """The address in one RTM_NEWADDR body, if its scope is global."""
    _family, _prefix, _flags, scope, _index = _IFADDRMSG.unpack_from(message)
    if scope != _SCOPE_UNIVERSE:
        return ()
    attributes: dict[int, bytes] = {}
    offset = _IFADDRMSG.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        attributes[kind] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    packed = attributes.get(_IFA_LOCAL) or attributes.get(
        _IFA_ADDRESS
    )  # IFA_ADDRESS is the peer on point-to-point links
    return (str(ipaddress.ip_address(packed)),) if packed else ()
