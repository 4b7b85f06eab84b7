"""Idle keep-alive connections: `python -m bench.idle HOST PORT PATH NUMBER`, in a pod.

Each makes one request and keeps its connection; "ready" on stdout once all have their answers; ends with stdin.
"""

from __future__ import annotations

import resource
import socket
import sys

_AT_ONCE = 50


def main() -> None:
    """Open, ask, wait."""
    host, port, path, number = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 100, max(number + 100, most)))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    opened: list[socket.socket] = []
    while len(opened) < number:
        some = [socket.create_connection((host, port), 30) for _ in range(min(_AT_ONCE, number - len(opened)))]
        for connection in some:
            connection.sendall(request)
        for connection in some:
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200 "):
                sys.exit(f"connection {len(opened)}: {answer[:200]!r}")
        opened += some
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
