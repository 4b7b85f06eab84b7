"""A daemon's HTTP API on a unix socket with canned answers, for tests of the command lines."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, Any]


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any


@dataclass
class Api:
    """Answers by `METHOD /path`: a JSON value (status 200), `(status, value)`, text, or a function of the request."""

    answers: dict[str, Any]
    requests: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        found = self.answers.get(f"{request.method} {request.path}")
        if found is None:
            return 404, {"error": {"message": f"no {request.path}", "remedy": ""}}
        if callable(found):
            found = found(request)
        return found if isinstance(found, tuple) else (200, found)


@contextmanager
def serving(path: Path, answers: dict[str, Any | Callable[[Request], Any]]) -> Iterator[Api]:
    api = Api(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, value = api.answer(Request(self.command, url.path, dict(parse_qsl(url.query)), body))
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _reply

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
