"""The API behind the shop's front end: counts visits in Redis, asks MariaDB for the stock. Knows nothing of a mesh."""

import itertools
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO, cast


class Redis:
    """One connection, kept open, made again when it breaks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def ask(self, *words: str) -> str:
        """One command with a simple, integer or bulk reply (RESP)."""
        with self._lock:
            for last in (False, True):
                try:
                    return self._exchange(words)
                except OSError:
                    self._file = None
                    if last:
                        raise
        raise AssertionError

    def _exchange(self, words: tuple[str, ...]) -> str:
        if self._file is None:
            self._file = cast(BinaryIO, socket.create_connection(("redis", 6379), timeout=5).makefile("rwb"))
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        self._file.write(b"*%d\r\n%s" % (len(words), parts))
        self._file.flush()
        head = self._file.readline()
        if not head:
            raise ConnectionResetError("Redis hung up")
        if head[:1] == b"$":
            return self._file.read(int(head[1:]) + 2)[:-2].decode() if int(head[1:]) >= 0 else ""
        return head[1:-2].decode()


REDIS = Redis()
QUERY = ["mariadb", "--no-defaults", "-hdb", "-uapi", "-pshop", "--skip-ssl", "-BNe", "SELECT pieces FROM shop.stock"]


VERSION = sys.argv[1]
BROKEN = itertools.count()
"""Counts requests for what is broken."""


class Handler(BaseHTTPRequestHandler):
    """/order, and the lighter /version, /broken (always 503) and /tries (how often it was asked for that)."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    """Head and body leave together; apart, the second waits for the first to be acknowledged."""

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if path == "/version":
            self.answer(200, {"version": VERSION})
        elif path == "/broken":
            next(BROKEN)
            self.answer(503, {"error": "out of order"})
        elif path == "/tries":
            self.answer(200, {"tries": next(BROKEN)})
        else:
            self.order()

    def order(self) -> None:
        """Answer with what Redis and MariaDB say."""
        try:
            stock = subprocess.run(QUERY, capture_output=True, text=True, timeout=10)
            body: dict[str, object] = {
                "visits": REDIS.ask("INCR", "visits"),
                "voucher": REDIS.ask("GET", "voucher"),
                "umbrellas": stock.stdout.strip() or stock.stderr.strip(),
                "called_by": self.client_address[0],
            }
            status = 200
        except OSError as error:
            body, status = {"error": str(error)}, 502
        self.answer(status, body)

    def answer(self, status: int, body: dict[str, object]) -> None:
        """Send this."""
        data = (json.dumps(body) + "\n").encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *values: object) -> None:
        """Be silent."""


ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
