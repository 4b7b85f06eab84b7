"""A daemon's HTTP API on a unix socket with canned answers, for tests of the command lines."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

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

        def handle_error(self, request: Any, client_address: Any) -> None:
            """An answer that raises is a daemon that breaks off; the default prints a traceback."""

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def daemon(module: str, config: Path, socket_path: Path) -> Iterator[None]:
    """A real daemon as its installed script would start it, until its API's socket takes connections."""
    code = f"from {module} import main; main()"
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code, "--config", str(config)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not _answers(socket_path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{module} does not come up:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def invoke(main: Callable[[], None], capsys: pytest.CaptureFixture[str], *args: str) -> Result:
    """Run a command line in this process, as its installed script would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *args])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    status = ended.value.code
    return Result(status if isinstance(status, int) else 0, out, err)


class Terminal:
    """A command on a pseudo-terminal of its own. Use as a context manager: leaving it ends the command."""

    def __init__(self, module: str, *args: str, env: dict[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        # A shell's background job, which the tests may be in, ignores SIGINT and passes that on; a terminal does not.
        interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{interruptible}; from {module} import main; main()"
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**clean, "TERM": "xterm", **(env or {})},
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Read until `text` has been shown; fail if it is not in time."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{text!r} never shown; got {self.shown!r}")

    def ended(self) -> int:
        """The exit status, after everything has been read; fail if it goes on."""
        deadline = time.monotonic() + 20
        while self._read(max(deadline - time.monotonic(), 0)):
            assert time.monotonic() < deadline, f"still running; got {self.shown[-1000:]!r}"
        return self.process.wait(20)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.shown += data.decode()
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def bash_completes(module: str, name: str, words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of `words`, with the command's own completion script loaded."""
    shim = folder / name
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from {module} import main; main()" "$@"\n')
    shim.chmod(0o755)
    script = (
        f'source <({name} completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        f'_{name}_completion {name}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        ["bash", "-c", script, "bash", name, *words],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    )
    return done.stdout.split()
