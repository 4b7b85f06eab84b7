"""Listening sockets: TCP, and a unix socket that is never open to others."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from controller.config import Address

BACKLOG = 512


class ListenError(Exception):
    """An address or path cannot be listened on; the message names it and says what to do."""


def unix_listener(path: Path) -> socket.socket:
    """Listen on a path that only the owner may open, replacing one that a killed controller left.

    Raises `ListenError`. The caller closes it and removes the path.
    """
    listener = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o177)  # `chmod` after `bind` would leave it open for a moment
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}; set another runDir") from error
    finally:
        os.umask(previous)
    return listener


def tcp_listener(address: Address, key: str) -> socket.socket:
    """Listen on TCP; `key` is where the configuration says so. Raises `ListenError`. The caller closes it."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    both = address.host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(f"cannot listen on {address}: {reason}; change '{key}' or stop what has it") from error
