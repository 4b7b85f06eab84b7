"""Running a command in a pod: the API server's `exec` subresource over a WebSocket, blocking.

Protocol `v4.channel.k8s.io` (https://pkg.go.dev/k8s.io/apimachinery/pkg/util/remotecommand): a message's first byte is
the channel: 0 standard input, 1 output, 2 error, 3 the command's end as a `Status`. It has no way to close standard
input alone (v5 does, since 1.29), so what runs there must know from its input when it is complete.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import urlencode, urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from controller.kubernetes.access import Access
from controller.kubernetes.client import Refused, Unreachable

_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT, _STDERR, _END = range(4)
_CHUNK = 64 * 1024
_MAX_STDERR = 64 * 1024


class Remote:
    """A running command. `wait` or `read_line` until it has ended; leaving the context ends the connection to it."""

    def __init__(
        self,
        access: Access,
        namespace: str,
        pod: str,
        container: str,
        command: Sequence[str],
        *,
        stdin: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Start it. `timeout` is how long to wait for bytes. Raises `Refused`, `Unreachable`."""
        self._access, self._timeout = access, timeout
        self.stderr = b""
        self.status: int | None = None
        """Once it has ended."""
        self.reason = ""
        """Why it could not run, if it was not its own doing."""
        self._out = bytearray()
        self._incoming = bytearray()
        self._channel: int | None = None
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        query += [("stdin", "true")] * stdin + [("command", word) for word in command]
        url = urlsplit(access.server)
        path = f"{url.path.rstrip('/')}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urlencode(query)}"
        self._socket = self._connect(url.hostname or "", url.port or (443 if url.scheme == "https" else 80), url.scheme)
        try:
            self._open(url.netloc, path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._socket.close()

    def _unreachable(self, error: object) -> Unreachable:
        return Unreachable(f"{self._access.server}: {error or type(error).__name__}")

    def _connect(self, host: str, port: int, scheme: str) -> socket.socket:
        try:
            plain = socket.create_connection((host, port), self._timeout)
            return self._access.tls().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
        except OSError as error:
            raise self._unreachable(error) from error

    def _open(self, host: str, path: str) -> None:
        token = self._access.bearer()
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._send(Request(host=host, target=path, subprotocols=[_PROTOCOL], extra_headers=headers))
        self._accepted = False
        self._refusal: tuple[int, bytearray] | None = None
        while not self._accepted:
            self._receive()

    def _send(self, event: Event) -> None:
        try:
            self._socket.sendall(self._ws.send(event))
        except (OSError, LocalProtocolError) as error:
            raise self._unreachable(error) from error

    def write(self, data: bytes) -> None:
        """To its standard input."""
        for start in range(0, len(data), _CHUNK):
            self._send(BytesMessage(bytes([_STDIN]) + data[start : start + _CHUNK]))

    def read_line(self) -> bytes:
        """The next line of its output, without its end; what there is (`b""` at last) once the command has ended."""
        while b"\n" not in self._out and self.status is None:
            self._receive()
        line, _, rest = self._out.partition(b"\n")
        self._out = bytearray(rest)
        return bytes(line)

    def wait(self) -> bytes:
        """Wait for its end; all its output that was not read."""
        while self.status is None:
            self._receive()
        return bytes(self._out)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
            self._ws.receive_data(data or None)
            events = list(self._ws.events())
        except (OSError, RemoteProtocolError) as error:
            raise self._unreachable(error) from error
        for event in events:
            match event:
                case AcceptConnection():
                    self._accepted = True
                case RejectConnection():
                    self._refusal = event.status_code, bytearray()
                    if not event.has_body:
                        self._refuse()
                case RejectData():
                    assert self._refusal is not None
                    self._refusal[1].extend(event.data)
                    if event.body_finished:
                        self._refuse()
                case BytesMessage():
                    self._take(bytes(event.data), event.message_finished)
                case TextMessage():
                    raise self._unreachable("a text message on an exec connection")
                case Ping():
                    self._send(event.response())
                case CloseConnection():
                    if self.status is None:
                        self._end(1, event.reason or "the connection was closed before the command ended")
        if not data and self.status is None:
            if self._refusal is not None:
                self._refuse()
            raise self._unreachable("the connection was closed before the command ended")

    def _refuse(self) -> None:
        assert self._refusal is not None
        code, body = self._refusal
        try:
            status = json.loads(body)
        except ValueError:
            status = {}
        message = status.get("message") if isinstance(status, dict) else None
        raise Refused(
            code, str(status.get("reason") or "") if message else "", message or body[:200].decode("ascii", "replace")
        )

    def _take(self, data: bytes, finished: bool) -> None:
        """A message, or a part of one: only the first part has the channel."""
        if self._channel is None:
            if not data:
                return
            self._channel, data = data[0], data[1:]
        if self._channel == _STDOUT:
            self._out += data
        elif self._channel == _STDERR:
            self.stderr = (self.stderr + data)[-_MAX_STDERR:]
        elif self._channel == _END:
            self._incoming += data
            if finished:
                self._ended()
        if finished:
            self._channel = None

    def _ended(self) -> None:
        try:
            status = json.loads(self._incoming)
            if status["status"] == "Success":
                return self._end(0, "")
            causes = (status.get("details") or {}).get("causes") or ()
            codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
            self._end(codes[0] if codes else 1, "" if codes else str(status.get("message") or "it did not run"))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._end(1, "its end was reported in an unknown form")
        return None

    def _end(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
